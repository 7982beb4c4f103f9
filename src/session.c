/*
 * session.c
 *		The settings that our statements rely on: of a worker's session, and
 *		pinned around a statement in somebody else's.
 */
#include "postgres.h"

#include "catalog/pg_authid.h"
#include "miscadmin.h"
#include "optimizer/cost.h"
#include "session.h"
#include "storage/proc.h"
#include "utils/guc.h"

#define BBF_SEARCH_PATH "pg_catalog, pg_temp"

static Oid	session_owner = InvalidOid;

/* The role that a worker is connected as; InvalidOid in a scheduler. */
void
bbf_session_set_owner(Oid owner)
{
	session_owner = owner;
}

/* That role, or InvalidOid in any other session. */
Oid
bbf_session_owner(void)
{
	return session_owner;
}

/* Is this a worker's session, connected as that role? */
bool
bbf_session_is_of(Oid role)
{
	return OidIsValid(role) && role == session_owner;
}

/* Set a setting for the session, whatever it was. */
void
bbf_session_set(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SET, true, 0, false);
}

/*
 * Make the session what our statements rely on, before the transaction begins,
 * which takes its isolation level from it: where names are looked up,
 * how keys turn into text, and that no plan of a batch can read a whole table
 * (a range or a key array on an index costs the same however large the table,
 * and whatever its statistics say).
 */
void
bbf_session_harden(void)
{
	static const struct
	{
		const char *name;
		const char *value;
	}			wanted[] =
	{
		{"role", "none"},
		{"search_path", BBF_SEARCH_PATH},
		{"row_security", "off"},
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_deferrable", "off"},
		{"synchronous_commit", "local"},
		{"statement_timeout", "0"},
		{"idle_in_transaction_session_timeout", "0"},
		{"check_function_bodies", "on"},
		{"default_tablespace", ""},
		{"datestyle", "ISO, YMD"},
		{"intervalstyle", "postgres"},
		{"extra_float_digits", "1"},
		{"bytea_output", "hex"},
		{"lc_monetary", "C"},
		{"standard_conforming_strings", "on"},
		{"quote_all_identifiers", "off"},
		{"enable_seqscan", "off"},
		{"enable_nestloop", "on"},
		{"enable_indexscan", "on"},
		{"enable_indexonlyscan", "on"},
		{"enable_tidscan", "on"},
		{"enable_mergejoin", "on"},
		{"enable_hashjoin", "on"},
		{"enable_bitmapscan", "on"},
		{"enable_sort", "on"},
		{"max_parallel_workers_per_gather", "0"},
		{"max_parallel_maintenance_workers", "0"},
		{"plan_cache_mode", "auto"},
		{"jit", "off"}
	};

	/* newer servers only */
	if (GetConfigOption("transaction_timeout", true, false) != NULL)
		bbf_session_set("transaction_timeout", "0");

	SetUserIdAndSecContext(OidIsValid(session_owner) ? session_owner : BOOTSTRAP_SUPERUSERID, 0);
	for (int i = 0; i < (int) lengthof(wanted); i++)
		bbf_session_set(wanted[i].name, wanted[i].value);
}

/*
 * Pin what the next statement relies on, in a level of its own; returns the
 * level for bbf_session_unpin().  To be used around each single statement that
 * runs with other rights than the caller's: a trigger that the statement
 * before it fired may have set the search path.
 */
int
bbf_session_pin(void)
{
	int			nestlevel = NewGUCNestLevel();

	(void) set_config_option("search_path", BBF_SEARCH_PATH, PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	return nestlevel;
}

/*
 * In a level of its own: wait for no lock longer than that, or than the session does.
 * Returns the level for bbf_session_unpin().
 */
int
bbf_session_pin_waits(int timeout_ms)
{
	int			nestlevel = NewGUCNestLevel();
	char		value[32];

	snprintf(value, sizeof(value), "%d", LockTimeout > 0 ? Min(LockTimeout, timeout_ms) : timeout_ms);
	(void) set_config_option("lock_timeout", value, PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	return nestlevel;
}

/* Pin, in the current level, how a statement is planned: by index or by place. */
void
bbf_session_pin_by_index(void)
{
	if (enable_seqscan)
		(void) set_config_option("enable_seqscan", "off", PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	if (enable_bitmapscan)
		(void) set_config_option("enable_bitmapscan", "off", PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
}

/*
 * Pin how a saved statement is planned, should the server plan it anew; and the
 * search path, if asked for.
 */
int
bbf_session_pin_plan(bool pin_path)
{
	int			nestlevel = pin_path ? bbf_session_pin() : NewGUCNestLevel();

	bbf_session_pin_by_index();
	return nestlevel;
}

/*
 * Pin, in the current level, all that decides how an expression and its
 * constants are written and read.
 */
void
bbf_session_pin_text(void)
{
	static const char *const pinned[][2] = {
		{"search_path", BBF_SEARCH_PATH},
		{"datestyle", "ISO, YMD"},
		{"intervalstyle", "postgres"},
		{"extra_float_digits", "1"},
		{"bytea_output", "hex"},
		{"lc_monetary", "C"},
		{"standard_conforming_strings", "on"},
		{"quote_all_identifiers", "off"}
	};

	for (int i = 0; i < (int) lengthof(pinned); i++)
		(void) set_config_option(pinned[i][0], pinned[i][1], PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
}

/*
 * The same for keys and groups as text, where texts of several sessions are
 * compared: a point in time looks the same in all of them.
 */
void
bbf_session_pin_keys(void)
{
	bbf_session_pin_text();
	(void) set_config_option("timezone", "UTC", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
}

/*
 * Back to the settings before bbf_session_pin(): undo what was set since, by
 * whatever a user's trigger or function has done, SET for the session included.
 */
void
bbf_session_unpin(int nestlevel)
{
	AtEOXact_GUC(false, nestlevel);
}
