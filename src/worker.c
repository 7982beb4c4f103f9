/*
 * worker.c
 *		A worker: walks the phases of one owner's due jobs in one database,
 *		connected as that owner, one step of each job in turn.
 *
 * A step is one transaction (but for phase index, whose statements commit on
 * their own).  Between two steps no transaction is open: the worker sleeps on
 * its latch, or exits when nothing is due soon.  Everything that a step needs
 * to know it reads anew, so a change of a job or a setting takes effect at the
 * next batch.
 *
 * When a worker leaves although something is due, it is because others wait for
 * its place; it puts itself at the end of the queue.
 */
#include "postgres.h"

#include "access/xact.h"
#include "change.h"
#include "common/pg_prng.h"
#include "compat.h"
#include "fill.h"
#include "index.h"
#include "install.h"
#include "job.h"
#include "launcher.h"
#include "live.h"
#include "miscadmin.h"
#include "mode.h"
#include "outcome.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "shmem.h"
#include "throttle.h"
#include "session.h"
#include "standbys.h"
#include "txn.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "verify.h"
#include "worker.h"

#define LINGER_MS			2000	/* rather than exit and be started again */
#define TURN_MS				10000	/* before others who wait get the place */
#define INDEX_RETRY_MS		1000	/* while another index is being built */
#define SKIPPED_AT_ONCE		16		/* remembered rows tried between batches */
#define MAX_DOUBLINGS		5		/* of the time that a job with a locked row is left alone */
#define SKIPPED_MS			2000	/* and for how long */
#define STANDBYS			"synchronous standbys"	/* what a walk waits for */
#define MAX_STANDBY_MS		1000	/* between two looks at standbys that are behind */

static MemoryContext step_context;

/* milliseconds until the next look at standbys that are behind; does a walk of this turn wait for them? */
static int	standby_ms = 0;
static bool walk_waits = false;

/* a job whose installation was checked by this worker, and when */
typedef struct Checked
{
	char		job[NAMEDATALEN];
	TimestampTz at;
} Checked;

static List *checked_jobs = NIL;	/* in TopMemoryContext */

/*
 * A job whose error could not be recorded: somebody holds its row, for as long as
 * he likes.  It is left alone for a while, each time for longer.
 */
typedef struct Unrecorded
{
	char		job[NAMEDATALEN];
	int			times;
	TimestampTz until;
} Unrecorded;

static List *unrecorded_jobs = NIL; /* in TopMemoryContext */

/* Report what we are at, here and in pg_stat_activity. */
static void
report(const BbfJob *job)
{
	char		activity[NAMEDATALEN * 2];

	snprintf(activity, sizeof(activity), "bgw_backfill: %s of job %s",
			 bbf_job_phase_name(job->uninstall ? BBF_PHASE_UNINSTALL : job->phase),
			 bbf_job_display_name(job));
	pgstat_report_activity(STATE_RUNNING, activity);
	bbf_shmem_report(job->name, BBF_ACT_RUNNING,
					 standby_ms > 0 && job->phase != BBF_PHASE_LIVE ? STANDBYS : NULL);
}

static Checked *
find_checked(const char *name)
{
	ListCell   *lc;

	foreach(lc, checked_jobs)
	{
		Checked    *checked = lfirst(lc);

		if (strcmp(checked->job, name) == 0)
			return checked;
	}
	return NULL;
}

/*
 * Was the job's installation checked, and not too long ago?  A walk may take days; who
 * must not read any more is to be kept out meanwhile.  A live job checks for itself.
 */
static bool
is_checked(const BbfJob *job)
{
	const Checked *checked = find_checked(job->name);

	return checked &&
		((job->phase == BBF_PHASE_LIVE && job->successor_of == NULL) ||
		 !TimestampDifferenceExceeds(checked->at, GetCurrentTimestamp(), 1000 * bbf_job_setting(job, BBF_SCAN_INTERVAL)));
}

static void
set_checked(const char *name, bool on)
{
	Checked    *checked = find_checked(name);

	if (on && checked == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		checked = palloc0(sizeof(Checked));
		strlcpy(checked->job, name, NAMEDATALEN);
		checked_jobs = lappend(checked_jobs, checked);
		MemoryContextSwitchTo(old);
	}
	if (on)
		checked->at = GetCurrentTimestamp();
	else if (checked)
	{
		checked_jobs = list_delete_ptr(checked_jobs, checked);
		pfree(checked);
	}
}

