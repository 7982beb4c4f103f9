/*
 * txn.c
 *		The only place that begins, commits and aborts a worker's transactions,
 *		and that sets their limits.  SQL is run by sql.c.
 *
 * Who runs what.  A worker is connected as the owner of its jobs' tables, and
 * all SQL that touches a user's table runs as that owner, deferred triggers
 * at commit included.  The extension's own tables are written with the id of
 * the extension's owner, for that one statement (bbf_sql_catalog): restricted,
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
#include "session.h"
#include "shmem.h"
#include "standbys.h"
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
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

static TimestampTz armed_until = 0;
static MemoryContext caller_context = NULL; /* current before and after */
static int	commit_timeout = 0; /* the last limit of this transaction */

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
 * than a statement.  Whether it waits for the disk (durability) is said last, so that no
 * trigger of the user's decides it; it never waits for standbys, with locks held.
 */
static void
commit(const char *durability)
{
	bbf_txn_disarm();
	PopActiveSnapshot();
	SPI_finish();
	bbf_session_set("synchronous_commit", durability);
	bbf_txn_arm(commit_timeout);
	CommitTransactionCommand();
	bbf_txn_disarm();
	MemoryContextSwitchTo(caller_context);
	pgstat_report_stat(false);
}

/* Commit what must not be lost in a crash. */
void
bbf_txn_commit(void)
{
	commit("local");
}

/*
 * Commit without waiting for the disk: for a batch of a walk, which is done again
 * after a crash if its commit was lost, and then with all that it wrote, its cursor
 * among that.  Whoever saw its rows and commits waits for it as well.  Where standbys
 * are waited for, it waits for the disk: they get nothing that is not there.
 */
void
bbf_txn_commit_async(void)
{
	commit(bbf_standbys_wanted() ? "local" : "off");
}

/*
 * Clean up after an error, so that a new transaction can be begun.  The error
 * has been copied and flushed by the caller.
 */
void
bbf_txn_abort(void)
{
	disable_all_timeouts(false);
	bbf_shmem_set_statement(BBF_STATEMENT_PLAIN);
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
 * is off (0) for a statement that waits for old transactions under it, and would leave
 * an invalid index behind; its waits block nobody.
 */
void
bbf_txn_begin_utility(int lock_timeout_ms)
{
	caller_context = CurrentMemoryContext;
	bbf_session_harden();
	bbf_txn_lock_timeout(lock_timeout_ms);
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
 * armed by hand.  A user's function that catches the cancel, and goes on, is ended by the
 * launcher.
 */
void
bbf_txn_arm(int timeout_ms)
{
	if (timeout_ms <= 0)
		return;
	commit_timeout = timeout_ms;
	armed_until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout_ms);
	enable_timeout_after(STATEMENT_TIMEOUT, timeout_ms);
	bbf_shmem_set_limit(armed_until);
}

/* Take the limit off. */
void
bbf_txn_disarm(void)
{
	disable_timeout(STATEMENT_TIMEOUT, false);
	if (armed_until != 0 && GetCurrentTimestamp() >= armed_until)
		QueryCancelPending = false; /* it fired when all was done */
	if (armed_until != 0)
		bbf_shmem_set_limit(0);
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

/*
 * Do something in a subtransaction of its own.  NULL: it went well.  Else it is undone, and
 * the error is the caller's: to be thrown again (ReThrowError) unless it is one that he
 * has expected.
 */
ErrorData *
bbf_txn_try(void (*run) (void *arg), void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		run(arg);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return error;
}

/* How long the following lock waits may take; 0: for ever. */
void
bbf_txn_lock_timeout(int timeout_ms)
{
	char		value[32];

	snprintf(value, sizeof(value), "%d", timeout_ms);
	bbf_session_set("lock_timeout", value);
}

/* Which transactions are visible: what a snapshot taken now says of it. */
BbfVisible *
bbf_txn_visible(void)
{
	Snapshot	snapshot = GetLatestSnapshot();
	BbfVisible *visible = palloc0(sizeof(BbfVisible));

	visible->xmax = snapshot->xmax;
	visible->complete = !snapshot->suboverflowed && !snapshot->takenDuringRecovery;
	if (!visible->complete)
		return visible;
	visible->n = snapshot->xcnt + snapshot->subxcnt;
	visible->running = palloc(sizeof(TransactionId) * Max(visible->n, 1));
	memcpy(visible->running, snapshot->xip, sizeof(TransactionId) * snapshot->xcnt);
	memcpy(visible->running + snapshot->xcnt, snapshot->subxip, sizeof(TransactionId) * snapshot->subxcnt);
	return visible;
}

/*
 * Is the same visible as before, our own writing apart?  What a snapshot shows follows
 * from its xmax and from what was running below that, and nothing else: whoever has
 * ended since was running then, or has raised xmax.  In another order of the same ones,
 * or if the snapshot does not name all of them, the answer is no, which is never wrong.
 */
bool
bbf_txn_same_visible(const BbfVisible *before)
{
	BbfVisible *now = bbf_txn_visible();

	return before->complete && now->complete && before->xmax == now->xmax && before->n == now->n &&
		memcmp(before->running, now->running, sizeof(TransactionId) * now->n) == 0;
}
