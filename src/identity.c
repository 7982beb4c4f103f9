/*
 * identity.c
 *		Can a worker connect as a role?  What keeps it from that is FATAL before
 *		it can say anything, so it is looked at beforehand, by track() and by the
 *		scheduler.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_authid.h"
#include "commands/dbcommands.h"
#include "compat.h"
#include "identity.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

/*
 * Returns why a worker could not connect to this database as the role, and a
 * hint; NULL if it could.
 */
char *
bbf_identity_problem(Oid owner, char **hint)
{
	HeapTuple	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(owner));
	Form_pg_authid role;
	char	   *name;
	bool		can_login;

	*hint = NULL;
	if (!HeapTupleIsValid(tuple))
		return psprintf("role with OID %u does not exist", owner);
	role = (Form_pg_authid) GETSTRUCT(tuple);
	name = pstrdup(NameStr(role->rolname));
	can_login = role->rolcanlogin;
	ReleaseSysCache(tuple);

	if (BBF_OWNER_NEEDS_LOGIN && !can_login)
	{
		*hint = psprintf("Use ALTER ROLE %s LOGIN (it needs no password), or give the tables to a role that can log in.",
						 quote_identifier(name));
		return psprintf("role \"%s\" is not permitted to log in", name);
	}
	if (bbf_database_aclcheck(MyDatabaseId, owner, ACL_CONNECT) != ACLCHECK_OK)
	{
		*hint = psprintf("Use GRANT CONNECT ON DATABASE %s TO %s.",
						 quote_identifier(get_database_name(MyDatabaseId)), quote_identifier(name));
		return psprintf("role \"%s\" has no CONNECT privilege on database \"%s\"",
						name, get_database_name(MyDatabaseId));
	}
	return NULL;
}
