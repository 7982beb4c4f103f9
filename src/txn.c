/*
 * txn.c
 *		The only place that begins, commits and aborts a worker's transactions,
 *		and the only place that runs SQL for them.
 *
 * Who runs what.  A worker is connected as the owner of its jobs' tables, and
 * all SQL that touches a user's table runs as that owner, deferred triggers
 * at commit included.  The extension's own tables are written with the id of
 * the extension's owner, for that one statement (bbf_txn_catalog): restricted,
 * with the search path pinned, with nothing but built-in types as parameters.
 * No user's code can run inside such a statement.
 *
 * The session is made anew before every transaction: a trigger of the user's
 * that a batch fires can SET whatever a plain session can, and that survives
 * the commit.  He only ever reaches what he could reach in a session of his
 * own, but our statements must not depend on it.
 *
 * Locks: every transaction first locks the extension, so that DROP EXTENSION
 * waits for it or it sees that the extension is gone.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "compat.h"
#include "executor/spi.h"
#include "guc.h"
#include "nodes/makefuncs.h"
#include "parser/parser.h"
#include "pgstat.h"
#include "replication/syncrep.h"
#include "session.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "tcop/pquery.h"
#include "tcop/tcopprot.h"
#include "tcop/utility.h"
#include "txn.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#define MAX_KEPT 48				/* plans of statements */

static TimestampTz armed_until = 0;
static MemoryContext caller_context = NULL; /* current before and after */
static int	commit_timeout = 0; /* the last limit of this transaction */
static int	executing = 0;		/* kept plans */

/* OID of the extension in this database, or InvalidOid. */
Oid
bbf_txn_extension_oid(void)
{
	return get_extension_oid("bgw_backfill", true);
}

/*
 * The owner of the extension's tables.  They are the extension's members in
 * the schema that its script made; anything else by that name is refused.
 */
Oid
bbf_txn_extension_owner(void)
{
	Oid			schema = get_namespace_oid("bgw_backfill", true);
	Oid			job = OidIsValid(schema) ? get_relname_relid("job", schema) : InvalidOid;
	Oid			ext = bbf_txn_extension_oid();
	HeapTuple	tuple;
	Oid			owner;

	if (!OidIsValid(job) || !OidIsValid(ext) ||
		getExtensionOfObject(RelationRelationId, job) != ext)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("extension \"bgw_backfill\" does not exist in this database"),
				 errhint("Use CREATE EXTENSION bgw_backfill.")));
	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(job));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", job);
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

/*
 * Begin a transaction with SPI connected and a snapshot pushed.  Returns false,
 * outside any transaction, when the extension is gone.  The caller's memory
 * context stays the current one, now and after the commit: what is read lives as
 * long as the caller wants.
 */
bool
bbf_txn_begin(void)
{
	Oid			ext;

	caller_context = CurrentMemoryContext;
	bbf_session_harden();
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	bbf_txn_lock_timeout(bbf_guc_server_value(BBF_LOCK_TIMEOUT));
	commit_timeout = bbf_guc_server_value(BBF_STATEMENT_TIMEOUT);

	/* lock the extension, then look again */
	ext = bbf_txn_extension_oid();
	if (OidIsValid(ext))
	{
		LockDatabaseObject(ExtensionRelationId, ext, 0, AccessShareLock);
		ext = bbf_txn_extension_oid();
	}
	if (!OidIsValid(ext))
	{
		CommitTransactionCommand();
		MemoryContextSwitchTo(caller_context);
		return false;
	}
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(caller_context);
	return true;
}

/*
 * Commit, as the owner: deferred triggers run here, and are given no more time
 * than a statement.
 */
void
bbf_txn_commit(void)
{
	bbf_txn_disarm();
	PopActiveSnapshot();
	SPI_finish();
	bbf_txn_arm(commit_timeout);
	CommitTransactionCommand();
	bbf_txn_disarm();
	MemoryContextSwitchTo(caller_context);
	pgstat_report_stat(false);
}

/*
 * Commit without waiting for the disk: for a batch of a walk, which is done again
 * after a crash if its commit was lost, and then with all that it wrote, its cursor
 * among that.  Whoever saw its rows and commits waits for it as well.  Where standbys
 * are waited for, so does a batch: that keeps a fill from running ahead of them.
 */
