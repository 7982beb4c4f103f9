/*
 * handout.c
 *		Handing out pending rows under a lease, up to a cap.
 *
 * Under the job's lock (see lease.c): what is handed out is read, leases that have
 * ended are settled, room is made under the cap, rows are chosen (choice.c), and the
 * claim is written.
 *
 * The cap counts what is handed out and not answered.  A target row that arrives
 * tells no claim of it, which would cost its writer something: whoever needs the
 * room looks.
 */
#include "postgres.h"

#include "attempt.h"
#include "choice.h"
#include "handout.h"
#include "listed.h"
#include "session.h"
#include "txn.h"
#include "utils/timestamp.h"

#define NOT_SEEN_ANSWERED 5000	/* handed out and not known to be answered: look */

/*
 * Which of these keys are pending, in their order.  only_matches: a row that is
 * gone, or not eligible any more, may count as pending.
 */
bool *
bbf_handout_pending(const BbfJob *job, const BbfPair *pair, const Datum *keys, int n, bool only_matches)
{
	BbfListed	listed;
	bool	   *pending;

	bbf_listed_begin(&listed, job, pair);
	pending = bbf_listed_among(&listed, keys, n, only_matches);
	bbf_listed_end(&listed);
	return pending;
}

/*
 * The same for keys as text, which were stored.  One that can no longer be read is not
 * pending.
 */
bool *
bbf_handout_pending_texts(const BbfJob *job, const BbfPair *pair, char *const *texts, int n, bool only_matches)
{
	Datum	   *keys = palloc(sizeof(Datum) * Max(n, 1));
	int		   *which = palloc(sizeof(int) * Max(n, 1));
	bool	   *result = palloc0(sizeof(bool) * Max(n, 1));
	int			readable = bbf_pair_keys_in(pair, texts, n, keys, which);
	bool	   *pending = bbf_handout_pending(job, pair, keys, readable, only_matches);

	for (int i = 0; i < readable; i++)
		result[which[i]] = pending[i];
	return result;
}

/* Which rows of a claim are pending. */
static bool *
claim_pending(const BbfJob *job, const BbfPair *pair, const BbfClaim *claim, bool only_matches)
{
	return bbf_handout_pending_texts(job, pair, bbf_lease_keys(claim), claim->n, only_matches);
}

/* a locked claim whose lease has ended, and its rows that are still pending */
typedef struct Ended
{
	const BbfJob *job;
	const BbfClaim *claim;
	const BbfLeased *failed;
	int			n;
} Ended;

static void
end_claim(void *arg)
{
	const Ended *ended = arg;

	bbf_attempt_failed(ended->job->name, ended->failed, ended->n, "the lease expired",
					   bbf_job_setting(ended->job, BBF_MAX_ATTEMPTS));
	bbf_lease_keep(ended->claim, NULL);
}

/*
 * An attempt has failed for rows of a claim, and nothing is left of it; unless that
 * had to wait for somebody who is at one of those attempts: the upkeep, which locks many of
 * them at once, or the open transaction of a consumer.  False, and nothing is changed, if so.
 */
static bool
end_claim_at_once(Ended *ended)
{
	int			nestlevel;
	ErrorData  *error;

	if (!bbf_attempt_try_lock(ended->job->name, ended->failed, ended->n))
		return false;
	/* what is about to be written there, and not seen yet */
	nestlevel = bbf_session_pin_waits(1);
	error = bbf_txn_try(end_claim, ended);
	if (error && error->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE)
		ReThrowError(error);
	bbf_session_unpin(nestlevel);
	return error == NULL;
}

/*
 * Settle a locked claim: what is answered leaves it; if its lease has ended, an
 * attempt has failed for each row that is still pending, and nothing is left.  False: that
 * has to wait, and all stays as it is.
 */
bool
bbf_handout_settle(const BbfJob *job, const BbfPair *pair, const BbfClaim *claim)
{
	bool		expired = claim->expires_at <= GetCurrentTimestamp();
	BbfLeased  *failed = palloc(sizeof(BbfLeased) * Max(claim->n, 1));
	bool	   *pending = claim_pending(job, pair, claim, false);
	int			n = 0;

	for (int i = 0; i < claim->n; i++)
	{
		if (pending[i])
			failed[n++] = claim->rows[i];
	}
	if (expired)
		return end_claim_at_once(&(Ended) {job, claim, failed, n});
	if (n < claim->stored)
		bbf_lease_keep(claim, pending);
	return true;
}

