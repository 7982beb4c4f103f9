/*
 * utility.c
 *		Getting out of the way of commands that need a database to themselves,
 *		and of DROP EXTENSION.
 *
 * DROP DATABASE (and what else wants no other session in a database) waits
 * five seconds for background workers and then fails.  So before it runs, ours
 * are asked to leave, and the launcher starts none there until it is over.  A
 * server that terminates interruptible workers itself does the asking, once it
 * has found nothing else against the command; only it cannot tell the launcher.
 * DROP EXTENSION would wait for the batch or the index build that holds a lock
 * on the extension: the same.
 *
 * Only somebody who may run the command disturbs a worker.
 */
#include "postgres.h"

#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "compat.h"
#include "nodes/parsenodes.h"
#include "shmem.h"
#include "tcop/utility.h"
#include "utility.h"

static ProcessUtility_hook_type prev_ProcessUtility = NULL;

/* The value of a CREATE DATABASE option, or NULL. */
static const char *
string_option(List *options, const char *name)
{
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *opt = lfirst_node(DefElem, lc);

		if (strcmp(opt->defname, name) == 0 && opt->arg)
			return defGetString(opt);
	}
	return NULL;
}

/* Does a DROP EXTENSION name ours? */
static bool
drops_extension(DropStmt *stmt)
{
	ListCell   *lc;

	if (stmt->removeType != OBJECT_EXTENSION)
		return false;
	foreach(lc, stmt->objects)
	{
		if (strcmp(strVal(lfirst(lc)), "bgw_backfill") == 0)
		{
			Oid			ext = get_extension_oid("bgw_backfill", true);

			return OidIsValid(ext) && bbf_extension_ownercheck(ext, GetUserId());
		}
	}
	return false;
}

/* The database that a statement wants to itself, if the user may have it. */
static Oid
database_to_drain(Node *stmt)
{
	const char *name = NULL;
	Oid			datid;

	switch (nodeTag(stmt))
	{
		case T_DropdbStmt:
			name = ((DropdbStmt *) stmt)->dbname;
			break;
		case T_CreatedbStmt:
			name = string_option(((CreatedbStmt *) stmt)->options, "template");
			if (name == NULL)
				name = "template1";
			break;
		case T_AlterDatabaseStmt:
			if (string_option(((AlterDatabaseStmt *) stmt)->options, "tablespace"))
				name = ((AlterDatabaseStmt *) stmt)->dbname;
			break;
		case T_RenameStmt:
			if (((RenameStmt *) stmt)->renameType == OBJECT_DATABASE)
				name = ((RenameStmt *) stmt)->subname;
			break;
		case T_DropStmt:
			return drops_extension((DropStmt *) stmt) ? MyDatabaseId : InvalidOid;
		default:
			break;
	}
	if (name == NULL)
		return InvalidOid;
	datid = get_database_oid(name, true);
	if (!OidIsValid(datid) || !bbf_database_ownercheck(datid, GetUserId()))
		return InvalidOid;
	return datid;
}

/* What would have run without us. */
static void
run_next(PlannedStmt *pstmt, const char *query_string, bool read_only_tree,
		 ProcessUtilityContext context, ParamListInfo params,
		 QueryEnvironment *env, DestReceiver *dest, QueryCompletion *qc)
{
	if (prev_ProcessUtility)
		prev_ProcessUtility(pstmt, query_string, read_only_tree, context, params, env, dest, qc);
	else
		standard_ProcessUtility(pstmt, query_string, read_only_tree, context, params, env, dest, qc);
}

static void
process_utility(PlannedStmt *pstmt, const char *query_string, bool read_only_tree,
				ProcessUtilityContext context, ParamListInfo params,
				QueryEnvironment *env, DestReceiver *dest, QueryCompletion *qc)
{
	volatile Oid datid = database_to_drain(pstmt->utilityStmt);

	if (!OidIsValid(datid))
	{
		run_next(pstmt, query_string, read_only_tree, context, params, env, dest, qc);
		return;
	}

	/* DROP EXTENSION always needs us to ask */
	bbf_shmem_drain(datid, !BBF_SERVER_TERMINATES || IsA(pstmt->utilityStmt, DropStmt));
	PG_TRY();
	{
		run_next(pstmt, query_string, read_only_tree, context, params, env, dest, qc);
	}
	PG_CATCH();
	{
		bbf_shmem_undrain(datid);
		PG_RE_THROW();
	}
	PG_END_TRY();

	/* DROP DATABASE runs in no transaction block: it is as good as committed */
	if (IsA(pstmt->utilityStmt, DropdbStmt))
		bbf_shmem_remove_database(datid);
	else
		bbf_shmem_undrain(datid);
}

/* Install the hook. */
void
bbf_utility_init(void)
{
	prev_ProcessUtility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
}
