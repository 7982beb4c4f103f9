/*
 * sql.c
 *		Statements over SPI: the only place that runs any.
 *
 * Each has one of two identities.
 *
 *	- The owner's of a job's tables.  In a worker, who is connected as him: the
 *	  bbf_sql_run family.  In anybody's session, where the caller has begun to be
 *	  the owner (usercontext.c): bbf_sql_run_latest() and the saved statements of
 *	  triggers, which are told who that is.  All of them look whether it is so.
 *
 *	- The extension's owner's, for that one statement, on the extension's own tables:
 *	  bbf_sql_catalog().
 *
 * All run under the pinned path.
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "miscadmin.h"
#include "nodes/plannodes.h"
#include "session.h"
#include "sql.h"
#include "txn.h"
#include "usercontext.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

#define MAX_KEPT 48				/* plans of statements */

static int	executing = 0;		/* kept plans that are being planned or executed */

/* Is this a worker, as the owner that it is connected as? */
static void
check_worker(void)
{
	bbf_usercontext_check(bbf_session_owner());
}

/* See bbf_sql_run(). */
static uint64
run(const char *sql, int nargs, Oid *types, Datum *values,
	const char *nulls, int expected)
{
	MemoryContext context = CurrentMemoryContext;
	int			rc = SPI_execute_with_args(sql, nargs, types, values, nulls, false, 0);

	MemoryContextSwitchTo(context);
	if (rc != expected)
		elog(ERROR, "SPI returned %s for \"%s\"", SPI_result_code_string(rc), sql);
	return SPI_processed;
}

/*
 * Run a statement in a worker, planned for its parameters.  Returns
 * the number of rows; rows returned are in SPI_tuptable.  expected: the SPI_OK_*
 * that must come back.  The caller's memory context stays the current one: SPI
 * would leave its own, which ends with the transaction.
 */
uint64
bbf_sql_run(const char *sql, int nargs, Oid *types, Datum *values,
			const char *nulls, int expected)
{
	check_worker();
	return run(sql, nargs, types, values, nulls, expected);
}

/* A column of a row that a statement returned, of one of the server's types, as text; NULL if it is null. */
char *
bbf_sql_text(uint64 row, int column)
{
	if (SPI_gettypeid(SPI_tuptable->tupdesc, column) >= FirstNormalObjectId)
		elog(ERROR, "column %d is of a user's type", column);
	return SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column);
}

/* The plans of statements that are run again and again, the last used first. */
static struct KeptPlan
{
	char	   *sql;
	SPIPlanPtr	plan;
}			kept[MAX_KEPT];

/* The plan that is kept for a statement, put first; NULL: none. */
static SPIPlanPtr
find_kept(const char *sql, int nargs, Oid *types)
{
	for (int i = 0; i < MAX_KEPT && kept[i].sql; i++)
	{
		struct KeptPlan found = kept[i];
		bool		same = strcmp(found.sql, sql) == 0 && SPI_getargcount(found.plan) == nargs;

		for (int arg = 0; arg < nargs && same; arg++)
			same = SPI_getargtypeid(found.plan, arg) == types[arg];
		if (!same)
			continue;
		memmove(&kept[1], &kept[0], sizeof(kept[0]) * i);
		kept[0] = found;
		return found.plan;
	}
	return NULL;
}

/*
 * The plan of a statement that is run again and again, NULL if there cannot be one.
 * Kept for as long as the process lives, the least used go first; the server makes
 * it anew when a table changes, or when what a name means does.  None goes while one
 * is being planned or executed: a statement of a trigger's, or of a function's that
 * the planner evaluates, must not push out the plan that fires it.  options: as
 * SPI_prepare_cursor() takes them.
 */
static SPIPlanPtr
kept_plan(const char *sql, int nargs, Oid *types, int options)
{
	SPIPlanPtr	plan = find_kept(sql, nargs, types);
	SPIPlanPtr	meanwhile;

	if (plan)
		return plan;
	if (kept[MAX_KEPT - 1].sql && executing > 0)
		return NULL;
	plan = SPI_prepare_cursor(sql, nargs, types, options);
	if (plan == NULL)
		return NULL;
	/* parsing may have run a function that came here */
	meanwhile = find_kept(sql, nargs, types);
	if (meanwhile || (kept[MAX_KEPT - 1].sql && executing > 0) || SPI_keepplan(plan) != 0)
	{
		SPI_freeplan(plan);
		return meanwhile;
	}
	if (kept[MAX_KEPT - 1].sql)
	{
		SPI_freeplan(kept[MAX_KEPT - 1].plan);
		pfree(kept[MAX_KEPT - 1].sql);
	}
	memmove(&kept[1], &kept[0], sizeof(kept[0]) * (MAX_KEPT - 1));
	kept[0].sql = MemoryContextStrdup(TopMemoryContext, sql);
	kept[0].plan = plan;
	return plan;
}

/*
 * Execute a statement by its kept plan, with a snapshot (InvalidSnapshot: as SPI takes
 * one).  False: it has none.
 */
