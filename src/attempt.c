/*
 * attempt.c
 *		Rows that have been handed out and came back: the tables attempt and
 *		passed.
 *
 * A row that was handed out has its key in an open claim, or here, for as long as
 * it is pending: in quarantine, waiting for its next turn, or given back.  That
 * is what makes "passed" right: the key up to which everything pending in a group
 * has been handed out before.  A claim that finds its way blocked by such rows
 * begins behind it, and takes the ones whose turn has come from the index on
 * next_at; so its cost depends neither on the quarantine nor on what waits.  A
 * key is passed only over claims that are committed, or the passing one's own:
 * if that is undone, so is the passing.
 *
 * What becomes pending again below that key (its target row is gone) without a
 * row here is found by the worker: see upkeep.c.
 */
#include "postgres.h"

#include "attempt.h"
#include "catalog/pg_type.h"
#include "job.h"
#include "sql.h"
#include "throttle.h"
#include "utils/array.h"
#include "utils/builtins.h"

/* Has any row of the job ever come back? */
bool
bbf_attempt_any(const char *job)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(job)};
	bool		any = bbf_sql_catalog_kept("SELECT 1 FROM bgw_backfill.attempt WHERE job OPERATOR(pg_catalog.=) $1 LIMIT 1",
									  1, types, values, NULL, SPI_OK_SELECT) > 0;

	SPI_freetuptable(SPI_tuptable);
	return any;
}

static Datum
result_column(uint64 row, int column, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, isnull);
}

/* How some keys stand, in their order; attempts: how many each has had. */
BbfStanding *
bbf_attempt_find(const char *job, char *const *keys, int n, int32 *attempts)
{
	BbfStanding *standing = palloc0(sizeof(BbfStanding) * Max(n, 1));
	Oid			types[] = {TEXTOID, TEXTARRAYOID};
	Datum		values[] = {CStringGetTextDatum(job), bbf_lease_text_array(keys, n)};
	uint64		found;

	memset(attempts, 0, sizeof(int32) * n);
	found = bbf_sql_catalog_kept("SELECT u.i, a.attempts, a.quarantined_at IS NOT NULL,"
							" a.next_at OPERATOR(pg_catalog.<=) pg_catalog.clock_timestamp()"
							" FROM ROWS FROM (pg_catalog.unnest($2)) WITH ORDINALITY u (k, i)"
							" CROSS JOIN LATERAL (SELECT * FROM bgw_backfill.attempt x WHERE x.job OPERATOR(pg_catalog.=) $1"
							"  AND x.key OPERATOR(pg_catalog.=) u.k OFFSET 0) a",
							2, types, values, NULL, SPI_OK_SELECT);
	for (uint64 r = 0; r < found; r++)
	{
		bool		isnull;
		int			i = (int) DatumGetInt64(result_column(r, 1, &isnull)) - 1;

		attempts[i] = DatumGetInt32(result_column(r, 2, &isnull));
		standing[i] = DatumGetBool(result_column(r, 3, &isnull)) ? BBF_QUARANTINED :
			DatumGetBool(result_column(r, 4, &isnull)) ? BBF_DUE : BBF_NOT_YET;
	}
	SPI_freetuptable(SPI_tuptable);
	return standing;
}

