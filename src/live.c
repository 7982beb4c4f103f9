/*
 * live.c
 *		Phase live: what is due, and what follows a pending scan.
 *
 * After a scan come the prune of stale rows, the upkeep of what was handed out, a
 * NOTIFY if there is something to hand out, and the calls of the handler.  Each is a
 * stage: a number of small transactions, and bounded; the rest comes after the next
 * scan.  A stage that runs out of time, or does not get a lock, is cut short, which is
 * shown, and the stages after it have their turn all the same.
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
#include "throttle.h"
#include "txn.h"
#include "upkeep.h"
#include "utils/timestamp.h"
#include "watermark.h"

#define MOVE_RETRY_MS		500		/* while snapshots from before a move are held */
#define BATCHES_AT_ONCE		50		/* of pruning, and of upkeep, after a scan */
#define BATCHES_MS			10000	/* all of them together, but for the last of each */
#define BATCH_ROWS			1000

/* who listens hears of jobs that have something to hand out */
#define CHANNEL "bgw_backfill"

/* A batch of something, of so many rows, in the transaction that is open.  False: there is no more. */
typedef bool (*LiveBatch) (BbfJob *job, int rows);

/* what a scan and the stages after it share */
typedef struct Live
{
	BbfJob	   *job;			/* as it was before the scan */
	TimestampTz began;
	bool		part;			/* of a round of scans: nothing follows */
} Live;

static bool
prune_batch(BbfJob *job, int rows)
{
	return bbf_mode_lookup(job->mode)->stale && bbf_prune_batch(job, rows);
}

/*
 * A few batches, as long as the job is there and live.  They are smaller after one has
 * run out of time, and grow again.
 */
static void
batches(const Live *live, LiveBatch batch)
{
	for (int i = 0; i < BATCHES_AT_ONCE; i++)
	{
		BbfJob	   *job = bbf_job_begin(live->job->name);
		bool		more;

		if (job == NULL)
			return;
		more = job->phase == BBF_PHASE_LIVE && !job->uninstall && batch(job, bbf_throttle_share(job, BATCH_ROWS));
		if (more && job->batch_size > 0 && bbf_throttle_grown_size(job, job->batch_size) > job->batch_size)
			bbf_job_set_batch_size(job, bbf_throttle_grown_size(job, job->batch_size));
		bbf_txn_commit();
		if (!more || TimestampDifferenceExceeds(live->began, GetCurrentTimestamp(), BATCHES_MS))
			return;
	}
}

/* The pending scan, or a part of one, in the transaction that is open. */
static void
scan_stage(const Live *live)
{
	bbf_scan_run(live->job, live->part);
	bbf_txn_commit();
}

/*
 * Wake whoever listens, if there is something to hand out.  Here and not in a
 * trigger: a transaction that has sent a NOTIFY takes a lock on the whole database
 * when it commits, held until its commit record is written, and the application's
 * commits would stand in line one behind the other.
 */
static void
notify_stage(const Live *live)
{
	BbfJob	   *job = bbf_job_begin(live->job->name);
	BbfHandout	handout = {.job = job, .max_rows = 1};

	if (job == NULL)
		return;
	bbf_txn_arm(bbf_job_setting(job, BBF_SCAN_TIMEOUT));
	handout.pair = bbf_pair_load(job);
	if (job->phase == BBF_PHASE_LIVE && !job->uninstall && bbf_handout_possible(&handout))
		Async_Notify(CHANNEL, job->name);
	bbf_txn_disarm();
	bbf_txn_commit();
}

static void
handler_stage(const Live *live)
{
	live->job->handoff_at = bbf_handoff_run(live->job->name);
}

/* A stage is a call, or batches. */
static const struct
{
	void		(*call) (const Live *live);
	LiveBatch	batch;
}			stages[] = {
	[BBF_STAGE_SCAN] = {.call = scan_stage},
	[BBF_STAGE_PRUNE] = {.batch = prune_batch},
	[BBF_STAGE_CLAIMS] = {.batch = bbf_upkeep_claims},
	[BBF_STAGE_ATTEMPTS] = {.batch = bbf_upkeep_attempts},
	[BBF_STAGE_PASSED] = {.batch = bbf_upkeep_passed},
	[BBF_STAGE_NOTIFY] = {.call = notify_stage},
	[BBF_STAGE_HANDLER] = {.call = handler_stage}
};

/* Run a stage.  That it ran out of time, or was kept waiting, is no error of the job's. */
static void
run_stage(const Live *live, BbfStage stage)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		if (stages[stage].batch)
			batches(live, stages[stage].batch);
		else
			stages[stage].call(live);
	}
	PG_CATCH();
	{
		bool		timed_out = geterrcode() == ERRCODE_QUERY_CANCELED && bbf_txn_timed_out();
		ErrorData  *edata;

		if (!timed_out && geterrcode() != ERRCODE_LOCK_NOT_AVAILABLE)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		FlushErrorState();
		bbf_txn_abort();
		MemoryContextSwitchTo(context);
		bbf_outcome_cut_short(live->job, stage, edata, timed_out);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
}

/* What went well is not being retried any more. */
static void
clear_retries(const char *name)
{
	BbfJob	   *job = bbf_job_begin(name);

	if (job == NULL)
		return;
	bbf_job_clear_retries(job);
	bbf_txn_commit();
}

/* The pending scan, and all that follows it. */
static void
scan(BbfJob *job)
{
	Live		live = {.job = job, .began = GetCurrentTimestamp()};

	for (BbfStage stage = 0; stage < BBF_STAGES; stage++)
	{
		if (stage != BBF_STAGE_HANDLER || job->handler)
			run_stage(&live, stage);
	}
	if (job->retries > 0 || job->waits > 0)
		clear_retries(job->name);
	job->scan_at = GetCurrentTimestamp();
}

/*
 * One step, in the transaction that is open, which it commits: a change that was
 * asked for, the index, the pass before a scan, the scan, the next part of its round, the
 * handler's next round.  The installation is checked
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
	else if (bbf_job_next_part(job) != 0 && bbf_job_next_part(job) <= now)
	{
		run_stage(&(Live) {.job = job, .part = true}, BBF_STAGE_SCAN);
		*due = bbf_job_next_due(job);
		return true;
	}
	else if (job->handler && job->handoff_at != 0 && job->handoff_at <= now)
	{
		bbf_txn_commit();
		run_stage(&(Live) {.job = job}, BBF_STAGE_HANDLER);
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
