/*
 * mode_column.c
 *		Mode "column": the answer is a boolean on the source.
 *
 * The flag is true for every row that is there when the column is added, and
 * false for every row inserted from then on; it is never NULL.  The fill makes
 * it false where there is no match, which is the sparse side; from the moment
 * the triggers are there, each change of the target settles the flags of the
 * source rows that its keys point at.
 *
 * Who decides, and after which lock:
 *
 * Everybody who writes a flag first locks the source row, FOR NO KEY UPDATE (or
 * by writing it, to be put right before the commit: column_write_at_once()), and
 * then, as a statement of its own with a snapshot taken after the lock,
 * looks whether a match exists.  Two deciders for one row thus come one after
 * the other, and the later one sees what the earlier one's transaction did.
 *
 * R1, a target insert against a batch.  The insert's trigger always locks the
 * source row, whatever the flag says.  If the batch has the lock first, the
 * trigger waits for the batch's commit, looks, and sets true.  If the trigger
 * has it first, the batch's SKIP LOCKED passes the row by and remembers it; it
 * is done later, in a transaction that waits for the inserter.  If the target
 * row is written and its trigger has not run yet, the batch may set false: the
 * trigger comes after.  If the insert committed between the batch's candidate
 * search and its lock, the search's answer is old, but the decision's is not.
 *
 * An insert's trigger has short ways, which keep to this: see
 * column_target_settle_one().
 *
 * R2, a target delete against a batch: the same with false.  The batch can only
 * see the match as long as the delete is not committed, and the delete's
 * trigger locks the row before that.
 *
 * R3, several matches for a row, one deleted and another inserted: both
 * triggers lock the same source row, so the later one's snapshot shows what the
 * earlier transaction left.
 *
 * Without a foreign key that is validated and immediate a target row may be
 * there before its source row.  The source's trigger then looks for matches of
 * its new rows and locks them FOR KEY SHARE, so that they cannot go before the
 * flag says true (FOR SHARE where an update could end the match); a match that is not committed yet is not seen, and its own
 * trigger finds no source row either: that is the wrong "false" that invariant
 * 1 allows until the next sweep.
 */
#include "postgres.h"

#include "executor/spi.h"
#include "expr.h"
#include "mode_column.h"
#include "utils/builtins.h"

/*
 * The candidates of a key range.  The range stands on both sides of the join,
 * so a batch costs the same however large the tables are.  The fill of a column
 * of our own writes only where there is no match; a sweep, and the fill of an
 * adopted column, look in both directions in one pass.
 */
static char *
column_candidates(const BbfJob *job, const BbfPair *pair, bool sweep, bool bounded)
{
	char	   *skey = psprintf("s.%s", pair->source_key);
	char	   *mkey = psprintf("m.%s", pair->target_key);
	const char *eq = pair->target_key_op[BTEqualStrategyNumber];
	char	   *srange = bbf_mode_range(skey, pair->key_op, bounded);
	char	   *matches = psprintf("FROM ONLY %s m WHERE %s%s%s", pair->target_sql,
								   bbf_mode_range(mkey, pair->target_key_op, bounded),
								   pair->match_where ? " AND " : "",
								   pair->match_where ? pair->match_where : "");

	if (!sweep && job->flag_added)
		return psprintf("SELECT s.ctid, %s FROM ONLY %s s WHERE %s AND s.%s"
						" AND NOT EXISTS (SELECT %s AND %s %s %s)"
						" ORDER BY %s USING %s",
						skey, pair->source_sql, srange, bbf_column_flag(job),
						matches, mkey, eq, skey,
						skey, pair->key_op[BTLessStrategyNumber]);
	return psprintf("SELECT s.ctid, %s FROM ONLY %s s"
					" LEFT JOIN (SELECT %s%s AS k %s) t ON t.k %s %s"
					" WHERE %s AND s.%s IS DISTINCT FROM (t.k IS NOT NULL)"
					" ORDER BY %s USING %s",
					skey, pair->source_sql,
					pair->target_key_unique ? "" : "DISTINCT ", mkey, matches, eq, skey,
					srange, bbf_column_flag(job),
					skey, pair->key_op[BTLessStrategyNumber]);
}