/* Write down rows that came back: attempts so far, and seconds to the next one. */
static void
came_back(const char *job, const BbfLeased *rows, int n, const int32 *attempts, const double *delays,
		  const char *error, int max_attempts)
{
	Oid			types[] = {TEXTOID, TEXTARRAYOID, TEXTARRAYOID, INT4ARRAYOID, FLOAT8ARRAYOID, TEXTOID, INT4OID};
	char	  **keys = palloc(sizeof(char *) * Max(n, 1));
	char	  **groups = palloc(sizeof(char *) * Max(n, 1));
	Datum	   *counts = palloc(sizeof(Datum) * Max(n, 1));
	Datum	   *seconds = palloc(sizeof(Datum) * Max(n, 1));
	Datum		values[7];

	if (n == 0)
		return;
	for (int i = 0; i < n; i++)
	{
		keys[i] = rows[i].key;
		groups[i] = rows[i].group;
		counts[i] = Int32GetDatum(attempts[i]);
		seconds[i] = Float8GetDatum(delays[i]);
	}
	values[0] = CStringGetTextDatum(job);
	values[1] = bbf_lease_text_array(keys, n);
	values[2] = bbf_lease_text_array(groups, n);
	values[3] = PointerGetDatum(construct_array(counts, n, INT4OID, sizeof(int32), true, TYPALIGN_INT));
	values[4] = PointerGetDatum(construct_array(seconds, n, FLOAT8OID, sizeof(float8), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	values[5] = error ? CStringGetTextDatum(bbf_job_cut_error(error)) : (Datum) 0;
	values[6] = Int32GetDatum(max_attempts);
	bbf_sql_catalog_kept("INSERT INTO bgw_backfill.attempt AS a"
					" (job, key, group_key, attempts, next_at, quarantined_at, last_error, last_error_at)"
					" SELECT $1, u.k, u.g, u.n, t.now OPERATOR(pg_catalog.+) pg_catalog.make_interval(secs => u.s),"
					"  CASE WHEN u.n OPERATOR(pg_catalog.>=) $7 THEN t.now END, $6, CASE WHEN $6 IS NOT NULL THEN t.now END"
					" FROM ROWS FROM (pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4), pg_catalog.unnest($5))"
					"  u (k, g, n, s) CROSS JOIN (SELECT pg_catalog.clock_timestamp() OFFSET 0) t (now)"
					" ON CONFLICT (job, key) DO UPDATE SET group_key = excluded.group_key, attempts = excluded.attempts,"
					"  next_at = excluded.next_at, quarantined_at = excluded.quarantined_at,"
					"  last_error = coalesce(excluded.last_error, a.last_error),"
					"  last_error_at = coalesce(excluded.last_error_at, a.last_error_at)",
					7, types, values, error ? NULL : "     n ", SPI_OK_INSERT);
}

/* Lock what is known of these rows.  False: somebody is at some of it, and is not waited for. */
bool
bbf_attempt_try_lock(const char *job, const BbfLeased *rows, int n)
{
	Oid			types[] = {TEXTOID, TEXTARRAYOID};
	char	  **keys = palloc(sizeof(char *) * Max(n, 1));
	Datum		values[2] = {CStringGetTextDatum(job)};
	bool		isnull;
	bool		all;

	for (int i = 0; i < n; i++)
		keys[i] = rows[i].key;
	values[1] = bbf_lease_text_array(keys, n);
	(void) bbf_sql_catalog_kept("SELECT (SELECT pg_catalog.count(*) FROM bgw_backfill.attempt a WHERE a.job OPERATOR(pg_catalog.=) $1"
								"  AND a.key OPERATOR(pg_catalog.=) ANY ($2)) OPERATOR(pg_catalog.=)"
								" (SELECT pg_catalog.count(*) FROM (SELECT 1 FROM bgw_backfill.attempt a WHERE a.job OPERATOR(pg_catalog.=) $1"
								"  AND a.key OPERATOR(pg_catalog.=) ANY ($2) FOR UPDATE SKIP LOCKED) x)",
								2, types, values, NULL, SPI_OK_SELECT);
	all = DatumGetBool(result_column(0, 1, &isnull));
	SPI_freetuptable(SPI_tuptable);
	return all;
}

/*
 * The attempts that these rows were handed out for have failed: the next one
 * waits, twice as long each time; after max_attempts there is none.
 */
void
bbf_attempt_failed(const char *job, const BbfLeased *rows, int n, const char *error, int max_attempts)
{
	int32	   *attempts = palloc(sizeof(int32) * Max(n, 1));
	double	   *delays = palloc(sizeof(double) * Max(n, 1));

	for (int i = 0; i < n; i++)
	{
		attempts[i] = rows[i].attempt;
		delays[i] = bbf_throttle_retry_delay(rows[i].attempt - 1) / 1000.0;
	}
	came_back(job, rows, n, attempts, delays, error, max_attempts);
}

/* These rows were given back: as if they had not been handed out. */
void
bbf_attempt_returned(const char *job, const BbfLeased *rows, int n)
{
	int32	   *attempts = palloc(sizeof(int32) * Max(n, 1));
	double	   *delays = palloc0(sizeof(double) * Max(n, 1));

	for (int i = 0; i < n; i++)
		attempts[i] = rows[i].attempt - 1;
	came_back(job, rows, n, attempts, delays, NULL, PG_INT32_MAX);
}

/*
 * These rows of a group are pending and not handed out: those that nobody knows of are
 * due.  What is known stays as it is, but that it may have come from another group.
 */
void
bbf_attempt_remember(const char *job, const BbfLeased *rows, int n)
{
	Oid			types[] = {TEXTOID, TEXTARRAYOID, TEXTOID};
	char	  **keys = palloc(sizeof(char *) * Max(n, 1));
	const char *group = n > 0 ? rows[0].group : NULL;
	Datum		values[3];

	if (n == 0)
		return;
	for (int i = 0; i < n; i++)
		keys[i] = rows[i].key;
	values[0] = CStringGetTextDatum(job);
	values[1] = bbf_lease_text_array(keys, n);
	values[2] = group ? CStringGetTextDatum(group) : (Datum) 0;
	bbf_sql_catalog_kept("INSERT INTO bgw_backfill.attempt (job, key, group_key, attempts, next_at)"
					" SELECT $1, u.k, $3, 0, pg_catalog.clock_timestamp() FROM pg_catalog.unnest($2) u (k)"
					" ON CONFLICT DO NOTHING",
					3, types, values, group ? NULL : "  n", SPI_OK_INSERT);
	bbf_sql_catalog_kept("UPDATE bgw_backfill.attempt SET group_key = $3 WHERE ctid OPERATOR(pg_catalog.=) ANY (ARRAY("
						 "SELECT a.ctid FROM bgw_backfill.attempt a WHERE a.job OPERATOR(pg_catalog.=) $1"
						 " AND a.key OPERATOR(pg_catalog.=) ANY ($2) AND a.group_key IS DISTINCT FROM $3 FOR UPDATE SKIP LOCKED))",
						 3, types, values, group ? NULL : "  n", SPI_OK_UPDATE);
}

/*
 * The first rows of a group whose turn has come again, without those that are
 * handed out; returns how many.
 */
int
bbf_attempt_due(const char *job, const char *group, const BbfLeases *leases, int limit, BbfLeased *rows)
{
	Oid			types[] = {TEXTOID, TEXTOID, INT8OID, TEXTARRAYOID};
	Datum		values[] = {CStringGetTextDatum(job), group ? CStringGetTextDatum(group) : (Datum) 0, Int64GetDatum(limit),
	bbf_lease_taken(leases)};
	int			n;

	n = (int) bbf_sql_catalog_kept(psprintf("SELECT a.key, a.attempts FROM bgw_backfill.attempt a"
									   " WHERE a.job OPERATOR(pg_catalog.=) $1 AND a.group_key %s AND a.quarantined_at IS NULL"
									   " AND a.next_at OPERATOR(pg_catalog.<=) pg_catalog.clock_timestamp()"
									   " AND a.key OPERATOR(pg_catalog.<>) ALL ($4) ORDER BY a.next_at LIMIT $3",
									   group ? "OPERATOR(pg_catalog.=) $2" : "IS NULL AND $2 IS NULL"),
							  4, types, values, group ? NULL : " n  ", SPI_OK_SELECT);
	for (int i = 0; i < n; i++)
	{
		bool		isnull;

		rows[i].key = TextDatumGetCString(result_column(i, 1, &isnull));
		rows[i].group = group ? pstrdup(group) : NULL;
		rows[i].attempt = DatumGetInt32(result_column(i, 2, &isnull)) + 1;
	}
	SPI_freetuptable(SPI_tuptable);
	return n;
}

/* These rows are not pending any more; what somebody is at stays. */
void
bbf_attempt_forget(const char *job, char *const *keys, int n)
{
	Oid			types[] = {TEXTOID, TEXTARRAYOID};
	Datum		values[] = {CStringGetTextDatum(job), bbf_lease_text_array(keys, n)};

	bbf_sql_catalog_kept("DELETE FROM bgw_backfill.attempt WHERE ctid OPERATOR(pg_catalog.=) ANY (ARRAY("
					"SELECT a.ctid FROM bgw_backfill.attempt a WHERE a.job OPERATOR(pg_catalog.=) $1"
					" AND a.key OPERATOR(pg_catalog.=) ANY ($2) FOR UPDATE SKIP LOCKED))",
					2, types, values, NULL, SPI_OK_DELETE);
}

/* Take rows out of quarantine; keys 0: all of the job's.  Returns how many. */
int64
bbf_attempt_requeue(const char *job, Datum keys)
{
	Oid			types[] = {TEXTOID, TEXTARRAYOID};
	Datum		values[] = {CStringGetTextDatum(job), keys};

	return (int64) bbf_sql_catalog_kept(psprintf("UPDATE bgw_backfill.attempt SET attempts = 0, quarantined_at = NULL,"
											" next_at = pg_catalog.clock_timestamp()"
											" WHERE job OPERATOR(pg_catalog.=) $1 AND quarantined_at IS NOT NULL%s",
											keys ? " AND key OPERATOR(pg_catalog.=) ANY ($2)" : ""),
								   keys ? 2 : 1, types, values, NULL, SPI_OK_UPDATE);
}

/*
 * The key up to which a group has been passed: the highest of those that are noted, and
 * can still be read, as text; NULL: there is none.
 */
char *
bbf_attempt_passed_upto(const char *job, const BbfPair *pair, const char *group, Datum *upto)
{
	Oid			types[] = {TEXTOID, TEXTOID};
	Datum		values[] = {CStringGetTextDatum(job), group ? CStringGetTextDatum(group) : (Datum) 0};
	int			n = (int) bbf_sql_catalog_kept(psprintf("SELECT key FROM bgw_backfill.passed WHERE job OPERATOR(pg_catalog.=) $1 AND group_key %s",
													group ? "OPERATOR(pg_catalog.=) $2" : "IS NULL AND $2 IS NULL"),
										   2, types, values, group ? NULL : " n", SPI_OK_SELECT);
	char	  **texts = palloc(sizeof(char *) * Max(n, 1));
	Datum	   *keys = palloc(sizeof(Datum) * Max(n, 1));
	int		   *which = palloc(sizeof(int) * Max(n, 1));
	char	   *found = NULL;

	for (int i = 0; i < n; i++)
		texts[i] = bbf_sql_text(i, 1);
	SPI_freetuptable(SPI_tuptable);
	n = bbf_pair_keys_in(pair, texts, n, keys, which);
	for (int i = 0; i < n; i++)
	{
		if (found && bbf_pair_compare_keys(pair, keys[i], *upto) <= 0)
			continue;
		found = texts[which[i]];
		*upto = keys[i];
	}
	return found;
}

/*
 * All that is pending in a group up to a key, which is beyond all that were noted, has
 * been handed out before.
 */
void
bbf_attempt_pass(const char *job, const char *group, const char *key)
{
	Oid			types[] = {TEXTOID, TEXTOID, TEXTOID};
	Datum		values[] = {CStringGetTextDatum(job), group ? CStringGetTextDatum(group) : (Datum) 0,
	CStringGetTextDatum(key)};

	bbf_sql_catalog_kept(psprintf("WITH gone AS (DELETE FROM bgw_backfill.passed WHERE ctid OPERATOR(pg_catalog.=) ANY (ARRAY("
							 "  SELECT p.ctid FROM bgw_backfill.passed p WHERE p.job OPERATOR(pg_catalog.=) $1 AND p.group_key %s"
							 "  FOR UPDATE SKIP LOCKED)) RETURNING looked_on)"
							 " INSERT INTO bgw_backfill.passed (job, group_key, key, looked_on) SELECT $1, $2, $3,"
							 "  coalesce((SELECT pg_catalog.min(g.looked_on) FROM gone g), pg_catalog.clock_timestamp())",
							 group ? "OPERATOR(pg_catalog.=) $2" : "IS NULL AND $2 IS NULL"),
					3, types, values, group ? NULL : " n ", SPI_OK_INSERT);
}

/*
 * The passed group that has not been looked at for longest, and where the look was
 * interrupted (NULL: nowhere).  False: each was looked at in the last so many seconds.
 */
bool
bbf_attempt_next_passed(const char *job, double seconds, char **group, char **looked_at)
{
	Oid			types[] = {TEXTOID, FLOAT8OID};
	Datum		values[] = {CStringGetTextDatum(job), Float8GetDatum(seconds)};
	bool		found;

	found = bbf_sql_catalog_kept("SELECT group_key, looked_at FROM bgw_backfill.passed WHERE job OPERATOR(pg_catalog.=) $1"
							" AND (looked_at IS NOT NULL OR looked_on OPERATOR(pg_catalog.<) (pg_catalog.clock_timestamp()"
							"  OPERATOR(pg_catalog.-) pg_catalog.make_interval(secs => $2)))"
							" ORDER BY looked_at IS NOT NULL DESC, looked_on LIMIT 1",
							2, types, values, NULL, SPI_OK_SELECT) > 0;
	if (found)
	{
		*group = bbf_sql_text(0, 1);
		*looked_at = bbf_sql_text(0, 2);
	}
	SPI_freetuptable(SPI_tuptable);
	return found;
}

/*
 * A passed group has been looked at, as far as looked_at (NULL: to the end).  Its rows
 * become one; key NULL: none, nothing is pending below it.  Rows of claims that are
 * not committed are not seen, and stay.
 */
void
bbf_attempt_looked_below(const char *job, const char *group, const char *key, const char *looked_at)
{
	Oid			types[] = {TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	Datum		values[] = {CStringGetTextDatum(job), group ? CStringGetTextDatum(group) : (Datum) 0,
		key ? CStringGetTextDatum(key) : (Datum) 0, looked_at ? CStringGetTextDatum(looked_at) : (Datum) 0};
	char		nulls[] = {' ', group ? ' ' : 'n', key ? ' ' : 'n', looked_at ? ' ' : 'n', '\0'};

	bbf_sql_catalog_kept(psprintf("DELETE FROM bgw_backfill.passed WHERE ctid OPERATOR(pg_catalog.=) ANY (ARRAY("
								  "SELECT p.ctid FROM bgw_backfill.passed p WHERE p.job OPERATOR(pg_catalog.=) $1 AND p.group_key %s"
								  " FOR UPDATE SKIP LOCKED))",
								  group ? "OPERATOR(pg_catalog.=) $2" : "IS NULL AND $2 IS NULL"),
						 2, types, values, nulls, SPI_OK_DELETE);
	if (key)
		bbf_sql_catalog_kept("INSERT INTO bgw_backfill.passed (job, group_key, key, looked_at) VALUES ($1, $2, $3, $4)",
						4, types, values, nulls, SPI_OK_INSERT);
}
