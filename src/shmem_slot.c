/*
 * shmem_slot.c
 *		A launched process and its own slot in the shared memory.
 */
#include "postgres.h"

#include "compat.h"
#include "miscadmin.h"
#include "shmem.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/timestamp.h"

#define CONNECT_WITHIN_MS	30000	/* somebody may have the database to himself */
#define INDEX_TURN_MS		(10 * 60 * 1000)

static BbfSlot *my_slot = NULL;

/* Leave the slot: before anything else goes, whatever the reason. */
static void
detach(int code, Datum arg)
{
	if (my_slot == NULL)
		return;
	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	my_slot->pid = 0;
	my_slot->latch = NULL;
	my_slot->exited = true;
	my_slot->job[0] = '\0';
	if (bbf_shared->index_builder_pid == MyProcPid)
		bbf_shared->index_builder_pid = 0;
	if (bbf_shared->launcher_latch)
		SetLatch(bbf_shared->launcher_latch);
	LWLockRelease(bbf_shared->lock);
	my_slot = NULL;
}

/*
 * Take the slot that the launcher chose for this process.  NULL if the
 * launcher has given it to somebody else meanwhile, or the database is to be left
 * alone.
 */
BbfSlot *
bbf_shmem_attach(int slotno, uint64 generation)
{
	BbfSlot    *slot = &bbf_shared->slots[slotno];

	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	if (slot->kind == BBF_SLOT_FREE || slot->generation != generation || slot->exited)
	{
		LWLockRelease(bbf_shared->lock);
		return NULL;
	}
	if (bbf_shmem_is_drained(slot->datid))
	{
		/* on its way when the others were asked to leave */
		slot->exited = slot->clean = true;
		LWLockRelease(bbf_shared->lock);
		return NULL;
	}
	slot->pid = MyProcPid;
	slot->latch = MyLatch;
	slot->terminate_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), CONNECT_WITHIN_MS);
	LWLockRelease(bbf_shared->lock);
	my_slot = slot;
	before_shmem_exit(detach, (Datum) 0);
	return slot;
}

/*
 * Say what this worker is at.  job NULL: nothing; waiting_for NULL: for
 * nothing.
 */
void
bbf_shmem_report(const char *job, BbfActivity activity, const char *waiting_for)
{
	TimestampTz now = GetCurrentTimestamp();

	if (my_slot == NULL)
		return;
	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	if (strcmp(my_slot->job, job ? job : "") != 0)
		my_slot->index_percent = 0;
	strlcpy(my_slot->job, job ? job : "", NAMEDATALEN);
	my_slot->activity = activity;
	my_slot->statement = BBF_STATEMENT_PLAIN;
	my_slot->step_since = activity == BBF_ACT_RUNNING ? now : 0;
	my_slot->terminate_at = 0;
	my_slot->gave_way = my_slot->paused = false;
	if (waiting_for == NULL)
		my_slot->waiting_for[0] = '\0';
	else if (strcmp(my_slot->waiting_for, waiting_for) != 0)
	{
		strlcpy(my_slot->waiting_for, waiting_for, NAMEDATALEN);
		my_slot->waiting_since = now;
	}
	LWLockRelease(bbf_shared->lock);
}

/* Has any job changed since this was last asked? */
bool
bbf_shmem_was_woken(void)
{
	bool		woken = false;

	if (my_slot == NULL)
		return false;
	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	woken = my_slot->woken;
	my_slot->woken = false;
	LWLockRelease(bbf_shared->lock);
	return woken;
}

/* What others may do about what this worker is at.  A statement that is over needs no end. */
void
bbf_shmem_set_statement(BbfStatement statement)
{
	if (my_slot == NULL)
		return;
	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	my_slot->statement = statement;
	my_slot->terminate_at = 0;
	my_slot->paused = false;
	LWLockRelease(bbf_shared->lock);
}

/*
 * What this process is at is cancelled at that time; a cancel can be caught and ignored
 * by a user's function, so the launcher terminates us some time after.  0: no limit.
 */
void
bbf_shmem_set_limit(TimestampTz at)
{
	if (my_slot == NULL)
		return;
	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	my_slot->terminate_at = at ? TimestampTzPlusMilliseconds(at, BBF_GRACE_MS) : 0;
	LWLockRelease(bbf_shared->lock);
}

