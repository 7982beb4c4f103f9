/*
 * mode_sidecar.c
 *		Mode "sidecar": the pending keys stand in a table of their own, kept by
 *		triggers; no statement of ours ever updates the source.
 *
 * Every pending row has its key there (behind the fill's cursor); a key that is
 * there without being pending is stale, which costs a consumer one wasted look
 * and nothing else.  So whoever adds a key must not lose it, and whoever removes
 * one must be sure.
 *
 * The lock is the key's place in the unique index of the sidecar.  Whoever
 * decides about a key first upserts it (INSERT .. ON CONFLICT DO UPDATE), which
 * waits for everybody who is inserting, deleting or locking that very key, and
 * then, as a statement of its own with a snapshot taken after that, deletes it
 * again if it should not be there.  That also holds where the key is not there
 * yet: a lock on the source row would have to be one that keeps out an UPDATE of
 * it.  ON CONFLICT DO NOTHING would not do: it neither waits for nor locks a row
 * that somebody has locked in order to remove it (R4).
 *
 *	target insert	removes its keys, passing by the locked ones (SKIP LOCKED):
 *					what is not committed yet, or locked, stays as a stale row
 *	target change	upserts its keys, then removes those that should not be there
 *	source insert	adds its keys, but for those with a match that it could lock;
 *					where nobody's can be there, without looking (enqueue.c)
 *	source update	upserts old and new keys, then removes what should not be there
 *	source delete	the same: so a key that a batch or a target's trigger adds at
 *					that moment is met by one of the two (R5: never an orphan)
 *	batch			adds its candidates, then removes what should not be there
 *	prune, sweep	lock with SKIP LOCKED, then look again and delete
 *
 * R2, R4: a target delete against a pruner that sees the match still: the delete's
 * upsert waits for the pruner's lock, and adds the key anew; or has the lock
 * first, and the pruner passes by.
 *
 * R3: where several target rows can have one key, two that are deleted at the same
 * moment would each see the other: the trigger locks the source row first.
 * Where the target key is unique, nobody else's row can take the place of a
 * deleted one before the deleter commits, and no lock on the source is needed.
 *
 * R5, a target insert against a batch: if it is not committed when the batch
 * looks, and its trigger ran before the batch's key was there, the key is stale.
 *
 * R6: an update that changes eligibility or group while a target row goes.  If
 * the update could lock the match, the delete waits for it and then sees the new
 * row; if not, the match is about to go, and the update upserts the key itself.
 * Both upsert the same key, so the later one decides with what the earlier one
 * committed; the group is the source row's own writer's alone to set.
 */
#include "postgres.h"

#include "executor/spi.h"
#include "expr.h"
#include "mode_sidecar.h"
#include "objects.h"
#include "utils/builtins.h"

/* The sidecar, quoted and with its schema. */
char *
bbf_sidecar_table(const BbfJob *job, const BbfPair *pair)
{
	return bbf_object_sql(job, BBF_SIDECAR);
}

/* "key" or "key, group", each with a prefix. */
static char *
columns(const BbfPair *pair, const char *prefix)
{
	return pair->group_by ?
		psprintf("%s%s, %s%s", prefix, pair->source_key, prefix, pair->group_by) :
		psprintf("%s%s", prefix, pair->source_key);
}

/*
 * What an upsert does with a key that is there: lock it, or make it the source row's
 * (own).  Equal keys may be written in several ways (numeric 1.0 and 1.00): as the
 * source row has it is how it belongs here.
 */
static char *
on_conflict(const BbfPair *pair, bool own)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "ON CONFLICT (%s) DO UPDATE SET ", pair->source_key);
	if (own && !pair->key_has_one_text)
		appendStringInfo(&sql, "%s = excluded.%s", pair->source_key, pair->source_key);
	if (own && pair->group_by)
		appendStringInfo(&sql, "%s%s = excluded.%s", pair->key_has_one_text ? "" : ", ",
						 pair->group_by, pair->group_by);
	else if (!own || pair->key_has_one_text)
		appendStringInfo(&sql, "%s = excluded.%s WHERE false", pair->source_key, pair->source_key);
	return sql.data;
}

