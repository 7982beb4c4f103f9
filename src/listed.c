/*
 * listed.c
 *		Reading the rows that can be handed out, in order, as their owner.
 *
 * What is handed out is read from where the mode keeps its answer: the partial
 * index, or the table of pending keys, by (group, key); never from the source as
 * a whole.  A caller is anybody's session: each statement runs with the rights of
 * the source's owner, search path and row security pinned, as a trigger's does,
 * and with a snapshot of now, so that a caller at repeatable read is not handed
 * what others have answered since (R8).  No lock is taken on the source.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "listed.h"
#include "session.h"
#include "sql.h"
#include "utils/array.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"

/* Become the owner, and pin the settings; until bbf_listed_end(), or an error. */
void
bbf_listed_begin(BbfListed *listed, const BbfJob *job, const BbfPair *pair)
{
	static const char *const wanted[][2] = {
		{"enable_sort", "off"}, {"enable_indexscan", "on"}, {"enable_indexonlyscan", "on"},
		{"enable_nestloop", "on"}, {"enable_tidscan", "on"}, {"jit", "off"}
	};

	memset(listed, 0, sizeof(BbfListed));
	listed->job = job;
	listed->pair = pair;
	listed->mode = bbf_mode_lookup(job->mode);
	bbf_usercontext_begin(pair->owner, true, &listed->before);
	bbf_session_pin_by_index();
	bbf_session_pin_keys();
	for (int i = 0; i < (int) lengthof(wanted); i++)
		(void) set_config_option(wanted[i][0], wanted[i][1], PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
}

void
bbf_listed_end(BbfListed *listed)
{
	bbf_usercontext_end(&listed->before);
}

/* The statement of a look: $1 the limit, $2 the group, $3 the key. */
static char *
look(const BbfListed *listed, BbfListedFrom from)
{
	const BbfPair *pair = listed->pair;
	const char *rows = listed->mode->queue_from(listed->job, pair);
	char	   *after = psprintf(" AND s.%s %s $3", pair->source_key, pair->key_op[BTGreaterStrategyNumber]);
	const char *nulls = pair->group_by ? psprintf(" AND s.%s IS NULL", pair->group_by) : "";

	switch (from)
	{
		case BBF_LISTED_FIRST_GROUP:
			return psprintf("SELECT s.%s, s.%s %s AND s.%s IS NOT NULL ORDER BY s.%s, s.%s LIMIT $1",
							pair->source_key, pair->group_by, rows, pair->group_by, pair->group_by, pair->source_key);
		case BBF_LISTED_NEXT_GROUP:
			return psprintf("SELECT s.%s, s.%s %s AND s.%s %s $2 ORDER BY s.%s, s.%s LIMIT $1",
							pair->source_key, pair->group_by, rows, pair->group_by, pair->group_gt,
							pair->group_by, pair->source_key);
		case BBF_LISTED_GROUP:
		case BBF_LISTED_GROUP_AFTER:
			return psprintf("SELECT s.%s, s.%s %s AND s.%s %s $2%s ORDER BY s.%s LIMIT $1",
							pair->source_key, pair->group_by, rows, pair->group_by, pair->group_eq,
							from == BBF_LISTED_GROUP_AFTER ? after : "", pair->source_key);
		default:
			/* the index's whole order: the planner does not take IS NULL for one value */
			return psprintf("SELECT s.%s %s%s%s ORDER BY %s%ss.%s LIMIT $1", pair->source_key, rows, nulls,
							from == BBF_LISTED_NULLS_AFTER ? after : "",
							pair->group_by ? psprintf("s.%s", pair->group_by) : "", pair->group_by ? ", " : "",
							pair->source_key);
	}
}

/*
 * Look at pending rows in order; returns how many there are, with the key and, if
 * there is one, the group in SPI_tuptable.
 */
uint64
bbf_listed_read(BbfListed *listed, BbfListedFrom from, Datum group, Datum key, int64 limit)
{
	const BbfPair *pair = listed->pair;
	Oid			types[] = {INT8OID, pair->group_by ? pair->group_type : INT8OID, pair->key_type};
	Datum		values[] = {Int64GetDatum(limit), group, key};
	bool		with_group = from == BBF_LISTED_NEXT_GROUP || from == BBF_LISTED_GROUP || from == BBF_LISTED_GROUP_AFTER;
	bool		with_key = from == BBF_LISTED_GROUP_AFTER || from == BBF_LISTED_NULLS_AFTER;
	char		nulls[] = {' ', with_group ? ' ' : 'n', with_key ? ' ' : 'n', '\0'};

	if (listed->looks[from] == NULL)
		listed->looks[from] = look(listed, from);
	return bbf_sql_run_latest(pair->owner, listed->looks[from], 3, types, values, nulls, SPI_OK_SELECT, true);
}

static Datum
key_array(const BbfPair *pair, const Datum *keys, int n)
{
	int16		typlen;
	bool		typbyval;
	char		typalign;

	get_typlenbyvalalign(pair->key_type, &typlen, &typbyval, &typalign);
	return PointerGetDatum(construct_array(unconstify(Datum *, keys), n, pair->key_type, typlen, typbyval, typalign));
}

/*
 * Which of these keys are still pending, in their order.  only_matches: they have
 * just been read from the list, and only what the list may not know yet is looked
 * at: a match; and, where no trigger tells the list, the source row itself.
 */
bool *
bbf_listed_among(BbfListed *listed, const Datum *keys, int n, bool only_matches)
{
	const BbfPair *pair = listed->pair;
	const BbfMode *mode = listed->mode;
	bool	   *pending = palloc0(sizeof(bool) * Max(n, 1));
	Oid			types[] = {get_array_type(pair->key_type)};
	Datum		values[1];
	StringInfoData sql;
	uint64		found;

	if (n == 0)
		return pending;
	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT k.bbf_i FROM ROWS FROM (pg_catalog.unnest($1)) WITH ORDINALITY k (%s, bbf_i) WHERE NOT %s",
					 pair->source_key, bbf_pair_match(pair, "k"));
	if (mode->passes)
		appendStringInfo(&sql, " AND EXISTS (SELECT FROM ONLY %s s WHERE s.%s %s k.%s%s%s OFFSET 0)",
						 pair->source_sql, pair->source_key, pair->key_op[BTEqualStrategyNumber], pair->source_key,
						 pair->pending_where ? " AND " : "", pair->pending_where ? pair->pending_where : "");
	if (!only_matches)
		appendStringInfo(&sql, " AND EXISTS (SELECT %s AND s.%s %s k.%s OFFSET 0)",
						 mode->queue_from(listed->job, pair), pair->source_key,
						 pair->key_op[BTEqualStrategyNumber], pair->source_key);
	values[0] = key_array(pair, keys, n);
	found = bbf_sql_run_latest(pair->owner, sql.data, 1, types, values, NULL, SPI_OK_SELECT, true);
	for (uint64 r = 0; r < found; r++)
	{
		bool		isnull;

		pending[DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[r], SPI_tuptable->tupdesc, 1, &isnull)) - 1] = true;
	}
	SPI_freetuptable(SPI_tuptable);
	return pending;
}

