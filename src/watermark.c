/*
 * watermark.c
 *		The passes over the newest keys of a source that has no triggers.
 *
 * Before each pending scan a pass looks at all keys above the watermark, and at
 * a window of so many below it (the setting lookback), and adds what is pending.
 * It is a walk of its own, in batches, and may take longer than a scan interval.
 *
 * R10, R19: when may the watermark rise?  Keys are handed out before they commit, so
 * the highest key that can be seen says nothing about those below it.  A mark is
 * the highest key that a snapshot sees, together with the next transaction id, read
 * after that snapshot was taken: every transaction that had one by then, and so all
 * that had written anything, has a lower one.  (The snapshot's own end, xmax, would
 * not do: it is the newest transaction that has ended + 1, and a newer one may be
 * writing.)  An id is in the list of running transactions before the next one can
 * be read, and stays there until its transaction has ended, prepared ones
 * included; a subtransaction's parent has a lower id and is in that list.  Once a later
 * snapshot's beginning (xmin, the lowest running id) has come to the mark's id, all
 * of those have ended, and what they have left is visible.  So a pass that begins
 * after that sees every row up to the mark whose transaction had begun to write when
 * the mark was taken; when it is done, the watermark rises to the mark.  While nobody
 * writes, that is the same pass; else the next one, or the first one after the
 * oldest writer has ended.  It never passes a row whose transaction is open.
 *
 * What this cannot know is a transaction that had drawn its key, but not begun to
 * write: it has no id, for drawing a key is no write (nextval() takes an id only
 * where it logs, once in 32 calls, and a cached range asks nobody).  That is
 * one between nextval() and INSERT, be it for a moment in one statement, a session
 * that serves keys out of a cached range of a sequence, an application that makes up
 * keys.  Those keys come late.  The window finds them as long as no more rows than
 * that have come after them; the sweep finds the rest.
 *
 * The marks are taken at the beginning of the fill as well, and used when phase
 * verify, which looks at all keys, is done.  A job that moves here from another mode
 * has a table that triggers kept until then, and begins with the highest key of then.
 *
 * A TRUNCATE, which no trigger tells us of, gives its table another file: so do
 * VACUUM FULL and the like; either asks for a sweep.
 */
#include "postgres.h"

#include "access/transam.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "mode.h"
#include "sql.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "walk.h"
#include "watermark.h"

/* The key that a statement gave first, as text; NULL if there is none. */
static char *
result_key(const BbfPair *pair, uint64 rows)
{
	bool		isnull;

	return rows > 0 ? bbf_pair_key_out(pair, SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull)) : NULL;
}

/*
 * Set columns of the job's state to up to three texts, $3 to $5, unless the job
 * has been put back meanwhile.
 */
static void
update_state(const BbfJob *job, const char *assignments, const char *a, const char *b, const char *c)
{
	Oid			types[] = {TEXTOID, INT8OID, TEXTOID, TEXTOID, TEXTOID};
	Datum		values[] = {CStringGetTextDatum(job->name), Int64GetDatum(job->generation),
		a ? CStringGetTextDatum(a) : (Datum) 0, b ? CStringGetTextDatum(b) : (Datum) 0,
	c ? CStringGetTextDatum(c) : (Datum) 0};
	char		nulls[] = {' ', ' ', a ? ' ' : 'n', b ? ' ' : 'n', c ? ' ' : 'n', '\0'};

	bbf_sql_catalog(psprintf("UPDATE bgw_backfill.job_state SET %s WHERE job OPERATOR(pg_catalog.=) $1"
							 " AND generation OPERATOR(pg_catalog.=) $2",
							 assignments),
					5, types, values, nulls, SPI_OK_UPDATE);
}

/* Have all transactions ended whose id is lower? */
static bool
is_ripe(const char *xid)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(xid)};
	bool		ripe;

	ripe = bbf_sql_run("SELECT 1 WHERE pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())"
					   " OPERATOR(pg_catalog.>=) $1::pg_catalog.xid8",
					   1, types, values, NULL, SPI_OK_SELECT) > 0;
	SPI_freetuptable(SPI_tuptable);
	return ripe;
}

/* The highest key that can be seen; NULL: there is none. */
char *
bbf_watermark_highest(const BbfPair *pair)
{
	char	   *key = result_key(pair, bbf_sql_run(psprintf("SELECT s.%s FROM ONLY %s s ORDER BY s.%s USING %s LIMIT 1",
															pair->source_key, pair->source_sql, pair->source_key,
															pair->key_op[BTGreaterStrategyNumber]),
												   0, NULL, NULL, NULL, SPI_OK_SELECT));

	SPI_freetuptable(SPI_tuptable);
	return key;
}

/*
 * The mark to which the watermark may rise once everything up to it has been
 * looked at, beginning now; NULL if there is none yet.  Takes a new mark when
 * there is none, or when the last one is ripe already.
 */
static char *
take_mark(BbfJob *job, const BbfPair *pair)
{
	char	   *ripe = job->next_mark && is_ripe(job->next_mark_xid) ? job->next_mark : NULL;
	char	   *mark;

	if (job->next_mark && ripe == NULL)
		return NULL;
	mark = bbf_watermark_highest(pair);
	if (mark == NULL)
		return ripe;
	job->next_mark = mark;
	job->next_mark_xid = psprintf(UINT64_FORMAT, U64FromFullTransactionId(ReadNextFullTransactionId()));
	update_state(job, "next_mark = $3, next_mark_xid = $4", job->next_mark, job->next_mark_xid, NULL);
	return is_ripe(job->next_mark_xid) ? job->next_mark : ripe;
}