/* "d's column is not what the source row s has". */
static char *
image_differs(const char *column)
{
	return psprintf("ROW(d.%s)::pg_catalog.record OPERATOR(pg_catalog.*<>) ROW(s.%s)::pg_catalog.record",
					column, column);
}

/* "the row's group, or how its key or group is written, is not the source row's". */
static char *
row_differs(const BbfPair *pair)
{
	const char *key = pair->key_has_one_text ? "false" : image_differs(pair->source_key);
	const char *group = pair->group_by;

	if (group == NULL)
		return psprintf("(%s)", key);
	if (!pair->group_has_one_text)
		return psprintf("(%s OR %s)", key, image_differs(group));
	return psprintf("(%s OR (d.%s %s s.%s) IS NOT TRUE AND (d.%s IS NOT NULL OR s.%s IS NOT NULL))",
					key, group, pair->group_eq, group, group, group);
}

static char *
and_pending(const BbfPair *pair)
{
	return pair->pending_where ? psprintf(" AND %s", pair->pending_where) : pstrdup("");
}

/* "there is an eligible source row with the key d". */
static char *
eligible(const BbfPair *pair)
{
	return psprintf("EXISTS (SELECT FROM ONLY %s s WHERE s.%s %s d.%s%s OFFSET 0)",
					pair->source_sql, pair->source_key, pair->key_op[BTEqualStrategyNumber],
					pair->source_key, and_pending(pair));
}

/*
 * Should the sidecar's row d not be there?  A wrong group is not looked at here:
 * such a row is to be corrected, not removed.
 */
char *
bbf_sidecar_stale(const BbfJob *job, const BbfPair *pair)
{
	return psprintf("(%s OR NOT %s)", bbf_pair_match(pair, "d"), eligible(pair));
}

/* "the source row s has no match", looked for in the key range alone. */
static char *
no_match_in_range(const BbfPair *pair, bool bounded)
{
	char	   *mkey = psprintf("m.%s", pair->target_key);

	return psprintf("NOT EXISTS (SELECT FROM ONLY %s m WHERE %s%s%s AND %s %s s.%s)",
					pair->target_sql, bbf_mode_range(mkey, pair->target_key_op, bounded),
					pair->match_where ? " AND " : "", pair->match_where ? pair->match_where : "",
					mkey, pair->target_key_op[BTEqualStrategyNumber], pair->source_key);
}

/*
 * The pending rows of a key range that the sidecar lacks, or has with another
 * group.  The range stands on all sides.
 */
char *
bbf_sidecar_candidates(const BbfJob *job, const BbfPair *pair, bool sweep, bool bounded)
{
	char	   *skey = psprintf("s.%s", pair->source_key);
	char	   *dkey = psprintf("d.%s", pair->source_key);

	return psprintf("SELECT s.ctid, %s FROM ONLY %s s WHERE %s%s AND %s"
					" AND NOT EXISTS (SELECT FROM ONLY %s d WHERE %s AND %s %s %s AND NOT %s)"
					" ORDER BY %s USING %s",
					skey, pair->source_sql, bbf_mode_range(skey, pair->key_op, bounded), and_pending(pair),
					no_match_in_range(pair, bounded),
					bbf_sidecar_table(job, pair), bbf_mode_range(dkey, pair->key_op, bounded),
					dkey, pair->key_op[BTEqualStrategyNumber], skey, row_differs(pair),
					skey, pair->key_op[BTLessStrategyNumber]);
}

/* "the source row s is pending". */
static char *
is_pending(const BbfPair *pair)
{
	return psprintf("NOT %s%s", bbf_pair_match(pair, "s"), and_pending(pair));
}

/* Settle locked source rows by place. */
char *
bbf_sidecar_decide(const BbfJob *job, const BbfPair *pair)
{
	return psprintf("INSERT INTO %s AS d (%s) SELECT %s FROM ONLY %s s"
					" WHERE s.ctid OPERATOR(pg_catalog.=) ANY ($1) AND %s ORDER BY s.%s USING %s %s",
					bbf_sidecar_table(job, pair), columns(pair, ""), columns(pair, "s."),
					pair->source_sql, is_pending(pair), pair->source_key,
					pair->key_op[BTLessStrategyNumber], on_conflict(pair, true));
}

