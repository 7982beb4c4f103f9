/*
 * upkeep.c
 *		Keeping what was handed out from growing, and from being forgotten.
 *
 * In small batches after each pending scan, by the worker alone:
 *
 *	claims		what is answered leaves them; leases that have ended count as
 *				failures, whether somebody claims or not; what is empty goes
 *	attempts	rows that are not pending any more (matched, deleted, not eligible)
 *				go.  Locked first, then looked at with a snapshot taken after
 *				that: a row may become pending, and fail again, meanwhile
 *	passed		what became pending below the key up to which a group was passed,
 *				or came there from another group, and has no row among the group's
 *				attempts, is given one, due at once
 *
 * A row that somebody has locked is passed by: it comes with a later scan.
 */
#include "postgres.h"

#include "answered.h"
#include "attempt.h"
#include "catalog/pg_type.h"
#include "handoff.h"
#include "handout.h"
#include "listed.h"
#include "sql.h"
#include "turn.h"
#include "txn.h"
#include "upkeep.h"
#include "utils/builtins.h"
#include "value.h"

/* Where the next batch begins; NULL: at the start. */
static void
save_cursor(const BbfJob *job, const char *column, const char *cursor)
{
	Oid			types[] = {TEXTOID, TEXTOID};
	Datum		values[] = {CStringGetTextDatum(job->name), cursor ? CStringGetTextDatum(cursor) : (Datum) 0};

	bbf_sql_catalog(psprintf("UPDATE bgw_backfill.job_state SET %s = $2"
							 " WHERE job OPERATOR(pg_catalog.=) $1 AND %s IS DISTINCT FROM $2", column, column),
					2, types, values, cursor ? NULL : " n", SPI_OK_UPDATE);
}

/* One batch of claims, of about so many rows.  False: all have been looked at. */
bool
bbf_upkeep_claims(BbfJob *job, int rows)
{
	BbfPair    *pair = bbf_pair_load(job);
	int64	   *tokens;
	int			n;
	int			done = 0;
	int			i;

	bbf_txn_arm(bbf_job_setting(job, BBF_STATEMENT_TIMEOUT));
	n = bbf_lease_open(job->name, job->claim_cursor, rows, &tokens);
	for (i = 0; i < n && done < rows; i++)
	{
		BbfClaim   *claim = bbf_lease_lock_claim(job->name, tokens[i], false);

		if (claim)
			(void) bbf_handout_settle(job, pair, claim);
		done += claim ? claim->n : 0;
	}
	if (i == n && n < rows)
	{
		bbf_lease_forget_answered(job->name);
		bbf_answered_forget(job->name);
		bbf_turn_forget_stretches(job->name);
		bbf_handoff_forget_waits(job->name);
	}
	save_cursor(job, "claim_cursor", i == n && n < rows ? NULL : psprintf(INT64_FORMAT, tokens[i - 1]));
	bbf_txn_disarm();
	return i < n || n == rows;
}

/* One batch of the rows that came back.  False: the end is reached. */
bool
bbf_upkeep_attempts(BbfJob *job, int rows)
{
	BbfPair    *pair = bbf_pair_load(job);
	Oid			types[] = {TEXTOID, TEXTOID, INT8OID};
	Datum		values[] = {CStringGetTextDatum(job->name),
		CStringGetTextDatum(job->attempt_cursor ? job->attempt_cursor : ""), Int64GetDatum(rows)};
	char	  **keys;
	bool	   *pending;
	char	   *end = NULL;
	int			gone = 0;
	int			n;

	bbf_txn_arm(bbf_job_setting(job, BBF_STATEMENT_TIMEOUT));
	n = (int) bbf_sql_catalog("SELECT a.key FROM bgw_backfill.attempt a WHERE a.job OPERATOR(pg_catalog.=) $1"
							  " AND a.key OPERATOR(pg_catalog.>) $2 ORDER BY a.key LIMIT $3 FOR UPDATE SKIP LOCKED",
							  3, types, values, NULL, SPI_OK_SELECT);
	keys = palloc(sizeof(char *) * Max(n, 1));
	for (int i = 0; i < n; i++)
		keys[i] = bbf_sql_text(i, 1);
	SPI_freetuptable(SPI_tuptable);
	if (n == rows)
		end = keys[n - 1];
	pending = bbf_handout_pending_texts(job, pair, keys, n, false);
	for (int i = 0; i < n; i++)
	{
		if (!pending[i])
			keys[gone++] = keys[i];
	}
	if (gone > 0)
		bbf_attempt_forget(job->name, keys, gone);
	save_cursor(job, "attempt_cursor", end);
	bbf_txn_disarm();
	return end != NULL;
}

