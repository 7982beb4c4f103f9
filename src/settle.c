/*
 * settle.c
 *		What a batch does to the rows of its key range.
 *
 * A batch is three statements, each with a snapshot of its own:
 *
 *	1. candidates: what in this range looks wrong?  No locks.
 *	2. lock the candidates, passing by rows that somebody else holds.
 *	3. decide for what is locked, and write.
 *
 * Where a mode knows what it will most likely write, 2 and 3, or all three, have a
 * quick way: write all candidates at once, then look with a fresh snapshot and
 * put right what that shows, before the commit.  It may wait for a row while it holds
 * others, but for a few milliseconds only; if it would have to wait longer, it is
 * undone and the batch goes the way above.
 *
 * Between 1 and 2 a row may have changed; 3 is what counts (races R1 .. R3 are
 * argued in the mode).  A candidate that 2 did not get, because it is locked,
 * has moved or is gone, is remembered in job_skipped by the same transaction
 * and done later, one row per transaction, where waiting holds nothing else.
 * So the cursor never passes a row that is neither done nor remembered.
 *
 * R9 and deadlocks: we wait for no row while we hold one; locks are taken in
 * key order.  What else may make us wait once rows are locked (the job's row, a
 * trigger of the user's) may do so for half of deadlock_timeout: then it is us
 * who give way.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "expr.h"
#include "objects.h"
#include "session.h"
#include "settle.h"
#include "shape.h"
#include "sql.h"
#include "storage/itemptr.h"
#include "storage/proc.h"
#include "txn.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "window.h"

/* how long the quick way may wait for a lock while it holds others */
#define WRITE_WAIT_MS 10

/* rows found by a statement that returns (ctid, key) */
typedef struct RowSet
{
	uint64		n;
	Datum	   *tids;
	char	  **keys;			/* as text */
} RowSet;

/* One statement of a batch, under the job's statement_timeout. */
uint64
bbf_settle_statement(const BbfJob *job, const char *sql, int nargs, Oid *types, Datum *values,
		  const char *nulls, int expected)
{
	uint64		processed;

	bbf_txn_arm(bbf_job_setting(job, BBF_STATEMENT_TIMEOUT));
	processed = bbf_sql_run(sql, nargs, types, values, nulls, expected);
	bbf_txn_disarm();
	return processed;
}

/* The same for one that each batch runs. */
uint64
bbf_settle_kept_statement(const BbfJob *job, const char *sql, int nargs, Oid *types, Datum *values,
						  const char *nulls, int expected)
{
	uint64		processed;

	bbf_txn_arm(bbf_job_setting(job, BBF_STATEMENT_TIMEOUT));
	processed = bbf_sql_run_kept(sql, nargs, types, values, nulls, expected);
	bbf_txn_disarm();
	return processed;
}

/* A single key that a statement returned, as text; NULL if it returned none. */
char *
bbf_settle_first_key(const BbfPair *pair)
{
	bool		isnull;
	Datum		key;
	char	   *text;

	if (SPI_processed == 0)
		return NULL;
	key = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	text = bbf_pair_key_out(pair, key);
	SPI_freetuptable(SPI_tuptable);
	return text;
}

/* Copy what a statement returned out of SPI. */
static RowSet
take_rows(const BbfPair *pair)
{
	RowSet		set;

	set.n = SPI_processed;
	set.tids = palloc_extended(sizeof(Datum) * Max(set.n, 1), MCXT_ALLOC_HUGE);
	set.keys = palloc_extended(sizeof(char *) * Max(set.n, 1), MCXT_ALLOC_HUGE);
	for (uint64 i = 0; i < set.n; i++)
	{
		bool		isnull;
		Datum		tid = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull);
		Datum		key = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2, &isnull);

		set.tids[i] = datumCopy(tid, false, sizeof(ItemPointerData));
		set.keys[i] = bbf_pair_key_out(pair, key);
	}
	SPI_freetuptable(SPI_tuptable);
	return set;
}