/* Rows that the insert above should have written. */
char *
bbf_sidecar_undecided(const BbfJob *job, const BbfPair *pair)
{
	return psprintf("SELECT s.%s FROM ONLY %s s WHERE s.ctid OPERATOR(pg_catalog.=) ANY ($1) AND %s"
					" AND NOT EXISTS (SELECT FROM ONLY %s d WHERE d.%s %s s.%s OFFSET 0) LIMIT 1",
					pair->source_key, pair->source_sql, is_pending(pair),
					bbf_sidecar_table(job, pair), pair->source_key,
					pair->key_op[BTEqualStrategyNumber], pair->source_key);
}

/* "what is there is passed by", and which rows were added. */
static char *
if_new(const BbfPair *pair)
{
	return psprintf("ON CONFLICT (%s) DO NOTHING RETURNING d.ctid, d.%s", pair->source_key, pair->source_key);
}

/*
 * The quick ways: add all candidates, which locks their keys; then, with a
 * snapshot taken after that, remove those that should not be there.  A key that
 * is there is passed by: it has come meanwhile, which is its writer's business;
 * or its group is wrong, which a sweep corrects under the source row's lock.
 *
 * Of keys without a match, which come from the two indexes on keys alone: only
 * their rows are read.
 */
char *
bbf_sidecar_write_lacking(const BbfJob *job, const BbfPair *pair)
{
	return psprintf("INSERT INTO %s AS d (%s) SELECT %s FROM ONLY %s s WHERE s.%s %s ANY ($1)%s ORDER BY s.%s USING %s %s",
					bbf_sidecar_table(job, pair), columns(pair, ""), columns(pair, "s."), pair->source_sql,
					pair->source_key, pair->key_op[BTEqualStrategyNumber], and_pending(pair),
					pair->source_key, pair->key_op[BTLessStrategyNumber], if_new(pair));
}

char *
bbf_sidecar_write_at_once(const BbfJob *job, const BbfPair *pair, bool sweep)
{
	return psprintf("INSERT INTO %s AS d (%s) SELECT %s FROM ONLY %s s"
					" WHERE s.ctid OPERATOR(pg_catalog.=) ANY ($1) ORDER BY s.%s USING %s %s",
					bbf_sidecar_table(job, pair), columns(pair, ""), columns(pair, "s."),
					pair->source_sql, pair->source_key, pair->key_op[BTLessStrategyNumber], if_new(pair));
}

char *
bbf_sidecar_put_right(const BbfJob *job, const BbfPair *pair)
{
	return psprintf("DELETE FROM ONLY %s d WHERE d.ctid OPERATOR(pg_catalog.=) ANY ($1) AND %s",
					bbf_sidecar_table(job, pair), bbf_sidecar_stale(job, pair));
}

/*
 * A target insert.  Its own rows are the matches; without match_where nothing has
 * to be looked up.
 */
static int
settle_target_insert(const BbfJob *job, const BbfPair *pair, BbfStep *steps)
{
	const char *table = bbf_sidecar_table(job, pair);
	char	   *locked = psprintf("SELECT x.ctid FROM ONLY %s x WHERE x.%s %s ANY ($1) FOR UPDATE SKIP LOCKED",
								  table, pair->source_key, pair->source_eq_target);

	if (pair->match_where == NULL)
	{
		steps[0] = (BbfStep) {
			psprintf("DELETE FROM ONLY %s d WHERE d.ctid OPERATOR(pg_catalog.=) ANY (ARRAY(%s))", table, locked),
			SPI_OK_DELETE, BBF_TAKES_KEYS, BBF_GIVES_NOTHING
		};
		return 1;
	}
	steps[0] = (BbfStep) {locked, SPI_OK_SELECT, BBF_TAKES_KEYS, BBF_GIVES_ROWS};
	steps[1] = (BbfStep) {
		psprintf("DELETE FROM ONLY %s d WHERE d.ctid OPERATOR(pg_catalog.=) ANY ($1) AND %s",
				 table, bbf_pair_match(pair, "d")),
		SPI_OK_DELETE, BBF_TAKES_ROWS, BBF_GIVES_NOTHING
	};
	return 2;
}

