/*
 * prune.c
 *		Taking rows out of a table of pending keys that are not pending any more.
 *
 * R4: whoever takes a row out has locked it first, passing by what others hold,
 * and then, as a statement of its own with a snapshot taken after that, looks
 * whether it should not be there.  A pruner that locks and decides in one
 * statement decides by a snapshot from before the lock, and removes a row that
 * somebody has just confirmed.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "mode.h"
#include "prune.h"
#include "sql.h"
#include "txn.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "storage/itemptr.h"

/* The places that a statement returned, as an array; 0 if there are none. */
static Datum
take_places(uint64 n)
{
	Datum	   *tids = palloc(sizeof(Datum) * (n + 1));
	ArrayType  *result;

	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		Datum		tid = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull);

		tids[i] = datumCopy(tid, false, sizeof(ItemPointerData));
	}
	SPI_freetuptable(SPI_tuptable);
	if (n == 0)
		return (Datum) 0;
	result = construct_array(tids, (int) n, TIDOID, sizeof(ItemPointerData), false, TYPALIGN_SHORT);
	return PointerGetDatum(result);
}

static void
count_pruned(const BbfJob *job, int64 pruned)
{
	Oid			types[] = {TEXTOID, INT8OID};
	Datum		values[] = {CStringGetTextDatum(job->name), Int64GetDatum(pruned)};

	bbf_sql_catalog("UPDATE bgw_backfill.job_state SET stale_pruned = stale_pruned OPERATOR(pg_catalog.+) $2"
					" WHERE job OPERATOR(pg_catalog.=) $1",
					2, types, values, NULL, SPI_OK_UPDATE);
}

/*
 * Prune a range of keys, in the transaction that is open: those above low, up to
 * high; NULL: no bound.  Returns how many rows are gone.
 */
int64
bbf_prune_range(BbfJob *job, const BbfPair *pair, const Datum *low, const Datum *high)
{
	const BbfMode *mode = bbf_mode_lookup(job->mode);
	const char *table = mode->table(job, pair);
	const char *stale = mode->stale(job, pair);
	char	   *above = low ? psprintf(" AND d.%s %s $1", pair->source_key, pair->key_op[BTGreaterStrategyNumber]) : "";
	char	   *upto = high ? psprintf(" AND d.%s %s $2", pair->source_key, pair->key_op[BTLessEqualStrategyNumber]) : "";
	Oid			types[2] = {pair->key_type, pair->key_type};
	Datum		values[2] = {low ? *low : (Datum) 0, high ? *high : (Datum) 0};
	char		nulls[3] = {low ? ' ' : 'n', high ? ' ' : 'n', '\0'};
	Datum		places[1];
	int64		pruned;

	places[0] = take_places(bbf_sql_run(psprintf("SELECT d.ctid FROM ONLY %s d WHERE %s%s%s", table, stale, above, upto),
										2, types, values, nulls, SPI_OK_SELECT));
	if (places[0] == (Datum) 0)
		return 0;
	types[0] = TIDARRAYOID;
	places[0] = take_places(bbf_sql_run(psprintf("SELECT d.ctid FROM ONLY %s d WHERE d.ctid OPERATOR(pg_catalog.=) ANY ($1)"
												 " FOR UPDATE SKIP LOCKED", table),
										1, types, places, NULL, SPI_OK_SELECT));
	if (places[0] == (Datum) 0)
		return 0;
	pruned = (int64) bbf_sql_run(psprintf("DELETE FROM ONLY %s d WHERE d.ctid OPERATOR(pg_catalog.=) ANY ($1) AND %s",
										  table, stale),
								 1, types, places, NULL, SPI_OK_DELETE);
	if (pruned > 0)
		count_pruned(job, pruned);
	return pruned;
}

/* Where the next batch of pruning begins; NULL: at the start. */
static void
save_cursor(const BbfJob *job, const char *cursor)
{
	Oid			types[] = {TEXTOID, TEXTOID};
	Datum		values[] = {CStringGetTextDatum(job->name), cursor ? CStringGetTextDatum(cursor) : (Datum) 0};

	bbf_sql_catalog("UPDATE bgw_backfill.job_state SET prune_cursor = $2"
					" WHERE job OPERATOR(pg_catalog.=) $1 AND prune_cursor IS DISTINCT FROM $2",
					2, types, values, cursor ? NULL : " n", SPI_OK_UPDATE);
}

/*
 * One batch of pruning in phase live, in the transaction that is open: the next
 * rows of the table after those of the last batch, so many of them.  False: the end is reached,
 * and the next batch begins at the start.
 */
bool
bbf_prune_batch(BbfJob *job, int rows)
{
	const BbfMode *mode = bbf_mode_lookup(job->mode);
	BbfPair    *pair = bbf_pair_load(job);
	Oid			types[1] = {pair->key_type};
	Datum		low;
	Datum		high;
	bool		more;
	char	   *end = NULL;

	if (job->prune_cursor)
		low = bbf_pair_key_in(pair, job->prune_cursor);
	bbf_txn_arm(bbf_job_setting(job, BBF_STATEMENT_TIMEOUT));
	more = bbf_sql_run(psprintf("SELECT d.%s FROM ONLY %s d%s ORDER BY d.%s USING %s OFFSET %d LIMIT 1",
								pair->source_key, mode->table(job, pair),
								job->prune_cursor ?
								psprintf(" WHERE d.%s %s $1", pair->source_key, pair->key_op[BTGreaterStrategyNumber]) : "",
								pair->source_key, pair->key_op[BTLessStrategyNumber], rows - 1),
					   job->prune_cursor ? 1 : 0, types, &low, NULL, SPI_OK_SELECT) > 0;
	if (more)
	{
		bool		isnull;

		end = bbf_pair_key_out(pair, SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
		high = bbf_pair_key_in(pair, end);
	}
	SPI_freetuptable(SPI_tuptable);
	bbf_prune_range(job, pair, job->prune_cursor ? &low : NULL, more ? &high : NULL);
	bbf_txn_disarm();
	save_cursor(job, end);
	job->prune_cursor = end;
	return more;
}
