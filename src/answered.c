/*
 * answered.c
 *		Claimed rows whose target row has come, and is gone again.
 *
 * A claim is gone for a row when its target row arrives, and whoever meets the row
 * in the claim finds out by looking for the match.  If the match is deleted before
 * anybody has looked, it would look as if the row had never been answered.  So the
 * trigger that follows the deletion notes it here, with a token of its own: claims
 * with a lower one do not hold the row any more.  A row is added, and no claim is
 * touched, so that nobody waits for a writer.  Only rows that did not count as
 * pending until then are noted: a target row that was no match was no answer.
 *
 * (Mode watermark has no trigger: there such a row is the claim's until its lease
 * ends.)
 */
#include "postgres.h"

#include "answered.h"
#include "catalog/pg_type.h"
#include "handout.h"
#include "sql.h"
#include "utils/builtins.h"

/* Of these keys, the ones that a claim holds and that do not count as pending.  Returns how many. */
static int
held_and_answered(const char *job_name, char *const *keys, int n, char **held)
{
	BbfLeases  *leases = bbf_lease_read(job_name);
	BbfJob	   *job;
	BbfPair    *pair;
	Datum	   *typed;
	bool	   *pending;
	int			nheld = 0;
	int			answered = 0;

	for (int i = 0; i < n; i++)
	{
		if (bbf_lease_find(leases, keys[i]))
			held[nheld++] = keys[i];
	}
	if (nheld == 0 || (job = bbf_job_load(job_name)) == NULL)
		return 0;
	pair = bbf_pair_load(job);
	typed = palloc(sizeof(Datum) * nheld);
	for (int i = 0; i < nheld; i++)
		typed[i] = bbf_pair_key_in(pair, held[i]);
	pending = bbf_handout_pending(job, pair, typed, nheld, false);
	for (int i = 0; i < nheld; i++)
	{
		if (!pending[i])
			held[answered++] = held[i];
	}
	return answered;
}

/*
 * The target rows of these keys are gone, or have changed in what counts, and the
 * job does not know it yet.
 */
void
bbf_answered_note(const char *job, char *const *keys, int n)
{
	Oid			types[] = {TEXTOID, TEXTARRAYOID};
	Datum		values[2] = {CStringGetTextDatum(job)};
	char	  **held = palloc(sizeof(char *) * Max(n, 1));
	int			nheld = held_and_answered(job, keys, n, held);

	if (nheld == 0)
		return;
	values[1] = bbf_lease_text_array(held, nheld);
	bbf_sql_catalog("INSERT INTO bgw_backfill.answered (job, key, token)"
					" SELECT $1, u.k, pg_catalog.nextval('bgw_backfill.claim_token') FROM pg_catalog.unnest($2) u (k)",
					2, types, values, NULL, SPI_OK_INSERT);
}

/* Take off claims what was answered since they were made. */
void
bbf_answered_drop(const char *job, BbfClaim *claims, int nclaims)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(job)};
	uint64		n = bbf_sql_catalog_kept("SELECT key, token FROM bgw_backfill.answered WHERE job OPERATOR(pg_catalog.=) $1",
									1, types, values, NULL, SPI_OK_SELECT);

	for (uint64 r = 0; r < n; r++)
	{
		char	   *key = bbf_sql_text(r, 1);
		bool		isnull;
		int64		token = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[r], SPI_tuptable->tupdesc, 2, &isnull));

		for (int c = 0; c < nclaims; c++)
		{
			BbfClaim   *claim = &claims[c];
			int			kept = 0;

			for (int i = 0; claim->token < token && i < claim->n; i++)
			{
				if (strcmp(claim->rows[i].key, key) != 0)
					claim->rows[kept++] = claim->rows[i];
			}
			if (claim->token < token)
				claim->n = kept;
		}
	}
	SPI_freetuptable(SPI_tuptable);
}

/* Forget what no open claim is older than; late, for one may not be committed yet. */
void
bbf_answered_forget(const char *job)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(job)};

	bbf_sql_catalog("DELETE FROM bgw_backfill.answered WHERE job OPERATOR(pg_catalog.=) $1"
					" AND noted_at OPERATOR(pg_catalog.<) (pg_catalog.clock_timestamp()"
					"  OPERATOR(pg_catalog.-) '10 minutes'::pg_catalog.interval)"
					" AND NOT EXISTS (SELECT FROM bgw_backfill.claim c WHERE c.job OPERATOR(pg_catalog.=) $1"
					"  AND c.keys OPERATOR(pg_catalog.<>) '{}' AND c.token OPERATOR(pg_catalog.<) answered.token)",
					1, types, values, NULL, SPI_OK_DELETE);
}