/*
 * The short way of a target insert of one key: the same.  It names nothing but
 * with its schema.
 */
static char *
sidecar_target_settle_one(const BbfJob *job, const BbfPair *pair)
{
	const char *table = bbf_sidecar_table(job, pair);

	if (pair->match_where)
		return NULL;			/* the row may be no match */
	return psprintf("DELETE FROM ONLY %s d WHERE d.ctid OPERATOR(pg_catalog.=)"
					" (SELECT x.ctid FROM ONLY %s x WHERE x.%s %s $1 FOR UPDATE SKIP LOCKED)",
					table, table, pair->source_key, pair->source_eq_target);
}

/* "a column of the source row with the key k"; eq: source key = k. */
static char *
of_source_row(const BbfPair *pair, const char *column, const char *eq)
{
	return psprintf("(SELECT s.%s FROM ONLY %s s WHERE s.%s %s k.k)", column, pair->source_sql, pair->source_key, eq);
}

/*
 * Rows for keys that may have no source row: "SELECT key, group FROM the keys k", as
 * the source row has them where there is one.
 */
static char *
rows_of_keys(const BbfPair *pair, const char *eq)
{
	const char *key = pair->key_has_one_text ? "k.k" :
		psprintf("coalesce(%s, k.k)", of_source_row(pair, pair->source_key, eq));

	return psprintf("SELECT %s%s%s FROM pg_catalog.unnest($1) k (k)", key, pair->group_by ? ", " : "",
					pair->group_by ? of_source_row(pair, pair->group_by, eq) : "");
}

/*
 * A target delete, or an update of what makes a match.  Without a foreign key the
 * source row may be somebody's who has not committed yet: its key is upserted, and
 * so locked, whether we see a row or not.
 *
 * But not where the target's column can hold what the source's cannot, and our table's
 * neither: the write would be refused, with the application's.  There it is up to who
 * inserts or changes the source row.  He has locked the match, and then our delete has
 * waited for him and we see his row; or he could not, and then he adds the key himself.
 */
static int
settle_target_change(const BbfJob *job, const BbfPair *pair, BbfStep *steps)
{
	const char *table = bbf_sidecar_table(job, pair);
	char	   *order = psprintf("ORDER BY s.%s USING %s", pair->source_key, pair->key_op[BTLessStrategyNumber]);
	int			n = 0;

	if (!pair->target_key_unique)
		steps[n++] = (BbfStep) {
			psprintf("SELECT s.ctid FROM ONLY %s s WHERE s.%s %s ANY ($1) %s FOR NO KEY UPDATE",
					 pair->source_sql, pair->source_key, pair->source_eq_target, order),
			SPI_OK_SELECT, BBF_TAKES_KEYS, BBF_GIVES_NOTHING
		};
	steps[n++] = (BbfStep) {
		pair->has_foreign_key || !pair->same_key_type ?
			psprintf("INSERT INTO %s AS d (%s) SELECT %s FROM ONLY %s s WHERE s.%s %s ANY ($1) %s %s",
					 table, columns(pair, ""), columns(pair, "s."), pair->source_sql,
					 pair->source_key, pair->source_eq_target, order, on_conflict(pair, false)) :
			psprintf("INSERT INTO %s AS d (%s) %s %s",
					 table, columns(pair, ""), rows_of_keys(pair, pair->source_eq_target), on_conflict(pair, false)),
		SPI_OK_INSERT, BBF_TAKES_KEYS, BBF_GIVES_NOTHING
	};
	steps[n++] = (BbfStep) {
		psprintf("DELETE FROM ONLY %s d WHERE d.%s %s ANY ($1) AND %s",
				 table, pair->source_key, pair->source_eq_target, bbf_sidecar_stale(job, pair)),
		SPI_OK_DELETE, BBF_TAKES_KEYS, BBF_GIVES_NOTHING
	};
	return n;
}

/*
 * The matches of source rows that are new or have changed, as far as they can be
 * locked at once: those stay until we commit.  One that cannot be is about to go,
 * or to change; its row counts as pending, and is stale at worst.
 */
