/*
 * lease_write.c
 *		The statements that make, change and end claims.
 *
 * What locks a claim that is not the caller's passes by one that somebody is at;
 * see lease.c.
 */
#include "postgres.h"

#include "answered.h"
#include "catalog/pg_type.h"
#include "lease.h"
#include "miscadmin.h"
#include "sql.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

/* An array of texts; NULL becomes null. */
Datum
bbf_lease_text_array(char *const *texts, int n)
{
	Datum	   *values = palloc(sizeof(Datum) * Max(n, 1));
	bool	   *nulls = palloc(sizeof(bool) * Max(n, 1));
	int			lower = 1;

	for (int i = 0; i < n; i++)
	{
		nulls[i] = texts[i] == NULL;
		values[i] = texts[i] ? CStringGetTextDatum(texts[i]) : (Datum) 0;
	}
	if (n == 0)
		return PointerGetDatum(construct_empty_array(TEXTOID));
	return PointerGetDatum(construct_md_array(values, nulls, 1, &n, &lower, TEXTOID, -1, false, TYPALIGN_INT));
}

/* The three columns of a claim's rows; keep NULL: all of them.  Returns how many. */
static int
row_columns(const BbfLeased *rows, int n, const bool *keep, Datum *columns)
{
	char	  **keys = palloc(sizeof(char *) * Max(n, 1));
	char	  **groups = palloc(sizeof(char *) * Max(n, 1));
	Datum	   *attempts = palloc(sizeof(Datum) * Max(n, 1));
	int			kept = 0;

	for (int i = 0; i < n; i++)
	{
		if (keep && !keep[i])
			continue;
		keys[kept] = rows[i].key;
		groups[kept] = rows[i].group;
		attempts[kept++] = Int32GetDatum(rows[i].attempt);
	}
	columns[0] = bbf_lease_text_array(keys, kept);
	columns[1] = bbf_lease_text_array(groups, kept);
	columns[2] = PointerGetDatum(construct_array(attempts, kept, INT4OID, sizeof(int32), true, TYPALIGN_INT));
	return kept;
}

/* Hand out these rows to a role; returns the token.  The lease begins now, whenever the caller commits. */
int64
bbf_lease_insert(const char *job, Oid claimed_by, const BbfLeased *rows, int n, int64 lease_ms,
				 const char *last_group, int64 stale_pruned)
{
	Oid			types[] = {TEXTOID, TEXTARRAYOID, TEXTARRAYOID, INT4ARRAYOID, FLOAT8OID, TEXTOID, INT8OID, OIDOID};
	Datum		values[8] = {CStringGetTextDatum(job), 0, 0, 0, Float8GetDatum(lease_ms / 1000.0),
		last_group ? CStringGetTextDatum(last_group) : (Datum) 0, Int64GetDatum(stale_pruned),
	ObjectIdGetDatum(claimed_by)};
	int64		token;

	row_columns(rows, n, NULL, values + 1);
	bbf_sql_catalog_kept("INSERT INTO bgw_backfill.claim"
						 " (token, job, claimed_by, expires_at, granted, keys, group_keys, attempts, last_group, stale_pruned)"
						 " VALUES (pg_catalog.nextval('bgw_backfill.claim_token'), $1, $8, pg_catalog.clock_timestamp()"
						 "  OPERATOR(pg_catalog.+) pg_catalog.make_interval(secs => $5),"
						 "  pg_catalog.cardinality($2), $2, $3, $4, $6, $7) RETURNING token",
						 8, types, values, last_group ? NULL : "     n  ", SPI_OK_INSERT_RETURNING);
	token = DatumGetInt64(bbf_lease_attribute(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, "token"));
	SPI_freetuptable(SPI_tuptable);
	return token;
}

/*
 * Lock a claim that has open rows, or with expired: only if its lease has ended
 * and nobody is at it.  NULL: there is none such.
 */
BbfClaim *
bbf_lease_lock_claim(const char *job, int64 token, bool expired)
{
	Oid			types[] = {TEXTOID, INT8OID};
	Datum		values[] = {CStringGetTextDatum(job), Int64GetDatum(token)};
	BbfClaim   *claim = NULL;

	if (bbf_sql_catalog_kept(psprintf("SELECT * FROM bgw_backfill.claim WHERE job OPERATOR(pg_catalog.=) $1"
									  " AND token OPERATOR(pg_catalog.=) $2%s",
									  expired ? " AND expires_at OPERATOR(pg_catalog.<=) pg_catalog.clock_timestamp()"
									  " FOR UPDATE SKIP LOCKED" : " FOR UPDATE"),
							 2, types, values, NULL, SPI_OK_SELECT) > 0)
	{
		claim = palloc(sizeof(BbfClaim));
		*claim = bbf_lease_of_tuple(SPI_tuptable->vals[0], SPI_tuptable->tupdesc);
		claim->committed = true;
	}
	SPI_freetuptable(SPI_tuptable);
	if (claim)
		bbf_answered_drop(job, claim, 1);
	return claim;
}

/*
 * The tokens of claims that have open rows, after one (text; NULL: from the
 * first), locked but for those that somebody is at.  Returns how many.
 */