/* The rows that are in no claim. */
static int
not_handed_out(const BbfJob *job, const char *group, char **keys, int n, BbfLeased *rows)
{
	BbfLeases  *leases = bbf_lease_read(job->name);
	int			found = 0;

	for (int i = 0; i < n; i++)
	{
		if (bbf_lease_find(leases, keys[i]) == NULL)
			rows[found++] = (BbfLeased) {keys[i], unconstify(char *, group), 1};
	}
	return found;
}

/*
 * Look at the next rows of a group, so many, after looked_at, up to the passed key.  Returns
 * how far it came, or NULL at the end; any: there were rows.
 */
static char *
look_below(const BbfJob *job, const BbfPair *pair, const char *group, const char *looked_at, Datum upto, int limit, bool *any)
{
	BbfListed	listed;
	BbfListedFrom from = group ? (looked_at ? BBF_LISTED_GROUP_AFTER : BBF_LISTED_GROUP) :
		(looked_at ? BBF_LISTED_NULLS_AFTER : BBF_LISTED_NULLS);
	char	  **keys = palloc(sizeof(char *) * limit);
	BbfLeased  *rows = palloc(sizeof(BbfLeased) * limit);
	int			n = 0;
	uint64		read;

	bbf_listed_begin(&listed, job, pair);
	read = bbf_listed_read(&listed, from, group ? bbf_pair_group_in(pair, group) : (Datum) 0,
						   looked_at ? bbf_pair_key_in(pair, looked_at) : (Datum) 0, limit);
	for (uint64 r = 0; r < read; r++)
	{
		bool		isnull;
		Datum		key = SPI_getbinval(SPI_tuptable->vals[r], SPI_tuptable->tupdesc, 1, &isnull);

		if (bbf_pair_compare_keys(pair, key, upto) > 0)
			break;
		keys[n++] = bbf_pair_key_out(pair, key);
	}
	SPI_freetuptable(SPI_tuptable);
	bbf_listed_end(&listed);
	bbf_attempt_remember(job->name, rows, not_handed_out(job, group, keys, n, rows));
	*any = n > 0;
	return n == limit ? keys[n - 1] : NULL;
}

/*
 * One batch of one group that was passed: the one not looked at for longest.  False:
 * all of them have been looked at since the scan before.
 */
bool
bbf_upkeep_passed(BbfJob *job, int rows)
{
	BbfPair    *pair = bbf_pair_load(job);
	char	   *group;
	char	   *upto;
	char	   *looked_at = NULL;
	char	   *end;
	Datum		highest = (Datum) 0;
	bool		any;

	if (!bbf_attempt_next_passed(job->name, bbf_job_setting(job, BBF_SCAN_INTERVAL) / 2.0, &group, &looked_at))
		return false;
	if (group && !bbf_pair_group_is_readable(pair, job->name, group))
		upto = NULL;
	else
		upto = bbf_attempt_passed_upto(job->name, pair, group, &highest);
	if (upto == NULL)
	{
		bbf_attempt_looked_below(job->name, group, NULL, NULL);
		return true;
	}
	if (looked_at && !bbf_value_is_readable(pair->owner, pair->key_type, looked_at))
		looked_at = NULL;
	bbf_txn_arm(bbf_job_setting(job, BBF_STATEMENT_TIMEOUT));
	end = look_below(job, pair, group, looked_at, highest, rows, &any);
	bbf_attempt_looked_below(job->name, group, any || looked_at ? upto : NULL, end);
	bbf_txn_disarm();
	return true;
}
