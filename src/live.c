/*
 * live.c
 *		Phase live: what is due, and what follows a pending scan.
 *
 * After a scan come the prune of stale rows, the upkeep of what was handed out, a
 * NOTIFY if there is something to hand out, and the calls of the handler.  Each is
 * a number of small transactions, and bounded: the rest comes after the next scan.
 */
#include "postgres.h"

#include "change.h"
#include "commands/async.h"
#include "handoff.h"
#include "handout.h"
#include "index.h"
#include "install.h"
#include "live.h"
#include "mode.h"
#include "move.h"
#include "outcome.h"
#include "prune.h"
#include "scan.h"
#include "session.h"
#include "txn.h"
#include "upkeep.h"
#include "utils/timestamp.h"
#include "watermark.h"

#define MOVE_RETRY_MS		500		/* while snapshots from before a move are held */
#define BATCHES_AT_ONCE		50		/* of pruning, and of upkeep, after a scan */
#define BATCHES_MS			10000	/* all of them together, but for the last of each */

/* who listens hears of jobs that have something to hand out */
#define CHANNEL "bgw_backfill"

/* A batch of something, in the transaction that is open.  False: there is no more. */
typedef bool (*LiveBatch) (BbfJob *job);

static bool
prune_batch(BbfJob *job)
{
	return bbf_mode_lookup(job->mode)->stale && bbf_prune_batch(job);
}

/* A few batches, as long as the job is there and live; the scan began then. */
static void
batches(const char *name, LiveBatch batch, TimestampTz began)
{
	for (int i = 0; i < BATCHES_AT_ONCE; i++)
	{
		BbfJob	   *job = bbf_job_begin(name);
		bool		more;

		if (job == NULL)
			return;
		more = job->phase == BBF_PHASE_LIVE && !job->uninstall && batch(job);
		bbf_txn_commit();
		if (!more || TimestampDifferenceExceeds(began, GetCurrentTimestamp(), BATCHES_MS))
			return;
	}
}

/*
 * Wake whoever listens, if there is something to hand out.  Here and not in a
 * trigger: a transaction that has sent a NOTIFY takes a lock on the whole database
 * when it commits, held until its commit record is written, and the application's
 * commits would stand in line one behind the other.
 */
static void
notify(const char *name)
{
	BbfJob	   *job = bbf_job_begin(name);
	BbfHandout	handout = {.job = job, .max_rows = 1};

	if (job == NULL)
		return;
	bbf_txn_arm(bbf_job_setting(job, BBF_SCAN_TIMEOUT));
	handout.pair = bbf_pair_load(job);
	if (job->phase == BBF_PHASE_LIVE && !job->uninstall && bbf_handout_possible(&handout))
		Async_Notify(CHANNEL, job->name);
	bbf_txn_disarm();
	bbf_job_clear_retries(job); /* all of it went well */
	bbf_txn_commit();
}

/* The pending scan, and all that follows it. */
static void
scan(BbfJob *job)
{
	TimestampTz began = GetCurrentTimestamp();

	bbf_outcome_in_scan(true);
	bbf_scan_run(job);
	bbf_txn_commit();
	batches(job->name, prune_batch, began);
	batches(job->name, bbf_upkeep_claims, began);
	batches(job->name, bbf_upkeep_attempts, began);
	batches(job->name, bbf_upkeep_passed, began);
	notify(job->name);
	bbf_outcome_in_scan(false);
	if (job->handler)
		bbf_handoff_run(job->name);
	job->scan_at = GetCurrentTimestamp();
}

/*
 * One step, in the transaction that is open, which it commits: a change that was
 * asked for, the index, the pass before a scan, the scan.  The installation is checked
 * before a scan, and before an index is built that may have gone with its column.
 * due: when the job is due again.  False: it is a sweep that is due; nothing was done
 * or committed.
 */
bool
bbf_live_step(BbfJob *job, TimestampTz *due)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		scan_is_due = bbf_job_next_scan(job) <= now;
	bool		has_index = bbf_index_is_there(job);

	*due = now;
	if (job->successor_of)
	{
		bool		moved = bbf_move_finish(job);

		bbf_txn_commit();
		if (!moved)
		{
			bbf_outcome_wait(job->name, "older snapshots", MOVE_RETRY_MS);
			*due = TimestampTzPlusMilliseconds(now, MOVE_RETRY_MS);
		}
		return true;
	}
	if ((scan_is_due || !has_index) && !bbf_install_check(job))
		;						/* back to phase install */
	else if (!has_index)
		bbf_job_enter_phase(job, BBF_PHASE_INDEX);
	else if (job->changing)
		bbf_change_conditions(job);
	else if (scan_is_due && bbf_watermark_is_due(job))
	{
		bbf_watermark_step(job);
		bbf_job_clear_retries(job);
		*due = 0;
	}
	else if (scan_is_due)
	{
		scan(job);
		*due = bbf_job_next_due(job);
		return true;
	}
	else if (bbf_job_sweep_is_due(job, now))
		return false;
	bbf_txn_commit();
	if (*due == 0)
		*due = bbf_job_next_due(job);
	return true;
}