static BbfStep
hold_matches(const BbfPair *pair)
{
	return (BbfStep) {
		psprintf("SELECT m.%s FROM ONLY %s m WHERE m.%s %s ANY ($1)%s%s ORDER BY m.%s %s SKIP LOCKED",
				 pair->target_key, pair->target_sql, pair->target_key,
				 pair->target_key_op[BTEqualStrategyNumber],
				 pair->match_where ? " AND " : "", pair->match_where ? pair->match_where : "",
				 pair->target_key,
				 pair->match_where || !pair->target_key_unique ? "FOR SHARE" : "FOR KEY SHARE"),
		SPI_OK_SELECT, BBF_TAKES_KEYS, BBF_GIVES_HELD
	};
}

/* "the key of this row is among the matches held". */
static char *
held(const BbfPair *pair, const char *alias)
{
	return psprintf("EXISTS (SELECT FROM pg_catalog.unnest($2) h (k) WHERE h.k %s %s.%s)",
					pair->target_key_op[BTEqualStrategyNumber], alias, pair->source_key);
}

/*
 * New source rows.  With a foreign key that is validated and immediate nobody
 * else's target row can be there yet, and no lock is needed to look.
 */
static int
settle_source_insert(const BbfJob *job, const BbfPair *pair, BbfStep *steps)
{
	if (pair->has_foreign_key)
	{
		steps[0] = (BbfStep) {
			psprintf("INSERT INTO %s AS d (%s) SELECT %s FROM ONLY %s s WHERE s.%s %s ANY ($1) AND %s"
					 " ORDER BY s.%s USING %s %s",
					 bbf_sidecar_table(job, pair), columns(pair, ""), columns(pair, "s."), pair->source_sql,
					 pair->source_key, pair->key_op[BTEqualStrategyNumber], is_pending(pair),
					 pair->source_key, pair->key_op[BTLessStrategyNumber], on_conflict(pair, true)),
			SPI_OK_INSERT, BBF_TAKES_KEYS, BBF_GIVES_NOTHING
		};
		return 1;
	}
	steps[0] = hold_matches(pair);
	steps[1] = (BbfStep) {
		psprintf("INSERT INTO %s AS d (%s) SELECT %s FROM ONLY %s s WHERE s.%s %s ANY ($1)%s AND NOT %s"
				 " ORDER BY s.%s USING %s %s",
				 bbf_sidecar_table(job, pair), columns(pair, ""), columns(pair, "s."), pair->source_sql,
				 pair->source_key, pair->key_op[BTEqualStrategyNumber], and_pending(pair), held(pair, "s"),
				 pair->source_key, pair->key_op[BTLessStrategyNumber], on_conflict(pair, true)),
		SPI_OK_INSERT, BBF_TAKES_KEYS_AND_HELD, BBF_GIVES_NOTHING
	};
	return 2;
}

/*
 * The short way of one new source row, which its trigger has found eligible.  It
 * names nothing but with its schema.
 */
static char *
sidecar_source_settle_one(const BbfJob *job, const BbfPair *pair)
{
	if (!pair->has_foreign_key || pair->match_where ||
		bbf_expr_runs_users_code(job->pending_where, pair->source, job->source_was))
		return NULL;			/* the last: no trigger has looked whether it is eligible */
	return psprintf("INSERT INTO %s AS d (%s) SELECT %s FROM ONLY %s s WHERE s.%s %s $1 AND NOT %s %s",
					bbf_sidecar_table(job, pair), columns(pair, ""), columns(pair, "s."), pair->source_sql,
					pair->source_key, pair->key_op[BTEqualStrategyNumber], bbf_pair_match(pair, "s"),
					on_conflict(pair, true));
}

