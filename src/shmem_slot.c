/*
 * shmem_slot.c
 *		A launched process and its own slot in the shared memory.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "shmem.h"
#include "storage/ipc.h"
#include "utils/timestamp.h"

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
	my_slot->cancellable = false;
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
	my_slot->cancellable = false;
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

/* Whether pause() may cancel what this worker is at. */
void
bbf_shmem_set_cancellable(bool on)
{
	if (my_slot == NULL)
		return;
	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	my_slot->cancellable = on;
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

/* At most one index build at a time in the server.  True if it is ours now. */
bool
bbf_shmem_claim_index_build(void)
{
	bool		mine;

	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	if (bbf_shared->index_builder_pid == 0)
		bbf_shared->index_builder_pid = MyProcPid;
	mine = (bbf_shared->index_builder_pid == MyProcPid);
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