/* Settle locked rows by place. */
static char *
column_decide(const BbfJob *job, const BbfPair *pair)
{
	char	   *match = bbf_pair_match(pair, "s");
	FormData_pg_attribute att;
	bool		never_null = bbf_column_flag_attribute(job, pair->source, &att) && att.attnotnull;

	return psprintf("UPDATE ONLY %s s SET %s = %s"
					" WHERE s.ctid OPERATOR(pg_catalog.=) ANY ($1) AND s.%s IS DISTINCT FROM %s",
					pair->source_sql, bbf_column_flag(job),
					never_null ? psprintf("NOT s.%s", bbf_column_flag(job)) : match,
					bbf_column_flag(job), match);
}

/* Rows that the update above should have written, and that are still there. */
static char *
column_undecided(const BbfJob *job, const BbfPair *pair)
{
	return psprintf("SELECT s.%s FROM ONLY %s s WHERE s.ctid OPERATOR(pg_catalog.=) ANY ($1)"
					" AND s.%s IS DISTINCT FROM %s LIMIT 1",
					pair->source_key, pair->source_sql, bbf_column_flag(job), bbf_pair_match(pair, "s"));
}

/*
 * The short ways for an insert into the target: true, without a look for a
 * match.  The match is the row just inserted, which nobody else can take away
 * before we commit, and trigger.c takes these ways only while this transaction
 * has removed none.
 *
 * Of one key: lock and write at once.  If it does not write (the flag was true
 * already, in the statement's snapshot or after a wait), the row is not settled
 * and the trigger goes the long way.  Of several keys that would lock the rows
 * that it writes before the others, out of key order (R9).
 */
static char *
column_target_settle_one(const BbfJob *job, const BbfPair *pair)
{
	if (pair->match_where)
		return NULL;			/* the row may be no match */
	return psprintf("UPDATE ONLY %s s SET %s = true WHERE s.%s %s $1 AND s.%s IS NOT TRUE",
					pair->source_sql, bbf_column_flag(job), pair->source_key, pair->source_eq_target,
					bbf_column_flag(job));
}

/*
 * Of several keys: if, without any lock, all of them have a row whose flag is not
 * true, then write all of them, in key order, whatever the flag is by then: true
 * is right for each, and only a row that somebody has just set is written in
 * vain.  If not, the trigger goes the long way, so as not to write rows that are
 * right.
 */
static char *
column_target_count_new(const BbfJob *job, const BbfPair *pair)
{
	if (pair->match_where)
		return NULL;
	return psprintf("SELECT pg_catalog.count(*) FROM ONLY %s s WHERE s.%s %s ANY ($1) AND s.%s IS NOT TRUE",
					pair->source_sql, pair->source_key, pair->source_eq_target, bbf_column_flag(job));
}

static char *
column_target_settle_new(const BbfJob *job, const BbfPair *pair)
{
	if (pair->match_where)
		return NULL;
	return psprintf("UPDATE ONLY %s s SET %s = true WHERE s.%s %s ANY ($1)",
					pair->source_sql, bbf_column_flag(job), pair->source_key, pair->source_eq_target);
}

/*
 * The quick way of the sparse fill: write false to all candidates, which locks
 * them, and then, with a snapshot taken after that, put right those that have got
 * a match.  Nobody sees the false in between.
 */
static char *
column_write_at_once(const BbfJob *job, const BbfPair *pair, bool sweep)
{
	if (sweep || !job->flag_added)
		return NULL;
	return psprintf("UPDATE ONLY %s s SET %s = false WHERE s.ctid OPERATOR(pg_catalog.=) ANY ($1)"
					" AND s.%s RETURNING s.ctid, s.%s",
					pair->source_sql, bbf_column_flag(job), bbf_column_flag(job), pair->source_key);
}

static char *
column_put_right(const BbfJob *job, const BbfPair *pair)
{
	return psprintf("UPDATE ONLY %s s SET %s = true WHERE s.ctid OPERATOR(pg_catalog.=) ANY ($1) AND %s",
					pair->source_sql, bbf_column_flag(job), bbf_pair_match(pair, "s"));
}

static char *
column_target_lock(const BbfJob *job, const BbfPair *pair)
{
	return psprintf("SELECT s.ctid FROM ONLY %s s WHERE s.%s %s ANY ($1)"
					" ORDER BY s.%s USING %s FOR NO KEY UPDATE",
					pair->source_sql, pair->source_key, pair->source_eq_target,
					pair->source_key, pair->key_op[BTLessStrategyNumber]);
}

/*
 * The matches of new source rows, held until the flag is committed.  Where an
 * update that is no key update can end a match (of a column of match_where, or
 * of a key that no unique index covers), the lock has to keep it out as well.
 */