static Datum
tid_array(const RowSet *set)
{
	return PointerGetDatum(construct_array(set->tids, (int) set->n, TIDOID,
										   sizeof(ItemPointerData), false, TYPALIGN_SHORT));
}

/*
 * Statement 1.  A join that probes one side's index for each row of the other
 * costs three buffers a row; ordered or hashed, a range is read once.
 */
static RowSet
find_candidates(BbfWalk *walk)
{
	Oid			types[] = {walk->pair->key_type, walk->pair->key_type};
	Datum		values[] = {walk->low, walk->high};
	RowSet		set;

	bbf_session_set("enable_nestloop", "off");
	bbf_settle_statement(walk->job,
						 walk->mode->candidates(walk->job, walk->pair, walk->sweep, walk->bounded),
						 2, types, values, walk->bounded ? NULL : "n ", SPI_OK_SELECT);
	set = take_rows(walk->pair);
	bbf_session_set("enable_nestloop", "on");
	return set;
}

/* Statement 2. */
static RowSet
lock_candidates(BbfWalk *walk, const RowSet *candidates)
{
	Oid			types[] = {TIDARRAYOID};
	Datum		values[] = {tid_array(candidates)};

	bbf_settle_statement(walk->job, walk->mode->lock(walk->job, walk->pair, false),
						 1, types, values, NULL, SPI_OK_SELECT);
	return take_rows(walk->pair);
}

static Datum
key_array(const BbfPair *pair, const BbfWindow *window)
{
	int16		typlen;
	bool		typbyval;
	char		typalign;

	get_typlenbyvalalign(pair->key_type, &typlen, &typbyval, &typalign);
	return PointerGetDatum(construct_array(window->lacking, window->nlacking, pair->key_type,
										   typlen, typbyval, typalign));
}

/* From here on rows are locked. */
static void
limit_waits(const BbfJob *job)
{
	int			timeout = bbf_job_setting(job, BBF_LOCK_TIMEOUT);

	bbf_txn_lock_timeout(Max(Min(timeout, DeadlockTimeout / 2), 1));
}

/*
 * Statement 3.  Returns how many rows were written.  A trigger that suppresses
 * our write would make every sweep find the same rows: say so.
 */
static int64
decide(BbfWalk *walk, const RowSet *locked)
{
	Oid			types[] = {TIDARRAYOID};
	Datum		values[] = {tid_array(locked)};
	uint64		written;
	char	   *key;

	written = bbf_settle_statement(walk->job, walk->mode->decide(walk->job, walk->pair),
								   1, types, values, NULL, walk->mode->decide_code);
	if (written >= locked->n)
		return written;
	bbf_settle_statement(walk->job, walk->mode->undecided(walk->job, walk->pair),
						 1, types, values, NULL, SPI_OK_SELECT);
	key = bbf_settle_first_key(walk->pair);
	if (key)
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
				 walk->mode->table ?
				 errmsg("an insert into table %s was suppressed", walk->mode->table(walk->job, walk->pair)) :
				 errmsg("an update of table %s was suppressed", walk->pair->source_sql),
				 errdetail("The row with key %s was not written.", key),
				 errhint("Look for a BEFORE %s trigger that returns NULL.", walk->mode->table ? "INSERT" : "UPDATE")));
	return written;
}

static int
compare_texts(const void *a, const void *b)
{
	return strcmp(*(char *const *) a, *(char *const *) b);
}

/* Remember the candidates that are not among the rows done. */
static void
remember_skipped(BbfJob *job, const RowSet *candidates, const RowSet *locked)
{
	uint64		l = 0;

	job->has_skipped = true;
	qsort(candidates->keys, candidates->n, sizeof(char *), compare_texts);
	qsort(locked->keys, locked->n, sizeof(char *), compare_texts);

	for (uint64 c = 0; c < candidates->n; c++)
	{
		if (l < locked->n && strcmp(candidates->keys[c], locked->keys[l]) == 0)
			l++;
		else
			bbf_job_skip(job, candidates->keys[c]);
	}
}

