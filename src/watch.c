/*
 * watch.c
 *		Ending what does not end by itself.  Run by the launcher.
 *
 * Every statement of a worker that can run a user's code is cancelled when its time is
 * over, or by pause().  But such code can catch that, and go on.  After a grace its
 * process is terminated, which nothing can catch; the next worker records it with the
 * job.  A process that cannot connect, because somebody has the database to himself,
 * is terminated as well.
 *
 * And who has had a place for long has to give it up to another owner who has waited
 * for one for long: what he is at is cancelled.
 */
#include "postgres.h"

#include <limits.h>
#include <signal.h>

#include "compat.h"
#include "guc.h"
#include "miscadmin.h"
#include "shmem.h"
#include "utils/timestamp.h"
#include "watch.h"

#define STEP_MS		20000		/* of small statements, in one step of a worker */

/* How long one may be at one thing that others wait for: a statement, and what follows a scan. */
static int
longest_step(void)
{
	return Min(bbf_guc_server_value(BBF_STATEMENT_TIMEOUT), INT_MAX - STEP_MS) + STEP_MS;
}

/*
 * Who must give his place up to somebody who has waited for long?  Who has been at one
 * thing for long, or has waited for long in an index build.  One that gets on would lose
 * all of its work: only where its owner has another place, and the youngest, so that
 * the others come to their end.  The lock is held.
 */
static BbfSlot *
find_victim(const BbfDue *due, TimestampTz now)
{
	BbfSlot    *youngest = NULL;

	for (int i = 0; i < BBF_MAX_SLOTS; i++)
	{
		BbfSlot    *slot = &bbf_shared->slots[i];
		bool		takes_long = slot->statement == BBF_STATEMENT_LONG;
		TimestampTz since = takes_long ? slot->waits_since : slot->step_since;

		if (slot->kind != BBF_SLOT_WORKER || slot->pid == 0 || slot->owner == due->owner || slot->step_since == 0)
			continue;
		if (since != 0 && TimestampDifferenceExceeds(since, now, longest_step()))
			return slot;
		if (takes_long && TimestampDifferenceExceeds(slot->step_since, now, longest_step()) &&
			bbf_shmem_count(BBF_SLOT_WORKER, InvalidOid, slot->owner) > 1 && (youngest == NULL || slot->step_since > youngest->step_since))
			youngest = slot;
	}
	return youngest;
}

/* Since when the index builds wait, if they do.  The lock is held. */
static void
look_at_waits(TimestampTz now)
{
	for (int i = 0; i < BBF_MAX_SLOTS; i++)
	{
		BbfSlot    *slot = &bbf_shared->slots[i];

		if (slot->pid == 0 || slot->statement != BBF_STATEMENT_LONG || !bbf_shmem_waits_for_lock(slot->pid))
			slot->waits_since = 0;
		else if (slot->waits_since == 0)
			slot->waits_since = now;
	}
}

/* If all places are taken, and somebody has waited for one for long, make room.  The lock is held. */
static void
make_room(TimestampTz now)
{
	BbfSlot    *victim = NULL;

	if (bbf_shmem_count(BBF_SLOT_WORKER, InvalidOid, InvalidOid) < bbf_guc_server_value(BBF_MAX_WORKERS))
		return;
	for (int i = 0; i < bbf_shared->ndue && victim == NULL; i++)
	{
		BbfDue	   *due = &bbf_shared->due[i];

		if (TimestampDifferenceExceeds(due->since, now, longest_step()) &&
			!bbf_shmem_is_drained(due->datid) && !bbf_shmem_has_worker(due->datid, due->owner))
			victim = find_victim(due, now);
	}
	if (victim == NULL)
		return;
	kill(victim->pid, SIGINT);
	victim->gave_way = true;
	victim->step_since = now;	/* not again for a while */
	victim->waits_since = 0;
	victim->terminate_at = TimestampTzPlusMilliseconds(now, BBF_GRACE_MS);
}

/* Note that a job's worker was terminated; the oldest note goes first.  The lock is held. */
static void
note_ended(const BbfSlot *slot)
{
	BbfEnded   *ended = bbf_shared->ended;

	memmove(&ended[1], &ended[0], sizeof(BbfEnded) * (BBF_MAX_ENDED - 1));
	ended->datid = slot->datid;
	strlcpy(ended->job, slot->job, NAMEDATALEN);
}

/* Is it the server that keeps a process, a disk that does not answer, rather than a user's code?  The lock is held. */
static bool
is_in_io(pid_t pid)
{
	uint32		wait = bbf_shmem_wait_class(pid);

	return wait == PG_WAIT_IO || wait == PG_WAIT_LWLOCK;
}

/*
 * Was everybody stopped for a while, the whole machine, say?  Then nobody is to blame for
 * being late.
 */
static bool
after_a_stop(TimestampTz now)
{
	static TimestampTz last = 0;
	static TimestampTz not_before = 0;

	if (TimestampDifferenceExceeds(last, now, BBF_GRACE_MS / 2))
		not_before = TimestampTzPlusMilliseconds(now, BBF_GRACE_MS);
	last = now;
	return now < not_before;
}

/* Terminate a process that should be over; a copy of its slot goes to slot.  False: there is none. */
static bool
terminate_one(BbfSlot *result)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		found = false;

	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < BBF_MAX_SLOTS && !found; i++)
	{
		BbfSlot    *slot = &bbf_shared->slots[i];

		if (slot->kind == BBF_SLOT_FREE || slot->pid == 0 || slot->terminated ||
			slot->terminate_at == 0 || slot->terminate_at > now || is_in_io(slot->pid))
			continue;
		kill(slot->pid, SIGTERM);
		slot->terminated = found = true;
		if (slot->job[0] != '\0' && !slot->paused)
			note_ended(slot);
		*result = *slot;
	}
	LWLockRelease(bbf_shared->lock);
	return found;
}

/* End what has to end; called by the launcher, again and again while there are processes of ours. */
void
bbf_watch_run(void)
{
	BbfSlot		slot;

	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	look_at_waits(GetCurrentTimestamp());
	make_room(GetCurrentTimestamp());
	LWLockRelease(bbf_shared->lock);
	if (after_a_stop(GetCurrentTimestamp()))
		return;
	while (terminate_one(&slot))
	{
		if (slot.job[0] != '\0')
			ereport(LOG,
					(errmsg("terminating the worker of job \"%s\", process %d", slot.job, (int) slot.pid),
					 errdetail("What it runs went on for %d s after it had been cancelled.", BBF_GRACE_MS / 1000)));
		else
			ereport(LOG,
					(errmsg("terminating process %d, which could not connect to database %u", (int) slot.pid, slot.datid)));
	}
}