static bool
execute_kept(const char *sql, int nargs, Oid *types, Datum *values, const char *nulls,
			 int expected, int options, Snapshot snapshot)
{
	MemoryContext context = CurrentMemoryContext;
	SPIPlanPtr	plan = kept_plan(sql, nargs, types, options);
	int			rc;

	MemoryContextSwitchTo(context);
	if (plan == NULL)
		return false;
	executing++;
	PG_TRY();
	{
		rc = snapshot == InvalidSnapshot ? SPI_execute_plan(plan, values, nulls, false, 0) :
			SPI_execute_snapshot(plan, values, nulls, snapshot, InvalidSnapshot, false, true, 0);
	}
	PG_FINALLY();
	{
		executing--;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	if (rc != expected)
		elog(ERROR, "SPI returned %s for \"%s\"", SPI_result_code_string(rc), sql);
	return true;
}

/* See bbf_sql_run_kept(). */
static uint64
run_kept(const char *sql, int nargs, Oid *types, Datum *values,
		 const char *nulls, int expected)
{
	if (!execute_kept(sql, nargs, types, values, nulls, expected, 0, InvalidSnapshot))
		return run(sql, nargs, types, values, nulls, expected);
	return SPI_processed;
}

/*
 * The same as bbf_sql_run() for a statement that is run again and again: it is
 * parsed once, and planned for its parameters only where a plan for any would cost
 * more.
 */
uint64
bbf_sql_run_kept(const char *sql, int nargs, Oid *types, Datum *values,
				 const char *nulls, int expected)
{
	check_worker();
	return run_kept(sql, nargs, types, values, nulls, expected);
}

/* Does a kept plan for any parameters fit? */
static bool
kept_plan_fits(SPIPlanPtr plan, bool (*fits) (const PlannedStmt *stmt))
{
	CachedPlan *cached = SPI_plan_get_cached_plan(plan);
	bool		result;

	if (cached == NULL)
		return false;
	result = list_length(cached->stmt_list) == 1 && fits(linitial_node(PlannedStmt, cached->stmt_list));
	ReleaseCachedPlan(cached, CurrentResourceOwner);
	return result;
}

/*
 * Run a query by its kept plan, which is one for all parameters, if it fits; its rows
 * go to dest, which may have enough at any time.  False: it does not, or there is none,
 * and nothing was run.
 */
bool
bbf_sql_query_kept(const char *sql, int nargs, Oid *types, Datum *values, const char *nulls,
				   bool (*fits) (const PlannedStmt *stmt), DestReceiver *dest)
{
	MemoryContext context = CurrentMemoryContext;
	ParamListInfo params = makeParamList(nargs);
	SPIExecuteOptions options = {.params = params, .read_only = false, .dest = dest};
	SPIPlanPtr	volatile plan;
	volatile int rc = 0;
	volatile bool fitting = false;

	check_worker();
	plan = kept_plan(sql, nargs, types, CURSOR_OPT_GENERIC_PLAN);
	MemoryContextSwitchTo(context);
	if (plan == NULL)
		return false;
	for (int i = 0; i < nargs; i++)
	{
		params->params[i].value = values[i];
		params->params[i].isnull = nulls && nulls[i] == 'n';
		params->params[i].pflags = PARAM_FLAG_CONST;
		params->params[i].ptype = types[i];
	}
	executing++;
	PG_TRY();
	{
		fitting = kept_plan_fits(plan, fits);
		if (fitting)
			rc = SPI_execute_plan_extended(plan, &options);
	}
	PG_FINALLY();
	{
		executing--;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	if (fitting && rc != SPI_OK_SELECT)
		elog(ERROR, "SPI returned %s for \"%s\"", SPI_result_code_string(rc), sql);
	return fitting;
}

/* Run a utility statement that may stand in a transaction, in a worker. */
void
bbf_sql_ddl(const char *sql)
{
	(void) bbf_sql_run(sql, 0, NULL, NULL, NULL, SPI_OK_UTILITY);
}

/* See bbf_sql_run_latest(). */
static uint64
run_latest(const char *sql, int nargs, Oid *types, Datum *values,
		   const char *nulls, int expected, bool keep)
{
	MemoryContext context = CurrentMemoryContext;
	SPIPlanPtr	plan;
	uint64		processed;
	int			rc;

	if (keep && execute_kept(sql, nargs, types, values, nulls, expected, CURSOR_OPT_GENERIC_PLAN, GetLatestSnapshot()))
		return SPI_processed;
	plan = SPI_prepare_cursor(sql, nargs, types, keep ? CURSOR_OPT_GENERIC_PLAN : 0);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare_cursor returned %s for \"%s\"", SPI_result_code_string(SPI_result), sql);
	rc = SPI_execute_snapshot(plan, values, nulls, GetLatestSnapshot(), InvalidSnapshot,
							  false, true, 0);
	if (rc != expected)
		elog(ERROR, "SPI returned %s for \"%s\"", SPI_result_code_string(rc), sql);
	processed = SPI_processed;
	SPI_freeplan(plan);
	MemoryContextSwitchTo(context);
	return processed;
}

/*
 * Run a statement as a job's owner, whom the caller has begun to be, in anybody's
 * session: with a snapshot of now, in a transaction that may keep an old one, so
 * that a row is read as it is, not as it was (R8).  It is planned once for all its
 * parameters if it is kept.
 */
uint64
bbf_sql_run_latest(Oid owner, const char *sql, int nargs, Oid *types, Datum *values,
				   const char *nulls, int expected, bool keep)
{
	bbf_usercontext_check(owner);
	return run_latest(sql, nargs, types, values, nulls, expected, keep);
}

/* The same with the transaction's own snapshot, which may be an old one: what the caller sees. */
uint64
bbf_sql_run_as_seen(Oid owner, const char *sql, int nargs, Oid *types, Datum *values,
					const char *nulls, int expected)
{
	bbf_usercontext_check(owner);
	return run_kept(sql, nargs, types, values, nulls, expected);
}

/*
 * Save a statement of a trigger's for good, planned here and now, once for all keys:
 * by the index on the key or by place, never by reading a table or in the heap's
 * order (which would lock rows in that order), however small the table is today.
 */
SPIPlanPtr
bbf_sql_save(Oid owner, const char *sql, int nargs, Oid *types)
{
	SPIPlanPtr	plan;
	CachedPlan *cplan;

	bbf_usercontext_check(owner);
	plan = SPI_prepare_cursor(sql, nargs, types, CURSOR_OPT_GENERIC_PLAN);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare_cursor returned %s for \"%s\"",
			 SPI_result_code_string(SPI_result), sql);
	SPI_keepplan(plan);
	cplan = SPI_plan_get_cached_plan(plan);
	if (cplan)
		ReleaseCachedPlan(cplan, CurrentResourceOwner);
	return plan;
}

