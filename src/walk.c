/*
 * walk.c
 *		Walking a source in key order, a batch at a time: what phases fill and
 *		verify have in common.
 *
 * A walk goes from the lowest key to the high mark, which is the highest key at
 * its beginning: rows with a higher key came with the triggers in place.  Each
 * batch is one transaction over one key range, and ends by committing the
 * range's end as the job's cursor, together with what it did.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "portability/instr_time.h"
#include "prune.h"
#include "session.h"
#include "settle.h"
#include "shape.h"
#include "throttle.h"
#include "txn.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "walk.h"
#include "watermark.h"

static BbfWalk *
make_walk(BbfJob *job, bool sweep)
{
	BbfWalk	   *walk = palloc0(sizeof(BbfWalk));

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

/* Begin the walk.  False if the source is empty. */
static bool
begin(BbfWalk *walk)
{
	const BbfPair *pair = walk->pair;
	char	   *high;

	bbf_watermark_begin_walk(walk->job);	/* the mark first: the walk reaches it */
	bbf_settle_statement(walk->job,
						 psprintf("SELECT s.%s FROM ONLY %s s ORDER BY s.%s USING %s LIMIT 1",
								  pair->source_key, pair->source_sql, pair->source_key,
								  pair->key_op[BTGreaterStrategyNumber]),
						 0, NULL, NULL, NULL, SPI_OK_SELECT);
	high = bbf_settle_first_key(pair);
	bbf_job_begin_walk(walk->job, high, (int64) bbf_shape_estimate_rows(pair->source));
	return high != NULL;
}

/*
 * Find the end of the next range and count its rows.  The range's end is a key
 * that is there, or the high mark.
 */
static int64
next_range(BbfWalk *walk, int32 size, char **end)
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

	/* in the index's order, whatever part of the table a plan for any values expects */
	bbf_session_set("enable_bitmapscan", "off");
	bbf_session_set("enable_sort", "off");
	bbf_settle_kept_statement(walk->job,
							  psprintf("SELECT s.%s %s ORDER BY s.%s USING %s OFFSET $2 LIMIT 1", pair->source_key,
									   from, pair->source_key, pair->key_op[BTLessStrategyNumber]),
							  walk->bounded ? 3 : 2, types, values, NULL, SPI_OK_SELECT);
	bbf_session_set("enable_bitmapscan", "on");
	bbf_session_set("enable_sort", "on");
	*end = bbf_settle_first_key(pair);
	if (*end != NULL)
	{
		walk->high = bbf_pair_key_in(pair, *end);
		return size;
	}
	*end = walk->job->high_mark;
	walk->high = values[0];
	bbf_settle_statement(walk->job, psprintf("SELECT pg_catalog.count(*) %s AND $2 IS NOT NULL", from),
						 walk->bounded ? 3 : 2, types, values, NULL, SPI_OK_SELECT);
	rows = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &(bool) {false}));
	SPI_freetuptable(SPI_tuptable);
	return rows;
}

/*
 * In a sweep, the other direction: the rows of a table of pending keys that
 * should not be there.  The last range has no end, so that no key is left out.
 */
static int64
prune_range(BbfWalk *walk, bool last)
{
	int64		pruned;

	bbf_txn_arm(bbf_job_setting(walk->job, BBF_STATEMENT_TIMEOUT));
	pruned = bbf_prune_range(walk->job, walk->pair, walk->bounded ? &walk->low : NULL,
							 last ? NULL : &walk->high);
	bbf_txn_disarm();
	return pruned;
}

/* In a sweep: how many rows of the range are eligible, and how many of them pending. */
static void
count_range(BbfWalk *walk, BbfBatch *batch)
{
	const BbfPair *pair = walk->pair;
	char	   *key = psprintf("s.%s", pair->source_key);
	char	   *range = bbf_mode_range(key, pair->key_op, walk->bounded);
	Oid			types[] = {pair->key_type, pair->key_type};
	Datum		values[] = {walk->low, walk->high};
	bool		isnull;

	bbf_settle_statement(walk->job,
						 psprintf("SELECT (SELECT pg_catalog.count(*) FROM ONLY %s s WHERE %s%s%s),"
								  " (SELECT pg_catalog.count(*) %s AND %s)",
								  pair->source_sql, range, pair->pending_where ? " AND " : "",
								  pair->pending_where ? pair->pending_where : "",
								  walk->mode->queue_from(walk->job, pair), range),
						 2, types, values, walk->bounded ? NULL : "n ", SPI_OK_SELECT);
	batch->eligible = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	batch->pending = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
	SPI_freetuptable(SPI_tuptable);
}

/*
 * One batch, in the transaction that the caller began and will commit.  sweep:
 * compare in both directions.
 */
BbfWalkStep
bbf_walk_batch(BbfJob *job, bool sweep)
{
	BbfWalk	   *walk = make_walk(job, sweep);
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
	if (sweep || !bbf_settle_window(walk, size, &batch.rows, &range_end, &batch.changed))
	{
		batch.rows = next_range(walk, size, &range_end);
		batch.changed = bbf_settle_range(walk);
	}
	if (sweep)
		bbf_session_harden();	/* the owner's triggers may have changed it */
	if (sweep && walk->mode->stale)
		batch.changed += prune_range(walk, strcmp(range_end, job->high_mark) == 0);
	if (sweep)
		count_range(walk, &batch);
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
	BbfWalk	   *walk;
	int32		size = bbf_throttle_batch_size(job);
	int64		rows;
	int64		changed;
	char	   *range_end;

	*pass = *job;
	pass->cursor = cursor ? pstrdup(cursor) : NULL;
	pass->high_mark = pstrdup(end);
	walk = make_walk(pass, true);
	if (!bbf_settle_window(walk, size, &rows, &range_end, &changed))
	{
		(void) next_range(walk, size, &range_end);
		(void) bbf_settle_range(walk);
	}
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
	BbfWalk    *walk;
	BbfBatch	batch = {0};

	if (key == NULL)
		return false;
	walk = make_walk(job, sweep);
	if (!bbf_settle_row(walk, key, wait, &batch.changed))
		return true;			/* still locked, or gone: who waits will know */
	bbf_job_unskip(job, key);
	batch.next_size = job->batch_size;
	bbf_job_save_batch(job, &batch, sweep);
	return true;
}