/* what is tried in a subtransaction */
typedef struct Attempt
{
	BbfWalk    *walk;
	const char *sql;			/* a quick way's statement; NULL: decide for locked */
	int			nargs;
	Oid		   *types;
	Datum	   *values;
	const char *nulls;
	const RowSet *locked;
	RowSet		written;		/* by a quick way */
	int64		changed;		/* by deciding */
} Attempt;

static void
make_attempt(void *arg)
{
	Attempt    *attempt = arg;
	BbfWalk    *walk = attempt->walk;

	if (attempt->sql == NULL)
	{
		attempt->changed = decide(walk, attempt->locked);
		return;
	}
	bbf_settle_kept_statement(walk->job, attempt->sql, attempt->nargs, attempt->types, attempt->values,
							  attempt->nulls, walk->mode->write_code);
	attempt->written = take_rows(walk->pair);
}

/* Try something.  False: somebody holds a row, and nothing is done. */
static bool
try_unless_locked(Attempt *attempt)
{
	ErrorData  *error = bbf_txn_try(make_attempt, attempt);

	if (error && error->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE)
		ReThrowError(error);
	if (error)
		bbf_txn_disarm();
	return error == NULL;
}

/* A quick way's statement, which waits for a few milliseconds only. */
static bool
write_quickly(BbfWalk *walk, const char *sql, int nargs, Oid *types, Datum *values, const char *nulls, RowSet *written)
{
	Attempt		attempt = {.walk = walk, .sql = sql, .nargs = nargs, .types = types, .values = values, .nulls = nulls};

	bbf_txn_lock_timeout(WRITE_WAIT_MS);
	if (!try_unless_locked(&attempt))
		return false;
	*written = attempt.written;
	return true;
}

/* The quick way for candidates. */
static bool
write_at_once(BbfWalk *walk, const RowSet *candidates, RowSet *written)
{
	char	   *sql = walk->mode->write_at_once(walk->job, walk->pair, walk->sweep);
	Oid			types[] = {TIDARRAYOID};
	Datum		values[] = {tid_array(candidates)};

	return sql && write_quickly(walk, sql, 1, types, values, NULL, written);
}

/*
 * Look at what was written at once, now that it is locked.  The writing may have
 * fired the owner's triggers, which may have changed his session: make it ours
 * again.
 */
static int64
put_right(BbfWalk *walk, const RowSet *written)
{
	Oid			types[] = {TIDARRAYOID};
	Datum		values[] = {tid_array(written)};

	bbf_session_harden();
	return (int64) bbf_settle_kept_statement(walk->job, walk->mode->put_right(walk->job, walk->pair),
											 1, types, values, NULL, walk->mode->right_code);
}

/*
 * Would a fresh look show what the writing saw?  So it does if no transaction has
 * ended since before that, however many are under way: the locks that we have
 * now would make no difference to what is decided.  But a trigger of the owner's
 * may have written in our own transaction, and so may a function of a condition,
 * or look at what it should not.
 */
static bool
nothing_happened(const BbfWalk *walk, const BbfVisible *before)
{
	const BbfJob *job = walk->job;

	return bbf_txn_same_visible(before) &&
		(job->pending_where == NULL || bbf_expr_simple(job->pending_where, walk->pair->source, job->source_was)) &&
		(job->match_where == NULL || bbf_expr_simple(job->match_where, walk->pair->target, job->target_was)) &&
		bbf_shape_write_is_plain(bbf_object_find(job, BBF_SIDECAR),
								 TRIGGER_TYPE_INSERT);
}

/*
 * The quickest way, where a mode has it: read the next keys and what they lack in
 * one go, and write that.  False: that is not possible, or somebody holds a row, and
 * nothing is done.  rows: how many were read; end: the last key as text, that of the
 * walk's end if there were fewer than size.
 */