/* The keys before and after: all upserted, whether there is a row or not. */
static int
settle_source_update(const BbfJob *job, const BbfPair *pair, BbfStep *steps)
{
	const char *table = bbf_sidecar_table(job, pair);
	const char *eq = pair->key_op[BTEqualStrategyNumber];

	steps[0] = hold_matches(pair);
	steps[1] = (BbfStep) {
		psprintf("INSERT INTO %s AS d (%s) %s %s",
				 table, columns(pair, ""), rows_of_keys(pair, eq), on_conflict(pair, true)),
		SPI_OK_INSERT, BBF_TAKES_KEYS, BBF_GIVES_NOTHING
	};
	steps[2] = (BbfStep) {
		psprintf("DELETE FROM ONLY %s d WHERE d.%s %s ANY ($1) AND (%s OR NOT %s)",
				 table, pair->source_key, eq, held(pair, "d"), eligible(pair)),
		SPI_OK_DELETE, BBF_TAKES_KEYS_AND_HELD, BBF_GIVES_NOTHING
	};
	return 3;
}

static int
settle_source_delete(const BbfJob *job, const BbfPair *pair, BbfStep *steps)
{
	const char *table = bbf_sidecar_table(job, pair);

	steps[0] = (BbfStep) {
		psprintf("INSERT INTO %s AS d (%s) SELECT k.k FROM pg_catalog.unnest($1) k (k) %s",
				 table, pair->source_key, on_conflict(pair, false)),
		SPI_OK_INSERT, BBF_TAKES_KEYS, BBF_GIVES_NOTHING
	};
	steps[1] = (BbfStep) {
		psprintf("DELETE FROM ONLY %s d WHERE d.%s %s ANY ($1) AND NOT %s",
				 table, pair->source_key, pair->key_op[BTEqualStrategyNumber], eligible(pair)),
		SPI_OK_DELETE, BBF_TAKES_KEYS, BBF_GIVES_NOTHING
	};
	return 2;
}

static int
sidecar_settle(const BbfJob *job, const BbfPair *pair, BbfEvent event, BbfStep *steps)
{
	switch (event)
	{
		case BBF_TARGET_INSERT:
			return settle_target_insert(job, pair, steps);
		case BBF_TARGET_CHANGE:
			return settle_target_change(job, pair, steps);
		case BBF_SOURCE_INSERT:
			return settle_source_insert(job, pair, steps);
		case BBF_SOURCE_UPDATE:
			return settle_source_update(job, pair, steps);
		case BBF_SOURCE_DELETE:
			return settle_source_delete(job, pair, steps);
		default:
			return 0;
	}
}

/* The sidecar alone: a look for matches would cost three buffers a row. */
char *
bbf_sidecar_queue_from(const BbfJob *job, const BbfPair *pair)
{
	return psprintf("FROM ONLY %s s WHERE true", bbf_sidecar_table(job, pair));
}

const BbfMode bbf_mode_sidecar = {
	.name = "sidecar",
	.index = "sidecar_idx",
	.without_foreign_key = "A target row that is there before its source row leaves the row listed as pending until a prune or a sweep meets it.",
	.check = bbf_sidecar_check,
	.describe = bbf_sidecar_describe,
	.missing = bbf_sidecar_missing,
	.triggers = bbf_sidecar_triggers,
	.source_lock = bbf_sidecar_source_lock,
	.install = bbf_sidecar_install,
	.uninstall = bbf_sidecar_uninstall,
	.table = bbf_sidecar_table,
	.stale = bbf_sidecar_stale,
	.strange = bbf_sidecar_strange,
	.sync_readers = bbf_sidecar_sync_readers,
	.candidates = bbf_sidecar_candidates,
	.lock = bbf_mode_lock_source,
	.decide = bbf_sidecar_decide,
	.undecided = bbf_sidecar_undecided,
	.write_lacking = bbf_sidecar_write_lacking,
	.write_at_once = bbf_sidecar_write_at_once,
	.put_right = bbf_sidecar_put_right,
	.decide_code = SPI_OK_INSERT,
	.write_code = SPI_OK_INSERT_RETURNING,
	.right_code = SPI_OK_DELETE,
	.old_source_keys = true,
	.one_code = SPI_OK_DELETE,
	.target_settle_one = sidecar_target_settle_one,
	.source_settle_one = sidecar_source_settle_one,
	.settle = sidecar_settle,
	.pending_from = bbf_sidecar_queue_from,
	.queue_from = bbf_sidecar_queue_from,
};