/*
 * Run a saved statement with a snapshot of now, in settings of its own: the
 * statement before may have fired a trigger that changed them, and the server makes
 * the plan anew when the search path, or what it means, is not what the plan was
 * made under.  Then as before: never by reading a table, nor in the heap's order.
 * before: run it unrestricted, as free as who called us then; NULL: not so.
 *
 * A transaction that keeps its snapshot must not write a row that it does not
 * see: it would see both versions from then on.  So what has changed since is a
 * serialization failure for it (R8), as in a foreign key's action.
 */
uint64
bbf_sql_execute_saved(Oid owner, SPIPlanPtr plan, Datum *values, int expected, bool pin_path,
					  const BbfUserContext *before)
{
	MemoryContext context = CurrentMemoryContext;
	int			nestlevel = bbf_session_pin_plan(pin_path);
	bool		writes = expected == SPI_OK_UPDATE;
	int			sec_context = 0;
	int			rc;

	bbf_usercontext_check(owner);
	if (before)
		sec_context = bbf_usercontext_unrestrict(before);
	rc = SPI_execute_snapshot(plan, values, NULL, GetLatestSnapshot(),
							  writes && IsolationUsesXactSnapshot() ?
							  GetTransactionSnapshot() : InvalidSnapshot,
							  false, true, 0);
	if (before)
		bbf_usercontext_restrict(sec_context);
	bbf_session_unpin(nestlevel);
	MemoryContextSwitchTo(context);
	if (rc != expected)
		elog(ERROR, "SPI_execute_snapshot returned %s", SPI_result_code_string(rc));
	return SPI_processed;
}

/* Run a statement on the extension's own tables, as their owner; keep: its plan. */
static uint64
catalog(const char *sql, int nargs, Oid *types, Datum *values,
		const char *nulls, int expected, bool keep)
{
	Oid			owner = bbf_txn_extension_owner();
	Oid			save_userid;
	int			save_context;
	int			nestlevel;
	uint64		processed;

	GetUserIdAndSecContext(&save_userid, &save_context);
	SetUserIdAndSecContext(owner, save_context | SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION);
	nestlevel = bbf_session_pin();
	if (IsolationUsesXactSnapshot())
		processed = run_latest(sql, nargs, types, values, nulls, expected, false);
	else if (keep)
		processed = run_kept(sql, nargs, types, values, nulls, expected);
	else
		processed = run(sql, nargs, types, values, nulls, expected);
	bbf_session_unpin(nestlevel);
	SetUserIdAndSecContext(save_userid, save_context);
	return processed;
}

/*
 * Run a statement on the extension's own tables, as their owner.  Parameters
 * are of built-in types.  On error the abort brings the user id back.  A worker
 * keeps the plan.
 */
uint64
bbf_sql_catalog(const char *sql, int nargs, Oid *types, Datum *values,
				const char *nulls, int expected)
{
	return catalog(sql, nargs, types, values, nulls, expected, MyBackendType == B_BG_WORKER);
}

/* The same for a statement that a consumer runs again and again in his session. */
uint64
bbf_sql_catalog_kept(const char *sql, int nargs, Oid *types, Datum *values,
					 const char *nulls, int expected)
{
	return catalog(sql, nargs, types, values, nulls, expected, true);
}