bool
bbf_settle_window(BbfWalk *walk, int32 size, int64 *rows, char **end, int64 *changed)
{
	BbfVisible *before = bbf_txn_visible();
	Oid			types[] = {get_array_type(walk->pair->key_type)};
	Datum		values[1];
	BbfWindow	window = {.size = size};
	RowSet		written = {0};

	if (walk->mode->write_lacking == NULL || !bbf_window_read(walk, &window))
		return false;
	if (window.nlacking > 0)
	{
		bool		done;

		values[0] = key_array(walk->pair, &window);
		/* key by key, each row written as it is found */
		bbf_session_set("enable_bitmapscan", "off");
		bbf_session_set("enable_sort", "off");
		done = write_quickly(walk, walk->mode->write_lacking(walk->job, walk->pair), 1, types, values, NULL, &written);
		bbf_session_set("enable_bitmapscan", "on");
		bbf_session_set("enable_sort", "on");
		if (!done)
			return false;
	}
	limit_waits(walk->job);
	*changed = (int64) written.n;
	if (written.n > 0 && !nothing_happened(walk, before))
		*changed -= put_right(walk, &written);
	*rows = window.rows;
	*end = window.rows == size ? bbf_pair_key_out(walk->pair, window.end) : walk->job->high_mark;
	return true;
}

/*
 * Statement 3, where deciding may have to wait for somebody who holds a key of the
 * mode's table without holding its source row: then none of them is done.
 */
static bool
decide_or_leave(BbfWalk *walk, const RowSet *locked, int64 *changed)
{
	Attempt		attempt = {.walk = walk, .locked = locked};

	if (walk->mode->table == NULL)
		make_attempt(&attempt);
	else if (!try_unless_locked(&attempt))
		return false;
	*changed = attempt.changed;
	return true;
}

/* Settle the candidates of a range; returns how many rows have changed. */
static int64
settle_candidates(BbfWalk *walk, const RowSet *candidates)
{
	RowSet		done = {0};
	int64		changed = 0;

	if (write_at_once(walk, candidates, &done))
	{
		limit_waits(walk->job);
		if (done.n > 0)
			changed = (int64) done.n - put_right(walk, &done);
	}
	else
	{
		bbf_txn_lock_timeout(bbf_job_setting(walk->job, BBF_LOCK_TIMEOUT));
		done = lock_candidates(walk, candidates);
		limit_waits(walk->job);
		if (done.n > 0 && !decide_or_leave(walk, &done, &changed))
			done.n = 0;
	}
	if (done.n < candidates->n)
		remember_skipped(walk->job, candidates, &done);
	return changed;
}

/* Search a range and settle what is found; returns how many rows have changed. */
int64
bbf_settle_range(BbfWalk *walk)
{
	RowSet		candidates = find_candidates(walk);

	return candidates.n > 0 ? settle_candidates(walk, &candidates) : 0;
}

/*
 * Settle one row; wait: wait for its lock as long as lock_timeout allows.  False:
 * it was not to be had.
 */
bool
bbf_settle_row(BbfWalk *walk, const char *key, bool wait, int64 *changed)
{
	Oid			types[] = {walk->pair->key_type};
	Datum		values[] = {bbf_pair_key_in(walk->pair, key)};
	RowSet		locked;

	bbf_txn_lock_timeout(bbf_job_setting(walk->job, BBF_LOCK_TIMEOUT));
	bbf_settle_statement(walk->job,
						 psprintf("%s%s", walk->mode->lock(walk->job, walk->pair, true), wait ? "" : " SKIP LOCKED"),
						 1, types, values, NULL, SPI_OK_SELECT);
	locked = take_rows(walk->pair);
	if (locked.n == 0 && !wait)
		return false;
	limit_waits(walk->job);
	*changed = locked.n > 0 ? decide(walk, &locked) : 0;
	return true;
}