static Unrecorded *
find_unrecorded(const char *name)
{
	ListCell   *lc;

	foreach(lc, unrecorded_jobs)
	{
		Unrecorded *unrecorded = lfirst(lc);

		if (strcmp(unrecorded->job, name) == 0)
			return unrecorded;
	}
	return NULL;
}

/* Leave a job alone for a while; returns until when. */
static TimestampTz
leave_alone(const char *name)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	Unrecorded *unrecorded = find_unrecorded(name);

	if (unrecorded == NULL)
	{
		unrecorded = palloc0(sizeof(Unrecorded));
		strlcpy(unrecorded->job, name, NAMEDATALEN);
		unrecorded_jobs = lappend(unrecorded_jobs, unrecorded);
	}
	unrecorded->until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													bbf_throttle_retry_delay(Min(unrecorded->times++, MAX_DOUBLINGS)));
	MemoryContextSwitchTo(old);
	return unrecorded->until;
}

/* Try a few of the rows that batches had to skip, without waiting for any. */
static void
try_skipped(const char *name, bool sweep)
{
	TimestampTz began = GetCurrentTimestamp();

	for (int i = 0; i < SKIPPED_AT_ONCE && !TimestampDifferenceExceeds(began, GetCurrentTimestamp(), SKIPPED_MS); i++)
	{
		BbfJob	   *job = bbf_job_begin(name);
		bool		more;

		if (job == NULL)
			return;
		more = bbf_walk_skipped(job, sweep, false);
		bbf_txn_commit();
		if (!more)
			return;
	}
}

/* Must a walk wait for standbys, and how long before it looks again? */
static bool
waits_for_standbys(TimestampTz *due)
{
	standby_ms = bbf_standbys_behind() ? Min(Max(2 * standby_ms, 1), MAX_STANDBY_MS) : 0;
	*due = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), standby_ms);
	walk_waits = standby_ms > 0;
	return walk_waits;
}

/* One batch of a walk, and what follows from how it ended. */
static TimestampTz
walk_step(BbfJob *job)
{
	TimestampTz due;
	const char *name = job->name;
	bool		sweep = job->phase != BBF_PHASE_FILL;
	BbfWalkStep step;

	if (waits_for_standbys(&due))
	{
		bbf_txn_commit();
		return due;
	}
	step = sweep ? bbf_verify_step(job) : bbf_fill_step(job);
	if (step == BBF_WALK_MORE)
		bbf_txn_commit_async();
	else
		bbf_txn_commit();
	if (step == BBF_WALK_MORE && job->has_skipped)
		try_skipped(name, sweep);
	else if (step == BBF_WALK_SKIPPED && (job = bbf_job_begin(name)) != NULL)
	{
		bbf_walk_skipped(job, sweep, true);
		bbf_txn_commit();
	}
	return job ? bbf_job_next_due(job) : 0;
}

/* Build the index; when somebody else is building one, wait for our turn. */
static TimestampTz
index_step(BbfJob *job)
{
	bbf_txn_commit();
	if (!bbf_fill_finish(job))
		return GetCurrentTimestamp();
	if (bbf_index_build(job->name))
		return GetCurrentTimestamp();
	bbf_outcome_wait(job->name, "another index build", INDEX_RETRY_MS);
	return TimestampTzPlusMilliseconds(GetCurrentTimestamp(), INDEX_RETRY_MS);
}

/* The phase's step, in the transaction that is open; commits it. */
static TimestampTz
phase_step(BbfJob *job)
{
	TimestampTz due;

	switch (job->phase)
	{
		case BBF_PHASE_INSTALL:
			if (job->changing)
				bbf_change_anew(job);
			else
				bbf_install_run(job);
			break;
		case BBF_PHASE_FILL:
		case BBF_PHASE_VERIFY:
			return walk_step(job);
		case BBF_PHASE_INDEX:
			return index_step(job);
		case BBF_PHASE_LIVE:
			return bbf_live_step(job, &due) ? due : walk_step(job);
		case BBF_PHASE_UNINSTALL:
			break;
	}
	bbf_txn_commit();
	return GetCurrentTimestamp();
}