int
bbf_lease_open(const char *job, const char *after, int limit, int64 **tokens)
{
	Oid			types[] = {TEXTOID, INT8OID, INT8OID};
	Datum		values[] = {CStringGetTextDatum(job), Int64GetDatum(after ? strtoll(after, NULL, 10) : 0), Int64GetDatum(limit)};
	int			n = (int) bbf_sql_catalog_kept("SELECT token FROM bgw_backfill.claim WHERE job OPERATOR(pg_catalog.=) $1"
											   " AND keys OPERATOR(pg_catalog.<>) '{}' AND token OPERATOR(pg_catalog.>) $2"
											   " ORDER BY token LIMIT $3 FOR UPDATE SKIP LOCKED",
											   3, types, values, NULL, SPI_OK_SELECT);

	*tokens = palloc(sizeof(int64) * Max(n, 1));
	for (int i = 0; i < n; i++)
		(*tokens)[i] = DatumGetInt64(bbf_lease_attribute(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, "token"));
	SPI_freetuptable(SPI_tuptable);
	return n;
}

/* Keep only some of a locked claim's rows; keep NULL: none. */
void
bbf_lease_keep(const BbfClaim *claim, const bool *keep)
{
	Oid			types[] = {INT8OID, TEXTARRAYOID, TEXTARRAYOID, INT4ARRAYOID};
	Datum		values[4] = {Int64GetDatum(claim->token)};

	row_columns(claim->rows, keep ? claim->n : 0, keep, values + 1);
	bbf_sql_catalog_kept("UPDATE bgw_backfill.claim SET keys = $2, group_keys = $3, attempts = $4"
						 " WHERE token OPERATOR(pg_catalog.=) $1",
						 4, types, values, NULL, SPI_OK_UPDATE);
}

/* All that a claim has open, so many rows, is answered; unless somebody is at it. */
void
bbf_lease_empty(const char *job, int64 token, int n)
{
	Oid			types[] = {INT8OID, INT4OID};
	Datum		values[] = {Int64GetDatum(token), Int32GetDatum(n)};

	bbf_sql_catalog_kept("UPDATE bgw_backfill.claim SET keys = '{}', group_keys = '{}', attempts = '{}'"
						 " WHERE token OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT c.token FROM bgw_backfill.claim c"
						 "  WHERE c.token OPERATOR(pg_catalog.=) $1 AND pg_catalog.cardinality(c.keys) OPERATOR(pg_catalog.=) $2"
						 "  FOR UPDATE SKIP LOCKED))",
						 2, types, values, NULL, SPI_OK_UPDATE);
}

/* Let a locked claim's lease end that long from now; returns when. */
TimestampTz
bbf_lease_extend(int64 token, int64 lease_ms)
{
	Oid			types[] = {INT8OID, FLOAT8OID};
	Datum		values[] = {Int64GetDatum(token), Float8GetDatum(lease_ms / 1000.0)};
	TimestampTz expires_at;

	bbf_sql_catalog_kept("UPDATE bgw_backfill.claim SET expires_at = pg_catalog.clock_timestamp()"
						 " OPERATOR(pg_catalog.+) pg_catalog.make_interval(secs => $2)"
						 " WHERE token OPERATOR(pg_catalog.=) $1 RETURNING expires_at",
						 2, types, values, NULL, SPI_OK_UPDATE_RETURNING);
	expires_at = DatumGetTimestampTz(bbf_lease_attribute(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, "expires_at"));
	SPI_freetuptable(SPI_tuptable);
	return expires_at;
}

/*
 * Forget the claims that are answered and whose lease has ended, but for the
 * newest, which knows whose turn it is.  What they had pruned goes to the job's
 * account.
 */
void
bbf_lease_forget_answered(const char *job)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(job)};

	bbf_sql_catalog_kept("WITH gone AS (DELETE FROM bgw_backfill.claim c WHERE c.token OPERATOR(pg_catalog.=) ANY (ARRAY("
						 "  SELECT o.token FROM bgw_backfill.claim o WHERE o.job OPERATOR(pg_catalog.=) $1"
						 "  AND o.keys OPERATOR(pg_catalog.=) '{}' AND o.expires_at OPERATOR(pg_catalog.<) pg_catalog.clock_timestamp()"
						 "  AND o.token OPERATOR(pg_catalog.<) (SELECT pg_catalog.max(n.token) FROM bgw_backfill.claim n"
						 "   WHERE n.job OPERATOR(pg_catalog.=) $1)"
						 "  LIMIT 10000 FOR UPDATE SKIP LOCKED)) RETURNING c.stale_pruned)"
						 " UPDATE bgw_backfill.job_state SET stale_pruned = stale_pruned OPERATOR(pg_catalog.+)"
						 "  (SELECT coalesce(pg_catalog.sum(g.stale_pruned), 0) FROM gone g)::pg_catalog.int8"
						 " WHERE job OPERATOR(pg_catalog.=) $1 AND (SELECT pg_catalog.sum(g.stale_pruned) FROM gone g)"
						 "  OPERATOR(pg_catalog.>) 0",
						 1, types, values, NULL, SPI_OK_UPDATE);
}