/* Was the last cancel one for somebody who waits for our place? */
bool
bbf_shmem_gave_way(void)
{
	bool		result;

	if (my_slot == NULL)
		return false;
	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	result = my_slot->gave_way;
	my_slot->gave_way = false;
	LWLockRelease(bbf_shared->lock);
	return result;
}

/* The entry of a job of this database whose worker was terminated.  The lock is held. */
static BbfEnded *
find_ended(const char *job)
{
	for (int i = 0; i < BBF_MAX_ENDED; i++)
	{
		BbfEnded   *ended = &bbf_shared->ended[i];

		if (ended->datid == MyDatabaseId && strcmp(ended->job, job) == 0)
			return ended;
	}
	return NULL;
}

/* Was the worker of a job of this database terminated, and is that still to be recorded? */
bool
bbf_shmem_was_ended(const char *job)
{
	bool		result;

	LWLockAcquire(bbf_shared->lock, LW_SHARED);
	result = find_ended(job) != NULL;
	LWLockRelease(bbf_shared->lock);
	return result;
}

/* That is recorded. */
void
bbf_shmem_forget_ended(const char *job)
{
	BbfEnded   *ended;

	if (bbf_shared == NULL)
		return;
	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	while ((ended = find_ended(job)) != NULL)
		memset(ended, 0, sizeof(*ended));
	LWLockRelease(bbf_shared->lock);
}

/* How far the views have shown this worker's index build to be. */
double
bbf_shmem_index_percent(void)
{
	double		percent;

	LWLockAcquire(bbf_shared->lock, LW_SHARED);
	percent = my_slot ? my_slot->index_percent : 0;
	LWLockRelease(bbf_shared->lock);
	return percent;
}

/* What kind of thing a process waits for now (PG_WAIT_..), or 0.  The lock is held. */
uint32
bbf_shmem_wait_class(pid_t pid)
{
	PGPROC	   *proc = BackendPidGetProc(pid);

	return proc ? *(volatile uint32 *) &proc->wait_event_info & 0xFF000000 : 0;
}

/* Does a process wait for a lock: a table's, or a transaction's end?  The lock is held. */
bool
bbf_shmem_waits_for_lock(pid_t pid)
{
	return bbf_shmem_wait_class(pid) == PG_WAIT_LOCK;
}

/*
 * At most one index build at a time in the server, of those that read or write: one
 * that waits for old transactions, which may take for ever, is passed by, and goes on
 * beside the next when they have ended.  So is another owner's that has taken long.
 * True if it is ours now.
 */
bool
bbf_shmem_claim_index_build(void)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		mine;

	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	mine = bbf_shared->index_builder_pid == 0 ||
		bbf_shmem_waits_for_lock(bbf_shared->index_builder_pid) ||
		(bbf_shared->index_builder_owner != my_slot->owner &&
		 TimestampDifferenceExceeds(bbf_shared->index_builder_since, now, INDEX_TURN_MS));
	if (mine)
	{
		bbf_shared->index_builder_pid = MyProcPid;
		bbf_shared->index_builder_owner = my_slot->owner;
		bbf_shared->index_builder_since = now;
	}
	LWLockRelease(bbf_shared->lock);
	return mine;
}

/* Let somebody else build an index. */
void
bbf_shmem_release_index_build(void)
{
	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	if (bbf_shared->index_builder_pid == MyProcPid)
		bbf_shared->index_builder_pid = 0;
	LWLockRelease(bbf_shared->lock);
}

/* This process is about to exit, with nothing left undone. */
void
bbf_shmem_say_goodbye(void)
{
	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	if (my_slot)
		my_slot->clean = true;
	LWLockRelease(bbf_shared->lock);
}

/* Are there owners whose jobs are due and who have no worker, or databases without a scheduler? */
bool
bbf_shmem_others_wait(void)
{
	bool		result;

	LWLockAcquire(bbf_shared->lock, LW_SHARED);
	result = bbf_shared->no_slots_since != 0;
	for (int i = 0; i < bbf_shared->ndue; i++)
	{
		BbfDue	   *due = &bbf_shared->due[i];

		if (!bbf_shmem_has_worker(due->datid, due->owner) && !bbf_shmem_is_drained(due->datid))
			result = true;
	}
	LWLockRelease(bbf_shared->lock);
	return result;
}
