/*
 * sql.c
 *		Statements over SPI: once or by a plan that is kept, as the current user, or
 *		as their owner on the extension's own tables.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "nodes/plannodes.h"
#include "session.h"
#include "sql.h"
#include "txn.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

#define MAX_KEPT 48				/* plans of statements */

static int	executing = 0;		/* kept plans */

/*
 * Run a statement as the current user, planned for its parameters.  Returns
 * the number of rows; rows returned are in SPI_tuptable.  expected: the SPI_OK_*
 * that must come back.  The caller's memory context stays the current one: SPI
 * would leave its own, which ends with the transaction.
 */
uint64
bbf_sql_run(const char *sql, int nargs, Oid *types, Datum *values,
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
 * The plan of a statement that is run again and again, NULL if there cannot be one.
 * Kept for as long as the process lives, the least used go first; the server makes
 * it anew when a table changes, or when what a name means does.  None goes while one
 * is being executed: a statement of a trigger's must not push out the plan that
 * fires it.  options: as SPI_prepare_cursor() takes them.
 */
static SPIPlanPtr
kept_plan(const char *sql, int nargs, Oid *types, int options)
{
	static struct
	{
		char	   *sql;
		SPIPlanPtr	plan;
	}			kept[MAX_KEPT],
				found = {NULL, NULL};
	int			i = 0;
	bool		same = false;

	for (i = 0; i < MAX_KEPT && kept[i].sql && !same; i++)
	{
		same = strcmp(kept[i].sql, sql) == 0 && SPI_getargcount(kept[i].plan) == nargs;
		for (int arg = 0; arg < nargs && same; arg++)
			same = SPI_getargtypeid(kept[i].plan, arg) == types[arg];
	}
	if (same)
		found = kept[--i];
	else
	{
		if (i == MAX_KEPT && executing > 0)
			return NULL;
		found.plan = SPI_prepare_cursor(sql, nargs, types, options);
		if (found.plan == NULL || SPI_keepplan(found.plan) != 0)
			return NULL;
		found.sql = MemoryContextStrdup(TopMemoryContext, sql);
		if (i == MAX_KEPT)
		{
			i--;
			SPI_freeplan(kept[i].plan);
			pfree(kept[i].sql);
		}
	}
	memmove(&kept[1], &kept[0], sizeof(kept[0]) * i);
	kept[0] = found;
	return found.plan;
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

/*
 * The same as bbf_sql_run() for a statement that is run again and again: it is
 * parsed once, and planned for its parameters only where a plan for any would cost
 * more.
 */
uint64
bbf_sql_run_kept(const char *sql, int nargs, Oid *types, Datum *values,
				 const char *nulls, int expected)
{
	if (!execute_kept(sql, nargs, types, values, nulls, expected, 0, InvalidSnapshot))
		return bbf_sql_run(sql, nargs, types, values, nulls, expected);
	return SPI_processed;
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
	SPIPlanPtr	plan = kept_plan(sql, nargs, types, CURSOR_OPT_GENERIC_PLAN);
	ParamListInfo params = makeParamList(nargs);
	SPIExecuteOptions options = {.params = params, .read_only = false, .dest = dest};
	int			rc;

	MemoryContextSwitchTo(context);
	if (plan == NULL || !kept_plan_fits(plan, fits))
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
		rc = SPI_execute_plan_extended(plan, &options);
	}
	PG_FINALLY();
	{
		executing--;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	if (rc != SPI_OK_SELECT)
		elog(ERROR, "SPI returned %s for \"%s\"", SPI_result_code_string(rc), sql);
	return true;
}

/* Run a utility statement that may stand in a transaction, as the current user. */
void
bbf_sql_ddl(const char *sql)
{
	(void) bbf_sql_run(sql, 0, NULL, NULL, NULL, SPI_OK_UTILITY);
}

/*
 * The same with a snapshot of now, in a transaction that may keep an old one: a row is
 * read as it is, not as it was (R8).  It is planned once for all its parameters if
 * it is kept.
 */
uint64
bbf_sql_run_latest(const char *sql, int nargs, Oid *types, Datum *values,
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
		processed = bbf_sql_run_latest(sql, nargs, types, values, nulls, expected, false);
	else if (keep)
		processed = bbf_sql_run_kept(sql, nargs, types, values, nulls, expected);
	else
		processed = bbf_sql_run(sql, nargs, types, values, nulls, expected);
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
