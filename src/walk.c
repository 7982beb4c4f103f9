/*
 * walk.c
 *		Walking a source in key order, a batch at a time: what phases fill and
 *		verify have in common.
 *
 * A walk goes from the lowest key to the high mark, which is the highest key at
 * its beginning: rows with a higher key came with the triggers in place.  Each
 * batch is one transaction over one key range, and ends by committing the
 * range's end as the job's cursor, together with what it did.
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

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "mode.h"
#include "portability/instr_time.h"
#include "prune.h"
#include "shape.h"
#include "storage/itemptr.h"
#include "storage/proc.h"
#include "throttle.h"
#include "session.h"
#include "txn.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"
#include "walk.h"
#include "watermark.h"

/* how long the quick way may wait for a lock while it holds others */
#define WRITE_WAIT_MS 10

/* rows found by a statement that returns (ctid, key) */
typedef struct RowSet
{
	uint64		n;
	Datum	   *tids;
	char	  **keys;			/* as text */
} RowSet;

/* what the statements of a batch share */
typedef struct Walk
{
	BbfJob	   *job;
	BbfPair    *pair;
	const BbfMode *mode;
	bool		sweep;
	Datum		low;			/* cursor; only if bounded */
	bool		bounded;
	Datum		high;
} Walk;

static Walk *
make_walk(BbfJob *job, bool sweep)
{
	Walk	   *walk = palloc0(sizeof(Walk));

	walk->job = job;
	walk->sweep = sweep;
	walk->pair = bbf_pair_load(job);
	walk->mode = bbf_mode_lookup(job->mode);
	if (job->cursor)
	{
		walk->low = bbf_pair_key_in(walk->pair, job->cursor);
		walk->bounded = true;
	}
	return walk;
}

/* One statement of a batch, under the job's statement_timeout. */
static uint64
statement(const BbfJob *job, const char *sql, int nargs, Oid *types, Datum *values,
		  const char *nulls, int expected)
{
	uint64		processed;

	bbf_txn_arm(bbf_job_setting(job, BBF_STATEMENT_TIMEOUT));
	processed = bbf_txn_sql(sql, nargs, types, values, nulls, expected);
	bbf_txn_disarm();
	return processed;
}

/* A single key that a statement returned, as text; NULL if it returned none. */
static char *
first_key(const BbfPair *pair)
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

/* Begin the walk.  False if the source is empty. */
static bool
begin(Walk *walk)
{
	const BbfPair *pair = walk->pair;
	char	   *high;

	statement(walk->job,
			  psprintf("SELECT s.%s FROM ONLY %s s ORDER BY s.%s USING %s LIMIT 1",
					   pair->source_key, pair->source_sql, pair->source_key,
					   pair->key_op[BTGreaterStrategyNumber]),
			  0, NULL, NULL, NULL, SPI_OK_SELECT);
	high = first_key(pair);
	bbf_job_begin_walk(walk->job, high, (int64) bbf_shape_estimate_rows(pair->source));
	bbf_watermark_begin_walk(walk->job);
	return high != NULL;
}

/*
 * Find the end of the next range and count its rows.  The range's end is a key
 * that is there, or the high mark.
 */
static int64
next_range(Walk *walk, int32 size, char **end)
{
	const BbfPair *pair = walk->pair;
	char	   *from = psprintf("FROM ONLY %s s WHERE s.%s %s $1%s", pair->source_sql,
								pair->source_key, pair->key_op[BTLessEqualStrategyNumber],
								walk->bounded ?
								psprintf(" AND s.%s %s $3", pair->source_key,
										 pair->key_op[BTGreaterStrategyNumber]) : "");
	Oid			types[] = {pair->key_type, INT8OID, pair->key_type};
	Datum		values[] = {bbf_pair_key_in(pair, walk->job->high_mark), Int64GetDatum(size - 1), walk->low};
	int64		rows;

	statement(walk->job,
			  psprintf("SELECT s.%s %s ORDER BY s.%s USING %s OFFSET $2 LIMIT 1", pair->source_key,
					   from, pair->source_key, pair->key_op[BTLessStrategyNumber]),
			  walk->bounded ? 3 : 2, types, values, NULL, SPI_OK_SELECT);
	*end = first_key(pair);
	if (*end != NULL)
	{
		walk->high = bbf_pair_key_in(pair, *end);
		return size;
	}
	*end = walk->job->high_mark;
	walk->high = values[0];
	statement(walk->job, psprintf("SELECT pg_catalog.count(*) %s AND $2 IS NOT NULL", from),
			  walk->bounded ? 3 : 2, types, values, NULL, SPI_OK_SELECT);
	rows = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &(bool) {false}));
	SPI_freetuptable(SPI_tuptable);
	return rows;
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
find_candidates(Walk *walk)
{
	Oid			types[] = {walk->pair->key_type, walk->pair->key_type};
	Datum		values[] = {walk->low, walk->high};
	RowSet		set;

	bbf_session_set("enable_nestloop", "off");
	statement(walk->job,
			  walk->mode->candidates(walk->job, walk->pair, walk->sweep, walk->bounded),
			  2, types, values, walk->bounded ? NULL : "n ", SPI_OK_SELECT);
	set = take_rows(walk->pair);
	bbf_session_set("enable_nestloop", "on");
	return set;
}