/* All that a claim holds counts, although its lease has ended. */
static void
count_all(BbfLeases *leases, const BbfClaim *claim)
{
	for (int i = 0; i < claim->n; i++)
		bbf_lease_count(leases, claim->rows[i].key, true);
}

/*
 * Settle the leases that have ended.  What somebody else is at is his, and counts: he
 * may be about to extend it.
 */
static void
expire(BbfHandout *handout, BbfLeases *leases)
{
	TimestampTz now = GetCurrentTimestamp();

	for (int i = 0; i < leases->nclaims; i++)
	{
		BbfClaim   *claim;

		if (leases->claims[i].expires_at > now)
			continue;
		claim = leases->claims[i].committed ?
			bbf_lease_lock_claim(handout->job->name, leases->claims[i].token, true) : NULL;
		if (claim == NULL)
		{
			count_all(leases, &leases->claims[i]);
			continue;
		}
		if (!bbf_handout_settle(handout->job, handout->pair, claim))
		{
			count_all(leases, &leases->claims[i]);
			continue;
		}
		for (int k = 0; k < claim->n; k++)
			hash_search(leases->taken, &claim->rows[k].key, HASH_REMOVE, NULL);
	}
}

/*
 * Make room under max_leased: claims all of whose rows are answered, or without
 * only_matches not pending for whatever reason, are emptied, from the oldest on; of
 * others, those rows are not counted.
 */
static void
make_room(BbfHandout *handout, BbfLeases *leases, int64 want, bool only_matches)
{
	int64		limit = bbf_job_setting(handout->job, BBF_MAX_LEASED);
	TimestampTz now = GetCurrentTimestamp();
	int64		looked_at = 0;

	for (int i = 0; i < leases->nclaims; i++)
	{
		BbfClaim   *claim = &leases->claims[i];
		int			answered = 0;
		bool	   *pending;

		if (leases->outstanding + want <= Min(limit, NOT_SEEN_ANSWERED) || looked_at > NOT_SEEN_ANSWERED ||
			(leases->outstanding + want <= limit && looked_at > 2 * want))
			break;
		if (claim->n == 0 || claim->expires_at <= now || !claim->committed)
			continue;
		pending = claim_pending(handout->job, handout->pair, claim, only_matches);
		looked_at += claim->n;
		for (int k = 0; k < claim->n; k++)
		{
			if (!pending[k])
				bbf_lease_count(leases, claim->rows[k].key, false);
			answered += pending[k] ? 0 : 1;
		}
		if (answered == claim->n)
			bbf_lease_empty(handout->job->name, claim->token, claim->n);
	}
}

/*
 * Hand out rows.  What is handed out and unanswered never exceeds max_leased,
 * others' claims that are not committed included.
 */
void
bbf_handout_claim(BbfHandout *handout, int64 lease_ms)
{
	int64		limit = bbf_job_setting(handout->job, BBF_MAX_LEASED);
	int64		want = Min(handout->max_rows, limit);
	BbfLeases  *leases;

	bbf_lease_lock(handout->job->name);
	leases = bbf_lease_read(handout->job->name);
	expire(handout, leases);
	make_room(handout, leases, want, true);
	/*
	 * Source rows that are deleted, or not eligible any more, are rarer, and a look
	 * more for each.  Not in a refill: the table of pending keys does not have them all.
	 */
	if (leases->outstanding + want > limit && handout->job->phase == BBF_PHASE_LIVE)
		make_room(handout, leases, want, false);
	want = Min(want, limit - leases->outstanding);
	handout->n = 0;
	if (want > 0)
	{
		bbf_choice_run(handout, leases, (int) want, true);
		/* one that hands out nothing keeps the account of what it has pruned */
		if (handout->n > 0 || handout->pruned > 0)
			handout->token = bbf_lease_insert(handout->job->name, handout->claimed_by, handout->rows, handout->n, handout->n > 0 ? lease_ms : 0,
											  handout->out_of_turn ? leases->last_group : handout->last_group,
											  handout->pruned);
	}
	bbf_lease_unlock(handout->job->name);
}

/* Is there a row that could be handed out now? */
bool
bbf_handout_possible(BbfHandout *handout)
{
	BbfLeases  *leases = bbf_lease_read(handout->job->name);

	handout->no_room = leases->outstanding >= bbf_job_setting(handout->job, BBF_MAX_LEASED);
	if (handout->no_room)
		return false;
	handout->prunes_nothing = true;
	bbf_choice_run(handout, leases, 1, false);
	return handout->n > 0;
}