static char *
column_source_lock_matches(const BbfJob *job, const BbfPair *pair)
{
	return psprintf("SELECT m.%s FROM ONLY %s m WHERE m.%s %s ANY ($1)%s%s"
					" ORDER BY m.%s %s",
					pair->target_key, pair->target_sql, pair->target_key,
					pair->target_key_op[BTEqualStrategyNumber],
					pair->match_where ? " AND " : "", pair->match_where ? pair->match_where : "",
					pair->target_key,
					pair->match_where || !pair->target_key_unique ? "FOR SHARE" : "FOR KEY SHARE");
}

/* $1: the source keys; $2: the target keys among them that are held. */
static char *
column_source_settle(const BbfJob *job, const BbfPair *pair)
{
	const char *op = pair->target_key_op[BTEqualStrategyNumber];
	char	   *held = psprintf("EXISTS (SELECT FROM pg_catalog.unnest($2) h (k) WHERE h.k %s s.%s)",
								op, pair->source_key);

	return psprintf("UPDATE ONLY %s s SET %s = %s WHERE s.%s %s ANY ($1) AND s.%s IS DISTINCT FROM %s",
					pair->source_sql, bbf_column_flag(job), held, pair->source_key,
					pair->key_op[BTEqualStrategyNumber], bbf_column_flag(job), held);
}

/* How an event's keys are settled: lock, then decide. */
static int
column_settle(const BbfJob *job, const BbfPair *pair, BbfEvent event, BbfStep *steps)
{
	switch (event)
	{
		case BBF_TARGET_INSERT:
		case BBF_TARGET_CHANGE:
			steps[0] = (BbfStep) {column_target_lock(job, pair), SPI_OK_SELECT, BBF_TAKES_KEYS, BBF_GIVES_ROWS};
			steps[1] = (BbfStep) {column_decide(job, pair), SPI_OK_UPDATE, BBF_TAKES_ROWS, BBF_GIVES_NOTHING};
			return 2;
		case BBF_SOURCE_INSERT:
		case BBF_SOURCE_UPDATE:
			steps[0] = (BbfStep) {column_source_lock_matches(job, pair), SPI_OK_SELECT, BBF_TAKES_KEYS, BBF_GIVES_HELD};
			steps[1] = (BbfStep) {column_source_settle(job, pair), SPI_OK_UPDATE, BBF_TAKES_KEYS_AND_HELD, BBF_GIVES_NOTHING};
			return 2;
		default:
			return 0;			/* a row that is gone takes its flag along */
	}
}

static char *
column_pending_from(const BbfJob *job, const BbfPair *pair)
{
	return psprintf("FROM ONLY %s s WHERE NOT s.%s%s%s", pair->source_sql, bbf_column_flag(job),
					pair->pending_where ? " AND " : "", pair->pending_where ? pair->pending_where : "");
}

static char *
column_pending_index(const BbfJob *job, const BbfPair *pair)
{
	const char *where = bbf_expr_renamed(job->pending_where, pair->source, job->source_was);

	return psprintf("ON ONLY %s (%s%s%s) WHERE NOT %s%s%s", pair->source_sql,
					pair->group_by ? pair->group_by : "", pair->group_by ? ", " : "",
					pair->source_key, bbf_column_flag(job),
					where ? " AND " : "", where ? psprintf("(%s)", where) : "");
}

const BbfMode bbf_mode_column = {
	.name = "column",
	.index = "pending_idx",
	.writes_source = true,
	.without_foreign_key = "A source row and its target row that two overlapping transactions insert may count as pending until the next sweep.",
	.decide_code = SPI_OK_UPDATE,
	.write_code = SPI_OK_UPDATE_RETURNING,
	.right_code = SPI_OK_UPDATE,
	.check = bbf_column_check,
	.describe = bbf_column_describe,
	.missing = bbf_column_missing,
	.triggers = bbf_column_triggers,
	.source_lock = bbf_column_source_lock,
	.install = bbf_column_install,
	.uninstall = bbf_column_uninstall,
	.finish_fill = bbf_column_finish_fill,
	.candidates = column_candidates,
	.lock = bbf_mode_lock_source,
	.decide = column_decide,
	.undecided = column_undecided,
	.write_at_once = column_write_at_once,
	.put_right = column_put_right,
	.one_code = SPI_OK_UPDATE,
	.one_must_write = true,
	.target_settle_one = column_target_settle_one,
	.target_count_new = column_target_count_new,
	.target_settle_new = column_target_settle_new,
	.settle = column_settle,
	.pending_from = column_pending_from,
	.queue_from = column_pending_from,
	.pending_index = column_pending_index,
};