/* Statement 2. */
static RowSet
lock_candidates(Walk *walk, const RowSet *candidates)
{
	Oid			types[] = {TIDARRAYOID};
	Datum		values[] = {tid_array(candidates)};

	statement(walk->job, walk->mode->lock(walk->job, walk->pair, false),
			  1, types, values, NULL, SPI_OK_SELECT);
	return take_rows(walk->pair);
}

/* From here on rows are locked. */
static void
limit_waits(const BbfJob *job)
{
	int			timeout = bbf_job_setting(job, BBF_LOCK_TIMEOUT);

	bbf_txn_lock_timeout(Max(Min(timeout, DeadlockTimeout / 2), 1));
}

/* The table that the mode writes to. */
static const char *
written_table(Walk *walk)
{
	return walk->mode->table ? walk->mode->table(walk->job, walk->pair) : walk->pair->source_sql;
}

/*
 * Statement 3.  Returns how many rows were written.  A trigger that suppresses
 * our write would make every sweep find the same rows: say so.
 */
static int64
decide(Walk *walk, const RowSet *locked)
{
	Oid			types[] = {TIDARRAYOID};
	Datum		values[] = {tid_array(locked)};
	uint64		written;
	char	   *key;

	written = statement(walk->job, walk->mode->decide(walk->job, walk->pair),
						1, types, values, NULL, walk->mode->decide_code);
	if (written >= locked->n)
		return written;
	statement(walk->job, walk->mode->undecided(walk->job, walk->pair),
			  1, types, values, NULL, SPI_OK_SELECT);
	key = first_key(walk->pair);
	if (key)
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
				 errmsg("a write to table %s was suppressed", written_table(walk)),
				 errdetail("The row with key %s was not written.", key),
				 errhint("Look for a BEFORE trigger that returns NULL.")));
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

/*
 * A quick way's statement, in a subtransaction of its own.  False: somebody holds
 * a row, and nothing is done.
 */
static bool
write_quickly(Walk *walk, const char *sql, int nargs, Oid *types, Datum *values, const char *nulls, RowSet *written)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool done = true;

	bbf_txn_lock_timeout(WRITE_WAIT_MS);
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		statement(walk->job, sql, nargs, types, values, nulls, walk->mode->write_code);
		*written = take_rows(walk->pair);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		if (edata->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE)
			PG_RE_THROW();
		FlushErrorState();
		bbf_txn_disarm();
		RollbackAndReleaseCurrentSubTransaction();
		done = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return done;
}

/* The quick way for candidates. */
static bool
write_at_once(Walk *walk, const RowSet *candidates, RowSet *written)
{
	char	   *sql = walk->mode->write_at_once(walk->job, walk->pair, walk->sweep);
	Oid			types[] = {TIDARRAYOID};
	Datum		values[] = {tid_array(candidates)};

	return sql && write_quickly(walk, sql, 1, types, values, NULL, written);
}

/*
 * Look at what was written at once, now that it is locked; unless nobody has
 * committed anything since the search for it began (before).  The writing may have
 * fired the owner's triggers, which may have changed his session: make it ours
 * again.
 */
static int64
put_right(Walk *walk, const RowSet *written, const BbfMoment *before)
{
	Oid			types[] = {TIDARRAYOID};
	Datum		values[] = {tid_array(written)};

	if (bbf_txn_unchanged_since(before))
		return 0;
	bbf_session_harden();
	return (int64) statement(walk->job, walk->mode->put_right(walk->job, walk->pair),
							 1, types, values, NULL, walk->mode->right_code);
}

/*
 * The quickest way, where a mode has it: a whole range in one statement.  False:
 * somebody holds a row, and nothing is done.
 */
static bool
write_range(Walk *walk, int64 *changed)
{
	Oid			types[] = {walk->pair->key_type, walk->pair->key_type};
	Datum		values[] = {walk->low, walk->high};
	BbfMoment  *before = bbf_txn_moment();
	RowSet		written = {0};
	bool		done;

	if (walk->mode->write_range == NULL)
		return false;
	bbf_session_set("enable_nestloop", "off");	/* but where nothing else is possible */
	done = write_quickly(walk, walk->mode->write_range(walk->job, walk->pair, walk->bounded),
						 2, types, values, walk->bounded ? NULL : "n ", &written);
	bbf_session_set("enable_nestloop", "on");
	if (!done)
		return false;
	limit_waits(walk->job);
	*changed = written.n > 0 ? (int64) written.n - put_right(walk, &written, before) : 0;
	return true;
}

/*
 * Settle the candidates of a range; returns how many rows have changed.  before:
 * when the search for them began.
 */