void
bbf_txn_commit_async(void)
{
	if (SyncRepStandbyNames == NULL || SyncRepStandbyNames[0] == '\0')
		(void) set_config_option("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_LOCAL, true, 0, false);
	bbf_txn_commit();
}

/*
 * Clean up after an error, so that a new transaction can be begun.  The error
 * has been copied and flushed by the caller.
 */
void
bbf_txn_abort(void)
{
	disable_all_timeouts(false);
	QueryCancelPending = false;
	HOLD_INTERRUPTS();
	LockErrorCleanup();
	AbortOutOfAnyTransaction();	/* subtransactions as well */
	RESUME_INTERRUPTS();
	pgstat_report_stat(false);
}

/*
 * Begin what a top-level utility statement needs that commits on its own
 * (CREATE INDEX CONCURRENTLY, VACUUM): a transaction without SPI.  lock_timeout
 * is off: such a statement waits for old transactions under it, and would leave
 * an invalid index behind; its waits block nobody.
 */
void
bbf_txn_begin_utility(void)
{
	caller_context = CurrentMemoryContext;
	bbf_session_harden();
	bbf_txn_lock_timeout(0);
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
}

/*
 * Run one utility statement as a client would have sent it.  The parse tree
 * has to survive the statement's own commits, so it lives in a context of its
 * own; the statement takes the active snapshot off itself when it commits.
 */
void
bbf_txn_utility(const char *sql)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "bgw_backfill utility",
												  ALLOCSET_DEFAULT_SIZES);
	PlannedStmt *pstmt;
	RawStmt    *raw;
	List	   *parsed;

	MemoryContextSwitchTo(context);
	PortalContext = context;	/* where VACUUM puts what it keeps */
	PG_TRY();
	{
		pgstat_report_activity(STATE_RUNNING, sql);
		PushActiveSnapshot(GetTransactionSnapshot());
		parsed = raw_parser(sql, RAW_PARSE_DEFAULT);
		raw = linitial_node(RawStmt, parsed);
		pstmt = makeNode(PlannedStmt);
		pstmt->commandType = CMD_UTILITY;
		pstmt->utilityStmt = raw->stmt;
		pstmt->canSetTag = true;
		pstmt->stmt_location = -1;
		ProcessUtility(pstmt, sql, false, PROCESS_UTILITY_TOPLEVEL,
					   NULL, NULL, None_Receiver, NULL);
		if (ActiveSnapshotSet())
			PopActiveSnapshot();
	}
	PG_FINALLY();
	{
		/* the caller's context may have gone with the statement's commits */
		PortalContext = NULL;
		MemoryContextSwitchTo(TopMemoryContext);
		MemoryContextDelete(context);
	}
	PG_END_TRY();
}

/* The end of bbf_txn_begin_utility(). */
void
bbf_txn_end_utility(void)
{
	CommitTransactionCommand();
	MemoryContextSwitchTo(caller_context);
	pgstat_report_stat(false);
}

/*
 * Let what follows take no longer than timeout_ms, until bbf_txn_disarm().
 * Nobody but a client's command loop looks at statement_timeout, so it is
 * armed by hand.
 */
void
bbf_txn_arm(int timeout_ms)
{
	if (timeout_ms <= 0)
		return;
	commit_timeout = timeout_ms;
	armed_until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout_ms);
	enable_timeout_after(STATEMENT_TIMEOUT, timeout_ms);
}

/* Take the limit off. */
void
bbf_txn_disarm(void)
{
	disable_timeout(STATEMENT_TIMEOUT, false);
	if (armed_until != 0 && GetCurrentTimestamp() >= armed_until)
		QueryCancelPending = false; /* it fired when all was done */
	armed_until = 0;
}

/*
 * After a query_canceled error: was it the limit that ran out?  Otherwise
 * somebody has cancelled us; both have the same SQLSTATE.
 */
bool
bbf_txn_timed_out(void)
{
	bool		result = armed_until != 0 && GetCurrentTimestamp() >= armed_until;

	armed_until = 0;
	return result;
}

/* How long the following lock waits may take; 0: for ever. */
void
bbf_txn_lock_timeout(int timeout_ms)
{
	char		value[32];

	snprintf(value, sizeof(value), "%d", timeout_ms);
	bbf_session_set("lock_timeout", value);
}

/*
 * How many transactions that wrote anything have ended in this server: where it is
 * the same twice, no snapshot between the two shows more than another one.
 */
uint64
bbf_txn_ended(void)
{
	return GetLatestSnapshot()->snapXactCompletionCount;
}

/*
 * Run a statement as the current user, planned for its parameters.  Returns
 * the number of rows; rows returned are in SPI_tuptable.  expected: the SPI_OK_*
 * that must come back.  The caller's memory context stays the current one: SPI
 * would leave its own, which ends with the transaction.
 */
uint64
bbf_txn_sql(const char *sql, int nargs, Oid *types, Datum *values,
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
 * The same as bbf_txn_sql() for a statement that is run again and again: it is
 * parsed once, and planned for its parameters only where a plan for any would cost
 * more.
 */
uint64
bbf_txn_sql_kept(const char *sql, int nargs, Oid *types, Datum *values,
				 const char *nulls, int expected)
{
	if (!execute_kept(sql, nargs, types, values, nulls, expected, 0, InvalidSnapshot))
		return bbf_txn_sql(sql, nargs, types, values, nulls, expected);
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
bbf_txn_query_kept(const char *sql, int nargs, Oid *types, Datum *values, const char *nulls,
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
bbf_txn_ddl(const char *sql)
{
	(void) bbf_txn_sql(sql, 0, NULL, NULL, NULL, SPI_OK_UTILITY);
}

/*
 * The same with a snapshot of now, in a transaction that may keep an old one: a row is
 * read as it is, not as it was (R8).  It is planned once for all its parameters if
 * it is kept.
 */
uint64
bbf_txn_sql_latest(const char *sql, int nargs, Oid *types, Datum *values,
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
		processed = bbf_txn_sql_latest(sql, nargs, types, values, nulls, expected, false);
	else if (keep)
		processed = bbf_txn_sql_kept(sql, nargs, types, values, nulls, expected);
	else
		processed = bbf_txn_sql(sql, nargs, types, values, nulls, expected);
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
bbf_txn_catalog(const char *sql, int nargs, Oid *types, Datum *values,
				const char *nulls, int expected)
{
	return catalog(sql, nargs, types, values, nulls, expected, MyBackendType == B_BG_WORKER);
}

/* The same for a statement that a consumer runs again and again in his session. */
uint64
bbf_txn_catalog_kept(const char *sql, int nargs, Oid *types, Datum *values,
					 const char *nulls, int expected)
{
	return catalog(sql, nargs, types, values, nulls, expected, true);
}