/*
 * Is the job ours?  It is the source's owner's, who must be the role that it was
 * made for; what is left of one whose source is gone is the target's owner's.
 */
static bool
is_mine(const BbfJob *job)
{
	Oid			owner = bbf_pair_owner(bbf_job_source(job));

	if (job->uninstall)
		return (OidIsValid(owner) ? owner : bbf_pair_owner(bbf_job_target(job))) == GetUserId();
	return owner == GetUserId() && bbf_job_same_place(job) && bbf_job_belongs_to(job, owner);
}

/*
 * The worker before us was terminated, as the only way to end what this job ran, and
 * could not record it: a user's function goes on after it was cancelled, and would do so
 * again.  False: the job is to be uninstalled, and is on its way.
 */
static bool
was_ended(const BbfJob *job)
{
	if (!job->uninstall)
	{
		bbf_job_record_error(job->name,
							 psprintf("what the job ran went on for %d s after it had been cancelled, and its worker was terminated"
									  " Hint: A handler, or a function of a condition or a trigger, must not catch query_canceled. Mend it, then use bgw_backfill.resume().",
									  BBF_GRACE_MS / 1000),
							 BBF_HEALTH_FAILED, NULL, 0);
		bbf_txn_commit();
	}
	bbf_shmem_forget_ended(job->name);
	return !job->uninstall;
}

/*
 * One step of one job.  Returns when it is due again; 0: not until somebody
 * changes it.
 */
static TimestampTz
step(const char *name)
{
	BbfJob	   *job = bbf_job_begin(name);
	TimestampTz due;

	if (job == NULL)
		return 0;
	due = bbf_job_next_due(job);
	if (!is_mine(job))
	{
		/* the source is gone, or somebody else's: the scheduler says so */
		if (due != 0 && (bbf_job_belongs_to(job, GetUserId()) ||
						 bbf_pair_owner(bbf_job_source(job)) == GetUserId()))
			(void) bbf_shmem_wake(MyDatabaseId);
		due = 0;
	}
	else if (due != 0 && bbf_shmem_was_ended(name) && was_ended(job))
		return 0;
	if (due == 0 || due > GetCurrentTimestamp())
	{
		bbf_txn_commit();
		return due;
	}
	report(job);
	if (job->uninstall)
	{
		bbf_install_undo(job);
		bbf_txn_commit();
		return 0;
	}
	if (job->phase != BBF_PHASE_INSTALL && !is_checked(job))
	{
		bool		well = bbf_install_check(job);

		bbf_txn_commit();
		if (well)
			set_checked(name, true);
		return GetCurrentTimestamp();
	}
	return phase_step(job);
}

/* Are a job's rows free again?  Looked at without waiting. */
static bool
is_free(const char *name)
{
	bool		result;

	if (!bbf_txn_begin())
		return false;
	result = bbf_job_try_lock(name);
	bbf_txn_commit();
	return result;
}

/* One step, and what to do about an error in it. */
static TimestampTz
guarded_step(const char *name)
{
	Unrecorded *volatile unrecorded = find_unrecorded(name);
	volatile TimestampTz due;
	volatile bool stuck = false;

	if (unrecorded && unrecorded->until > GetCurrentTimestamp())
		return unrecorded->until;
	MemoryContextReset(step_context);
	MemoryContextSwitchTo(step_context);
	PG_TRY();
	{
		stuck = unrecorded && !is_free(name);
		due = stuck ? leave_alone(name) : step(name);
	}
	PG_CATCH();
	{
		ErrorData  *edata;
		bool		recorded;

		MemoryContextSwitchTo(step_context);
		edata = CopyErrorData();
		FlushErrorState();
		set_checked(name, false);
		due = bbf_outcome_of_error(name, edata, &recorded);
		stuck = !recorded;
		if (stuck)
			due = leave_alone(name);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(step_context);
	if (unrecorded && !stuck)
	{
		unrecorded_jobs = list_delete_ptr(unrecorded_jobs, unrecorded);
		pfree(unrecorded);
	}
	return due;
}

/* The names of all jobs, in a context that steps don't reset; failed: try again. */
static List *
job_names(MemoryContext context, bool *failed)
{
	List	   *volatile names = NIL;

	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		if (bbf_txn_begin())
		{
			names = bbf_job_names();
			bbf_txn_commit();
		}
	}
	PG_CATCH();
	{
		/* somebody is about to drop the extension, or cancelled us */
		MemoryContextSwitchTo(context);
		EmitErrorReport();
		FlushErrorState();
		bbf_txn_abort();
		MemoryContextSwitchTo(context);
		*failed = true;
	}
	PG_END_TRY();
	return names;
}