/*
 * Take keys that are not pending out of the table of pending keys, where the mode
 * has one.  As a prune does (R4): lock, passing by what others hold, then decide
 * with a snapshot taken after that.  Returns how many are gone.
 */
int64
bbf_listed_prune(BbfListed *listed, const Datum *keys, int n)
{
	const BbfPair *pair = listed->pair;
	Oid			types[] = {get_array_type(pair->key_type)};
	Oid			places[] = {TIDARRAYOID};
	Datum		values[1];
	char	   *table;
	bool		isnull;

	/* what stands on the table in our way is the worker's to take away */
	if (n == 0 || listed->mode->table == NULL || listed->mode->strange(listed->job, pair))
		return 0;
	table = listed->mode->table(listed->job, pair);
	values[0] = key_array(pair, keys, n);
	bbf_sql_run_latest(pair->owner, psprintf("SELECT pg_catalog.array_agg(x.ctid) FROM (SELECT d.ctid FROM ONLY %s d WHERE d.%s %s ANY ($1)"
								" FOR UPDATE SKIP LOCKED) x", table, pair->source_key, pair->key_op[BTEqualStrategyNumber]),
					   1, types, values, NULL, SPI_OK_SELECT, true);
	values[0] = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	if (isnull)
		return 0;
	return (int64) bbf_sql_run_latest(pair->owner, psprintf("DELETE FROM ONLY %s d WHERE d.ctid OPERATOR(pg_catalog.=) ANY ($1) AND %s",
											   table, listed->mode->stale(listed->job, pair)),
									  1, places, values, NULL, SPI_OK_DELETE, true);
}