static int64
settle_candidates(Walk *walk, const RowSet *candidates, const BbfMoment *before)
{
	RowSet		done = {0};
	int64		changed = 0;

	if (write_at_once(walk, candidates, &done))
	{
		limit_waits(walk->job);
		if (done.n > 0)
			changed = (int64) done.n - put_right(walk, &done, before);
	}
	else
	{
		bbf_txn_lock_timeout(bbf_job_setting(walk->job, BBF_LOCK_TIMEOUT));
		done = lock_candidates(walk, candidates);
		limit_waits(walk->job);
		if (done.n > 0)
			changed = decide(walk, &done);
	}
	if (done.n < candidates->n)
		remember_skipped(walk->job, candidates, &done);
	return changed;
}

/* Search a range and settle what is found; returns how many rows have changed. */
static int64
settle_range(Walk *walk)
{
	BbfMoment  *before = bbf_txn_moment();
	RowSet		candidates = find_candidates(walk);

	return candidates.n > 0 ? settle_candidates(walk, &candidates, before) : 0;
}

/*
 * In a sweep, the other direction: the rows of a table of pending keys that
 * should not be there.  The last range has no end, so that no key is left out.
 */
static int64
prune_range(Walk *walk, bool last)
{
	int64		pruned;

	bbf_txn_arm(bbf_job_setting(walk->job, BBF_STATEMENT_TIMEOUT));
	pruned = bbf_prune_range(walk->job, walk->pair, walk->bounded ? &walk->low : NULL,
							 last ? NULL : &walk->high);
	bbf_txn_disarm();
	return pruned;
}

/*
 * One batch, in the transaction that the caller began and will commit.  sweep:
 * compare in both directions.
 */
BbfWalkStep
bbf_walk_batch(BbfJob *job, bool sweep)
{
	Walk	   *walk = make_walk(job, sweep);
	BbfBatch	batch = {0};
	int32		size = bbf_throttle_batch_size(job);
	instr_time	start;
	instr_time	end;
	char	   *range_end;

	if (job->high_mark == NULL && begin(walk))
		return BBF_WALK_MORE;
	if (job->high_mark == NULL)
	{
		/* the source is empty, and so should the table of pending keys be */
		if (sweep && walk->mode->stale)
			prune_range(walk, true);
		return BBF_WALK_DONE;
	}
	if (job->cursor && strcmp(job->cursor, job->high_mark) == 0)
		return bbf_job_next_skipped(job) ? BBF_WALK_SKIPPED : BBF_WALK_DONE;

	INSTR_TIME_SET_CURRENT(start);
	batch.rows = next_range(walk, size, &range_end);
	if (sweep || !write_range(walk, &batch.changed))
		batch.changed = settle_range(walk);
	if (sweep && walk->mode->stale)
		batch.changed += prune_range(walk, strcmp(range_end, job->high_mark) == 0);
	INSTR_TIME_SET_CURRENT(end);
	INSTR_TIME_SUBTRACT(end, start);
	batch.cursor = range_end;
	batch.ms = INSTR_TIME_GET_MILLISEC(end);
	batch.next_size = bbf_throttle_grown_size(job, size);
	bbf_job_save_batch(job, &batch, sweep);
	job->batch_at = GetCurrentTimestamp();
	return BBF_WALK_MORE;
}

/*
 * One batch of a pass over the keys above cursor (NULL: from the beginning) up to
 * end; returns the key that it came to.  Nothing of it is counted as the job's walk.
 */
char *
bbf_walk_pass_batch(BbfJob *job, const char *cursor, const char *end)
{
	BbfJob	   *pass = palloc(sizeof(BbfJob));
	Walk	   *walk;
	char	   *range_end;
	int64		changed;

	*pass = *job;
	pass->cursor = cursor ? pstrdup(cursor) : NULL;
	pass->high_mark = pstrdup(end);
	walk = make_walk(pass, true);
	(void) next_range(walk, bbf_throttle_batch_size(job), &range_end);
	if (!write_range(walk, &changed))
		(void) settle_range(walk);
	return range_end;
}

/*
 * Do one row that a batch had to skip, in the transaction that the caller began
 * and will commit.  wait: wait for its lock as long as lock_timeout allows; we
 * hold nothing else meanwhile.  Returns false if no row is left.
 */
bool
bbf_walk_skipped(BbfJob *job, bool sweep, bool wait)
{
	char	   *key = bbf_job_next_skipped(job);
	Walk	   *walk;
	RowSet		locked;
	BbfBatch	batch = {0};
	Oid			types[1];
	Datum		values[1];

	if (key == NULL)
		return false;
	walk = make_walk(job, sweep);
	types[0] = walk->pair->key_type;
	values[0] = bbf_pair_key_in(walk->pair, key);
	bbf_txn_lock_timeout(bbf_job_setting(job, BBF_LOCK_TIMEOUT));
	statement(job, psprintf("%s%s", walk->mode->lock(job, walk->pair, true), wait ? "" : " SKIP LOCKED"),
			  1, types, values, NULL, SPI_OK_SELECT);
	locked = take_rows(walk->pair);
	if (locked.n == 0 && !wait)
		return true;			/* still locked, or gone: who waits will know */
	limit_waits(job);
	if (locked.n > 0)
		batch.changed = decide(walk, &locked);
	bbf_job_unskip(job, key);
	batch.next_size = job->batch_size;
	bbf_job_save_batch(job, &batch, sweep);
	return true;
}