/* Others wait for our place, and we have had it for a while. */
static bool
place_is_wanted(TimestampTz began)
{
	return TimestampDifferenceExceeds(began, GetCurrentTimestamp(), TURN_MS) && bbf_shmem_others_wait();
}

/*
 * Begin with any of the jobs: who has to give up his place before all of them had
 * their step would always leave out the same ones.
 */
static List *
begin_anywhere(List *names)
{
	int			n = names == NIL ? 0 : (int) pg_prng_uint64_range(&pg_global_prng_state, 0, list_length(names) - 1);

	return list_concat(list_copy_tail(names, n), list_truncate(list_copy(names), n));
}

/*
 * One step of each of our due jobs, or of some if our place is wanted.  Returns when
 * the next step is due, 0 if none is; the job that it is due for goes to next_job.
 */
static TimestampTz
take_a_turn(MemoryContext context, List **names, char *next_job, TimestampTz began)
{
	TimestampTz next = 0;
	ListCell   *lc;

	next_job[0] = '\0';
	walk_waits = false;
	ResetLatch(MyLatch);
	if (bbf_shmem_was_woken() || *names == NIL)
	{
		bool		failed = false;

		MemoryContextReset(context);
		*names = job_names(context, &failed);
		if (failed)
			return TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LINGER_MS);
		MemoryContextSwitchTo(context);
		*names = begin_anywhere(*names);
	}
	foreach(lc, *names)
	{
		TimestampTz due;

		/* who cancels a step that is over comes too late */
		QueryCancelPending = false;
		CHECK_FOR_INTERRUPTS();
		if (!bbf_guc_enabled)
			break;
		if (place_is_wanted(began))
			return GetCurrentTimestamp();
		due = guarded_step(lfirst(lc));
		if (due != 0 && (next == 0 || due < next))
		{
			next = due;
			strlcpy(next_job, lfirst(lc), NAMEDATALEN);
		}
	}
	return next;
}

/* Read the configuration files again if we were told to. */
static void
reload(void)
{
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
}

/* Take turns until nothing is due soon, or the server wants us to stop. */
static TimestampTz
work(void)
{
	MemoryContext turn_context = AllocSetContextCreate(TopMemoryContext, "bgw_backfill turn",
													   ALLOCSET_SMALL_SIZES);
	TimestampTz began = GetCurrentTimestamp();
	List	   *names = NIL;
	uint32		wait_event = 0;

	for (;;)
	{
		char		next_job[NAMEDATALEN];
		TimestampTz next;
		TimestampTz now;
		long		delay;

		QueryCancelPending = false;
		CHECK_FOR_INTERRUPTS();
		reload();
		if (!bbf_guc_enabled)
			return 0;
		next = take_a_turn(turn_context, &names, next_job, began);
		now = GetCurrentTimestamp();
		if (next == 0)
			return 0;
		delay = TimestampDifferenceMilliseconds(now, next);
		if (delay > LINGER_MS || place_is_wanted(began))
			return next;
		if (delay > 0)
		{
			pgstat_report_activity(STATE_IDLE, NULL);
			bbf_shmem_report(next_job, BBF_ACT_SLEEPING, walk_waits ? STANDBYS : NULL);
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							 delay, bbf_wait_event(wait_event, "BgwBackfillWorkerSleep"));
		}
	}
}

/* A worker's main function. */
void
bbf_worker_main(Datum main_arg)
{
	BbfLaunch	launch;

	if (bbf_launcher_attach(main_arg, &launch) == NULL)
		return;
	BackgroundWorkerInitializeConnectionByOid(launch.datid, launch.owner, BBF_CONNECT_FLAGS);
	bbf_shmem_set_limit(0);
	bbf_session_set_owner(launch.owner);
	bbf_standbys_begin();
	step_context = AllocSetContextCreate(TopMemoryContext, "bgw_backfill step",
										 ALLOCSET_DEFAULT_SIZES);
	bbf_shmem_set_next_due(launch.datid, work());
	bbf_shmem_say_goodbye();
}