/* The watermark rises. */
static void
rise(BbfJob *job, const char *mark)
{
	if (mark == NULL)
		return;
	update_state(job, "watermark = $3", mark, NULL, NULL);
	job->watermark = pstrdup(mark);
}

/* A walk over all keys begins: of the fill, or of phase verify. */
void
bbf_watermark_begin_walk(BbfJob *job)
{
	if (!bbf_mode_lookup(job->mode)->passes || job->phase == BBF_PHASE_LIVE)
		return;
	job->pass_mark = take_mark(job, bbf_pair_load(job));
	update_state(job, "pass_mark = $3, pass_cursor = NULL, pass_end = NULL", job->pass_mark, NULL, NULL);
}

/* The walk of phase verify is done. */
void
bbf_watermark_end_walk(BbfJob *job)
{
	if (!bbf_mode_lookup(job->mode)->passes || job->phase != BBF_PHASE_VERIFY)
		return;
	rise(job, job->pass_mark);
}

/*
 * The job takes over a table that triggers have kept until now, when both tables are
 * locked against everybody.  The mark is the highest key that was seen before that:
 * whoever was about to write a lower one has ended, and the triggers have seen it.
 * NULL: there was none, or the job is in another mode.
 */
void
bbf_watermark_take_over(BbfJob *job, const char *mark)
{
	rise(job, mark);
}

/* Must a pass be made, or gone on with, before the next pending scan? */
bool
bbf_watermark_is_due(const BbfJob *job)
{
	return bbf_mode_lookup(job->mode)->passes &&
		(job->pass_end != NULL || job->pass_at == 0 || job->pass_at <= job->scan_at);
}

/* Has a table got another file since the last pass?  Then ask for a sweep. */
static void
look_for_truncate(BbfJob *job, const BbfPair *pair)
{
	Oid			types[] = {OIDOID, OIDOID};
	Datum		values[] = {ObjectIdGetDatum(pair->source), ObjectIdGetDatum(pair->target)};
	char	   *files;

	(void) bbf_sql_run("SELECT pg_catalog.concat_ws(' ', pg_catalog.pg_relation_filenode($1),"
					   " pg_catalog.pg_relation_filenode($2))",
					   2, types, values, NULL, SPI_OK_SELECT);
	files = bbf_sql_text(0, 1);
	SPI_freetuptable(SPI_tuptable);
	if (job->files && strcmp(job->files, files) == 0)
		return;
	update_state(job, "files = $3", files, NULL, NULL);
	if (job->files)
		bbf_job_ask_sweep(job->name);
}

/* The key that is so many rows below the watermark; NULL: the beginning. */
static char *
window_begin(const BbfJob *job, const BbfPair *pair)
{
	Oid			types[] = {pair->key_type, INT8OID};
	Datum		values[2];
	char	   *key;

	if (job->watermark == NULL)
		return NULL;
	values[0] = bbf_pair_key_in(pair, job->watermark);
	values[1] = Int64GetDatum(bbf_job_setting(job, BBF_LOOKBACK));
	key = result_key(pair, bbf_sql_run(psprintf("SELECT s.%s FROM ONLY %s s WHERE s.%s %s $1"
												" ORDER BY s.%s USING %s OFFSET $2 LIMIT 1",
												pair->source_key, pair->source_sql, pair->source_key,
												pair->key_op[BTLessEqualStrategyNumber], pair->source_key,
												pair->key_op[BTGreaterStrategyNumber]),
									   2, types, values, NULL, SPI_OK_SELECT));
	SPI_freetuptable(SPI_tuptable);
	return key;
}

/* Begin a pass.  False: there is no row to look at. */
static bool
begin_pass(BbfJob *job, const BbfPair *pair)
{
	job->pass_mark = take_mark(job, pair);	/* first: an id of our own holds a mark down as well */
	look_for_truncate(job, pair);
	job->pass_cursor = window_begin(job, pair);
	job->pass_end = bbf_watermark_highest(pair);
	update_state(job, "pass_mark = $3, pass_cursor = $4, pass_end = $5",
				 job->pass_mark, job->pass_cursor, job->pass_end);
	return job->pass_end != NULL;
}

/* A pass is done. */
static void
end_pass(BbfJob *job)
{
	rise(job, job->pass_mark);
	job->pass_end = NULL;
	job->pass_at = GetCurrentTimestamp();
	update_state(job, "pass_end = NULL, pass_cursor = NULL, pass_mark = NULL, pass_at = pg_catalog.clock_timestamp()",
				 NULL, NULL, NULL);
}

/* Begin a pass, or do its next batch, in the transaction that is open. */
void
bbf_watermark_step(BbfJob *job)
{
	BbfPair    *pair = bbf_pair_load(job);

	if (job->pass_end == NULL)
	{
		if (!begin_pass(job, pair))
			end_pass(job);
		return;
	}
	job->pass_cursor = bbf_walk_pass_batch(job, job->pass_cursor, job->pass_end);
	job->batch_at = GetCurrentTimestamp();
	if (strcmp(job->pass_cursor, job->pass_end) == 0)
		end_pass(job);
	else
		update_state(job, "pass_cursor = $3, batch_at = pg_catalog.clock_timestamp()",
					 job->pass_cursor, NULL, NULL);
}
