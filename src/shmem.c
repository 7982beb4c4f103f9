/*
 * shmem.c
 *		The one piece of shared memory, and the rules for touching it.
 *
 * Everything in BbfShared is protected by its lock, held for a few hundred
 * instructions at most: nothing is allocated, read from a table or waited for
 * under it.  A process is signalled and a latch is set while the lock is held,
 * because a slot's pid and latch belong to somebody else once it is released.
 *
 * Nothing here survives a crash and nothing has to: the launcher finds the
 * databases again, the schedulers the jobs, and the jobs' rows say how far
 * they are.
 *
 * A server without the library in shared_preload_libraries has bbf_shared ==
 * NULL; every function that a plain backend may call does nothing then.
 */
#include "postgres.h"

#include <signal.h>

#include "miscadmin.h"
#include "shmem.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#define BBF_TRANCHE "bgw_backfill"

BbfShared  *bbf_shared = NULL;

static BbfSlot *my_slot = NULL;

static shmem_request_hook_type prev_shmem_request_hook = NULL;
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

static void
shmem_request(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();
	RequestAddinShmemSpace(MAXALIGN(sizeof(BbfShared)));
	RequestNamedLWLockTranche(BBF_TRANCHE, 1);
}

static void
shmem_startup(void)
{
	bool		found;

	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	bbf_shared = ShmemInitStruct("bgw_backfill", sizeof(BbfShared), &found);
	if (!found)
	{
		memset(bbf_shared, 0, sizeof(BbfShared));
		bbf_shared->lock = &(GetNamedLWLockTranche(BBF_TRANCHE))->lock;
	}
	LWLockRelease(AddinShmemInitLock);
}

/* Ask the postmaster for the shared memory. */
void
bbf_shmem_init(void)
{
	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = shmem_request;
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = shmem_startup;
}

/* Find a database's entry, or make one.  NULL when the table is full. */
static BbfDatabase *
find_database(Oid datid, bool create)
{
	BbfDatabase *spare = NULL;

	Assert(LWLockHeldByMe(bbf_shared->lock));
	for (int i = 0; i < BBF_MAX_DATABASES; i++)
	{
		BbfDatabase *db = &bbf_shared->databases[i];

		if (db->datid == datid)
			return db;
		if (spare == NULL && !OidIsValid(db->datid))
			spare = db;
	}
	if (!create || spare == NULL)
		return NULL;
	memset(spare, 0, sizeof(*spare));
	spare->datid = datid;
	return spare;
}

/* Set the latches of the launcher and of a database's workers. */
static void
set_latches(Oid datid)
{
	if (bbf_shared->launcher_latch)
		SetLatch(bbf_shared->launcher_latch);
	for (int i = 0; i < BBF_MAX_SLOTS; i++)
	{
		BbfSlot    *slot = &bbf_shared->slots[i];

		if (slot->kind != BBF_SLOT_FREE && slot->datid == datid && slot->latch)
			SetLatch(slot->latch);
	}
}

/*
 * Say that the jobs of a database have changed.  Called once the change is
 * visible to others.  False: there was no room to say it.
 */
bool
bbf_shmem_wake(Oid datid)
{
	BbfDatabase *db;

	if (bbf_shared == NULL)
		return false;
	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	db = find_database(datid, true);
	if (db)
	{
		db->dirty = true;
		db->only_drained = false;
	}
	set_latches(datid);
	LWLockRelease(bbf_shared->lock);
	return db != NULL;
}

/*
 * Say that the jobs of a database may change without a wake-up: a prepared
 * transaction commits in another session, which runs no callback of ours.
 */
void
bbf_shmem_recheck(Oid datid)
{
	BbfDatabase *db;

	if (bbf_shared == NULL)
		return;
	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	db = find_database(datid, true);
	if (db)
		db->recheck = true;
	LWLockRelease(bbf_shared->lock);
}

/* The scheduler found no prepared transaction left. */
void
bbf_shmem_clear_recheck(Oid datid)
{
	BbfDatabase *db;

	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	db = find_database(datid, false);
	if (db)
		db->recheck = false;
	LWLockRelease(bbf_shared->lock);
}

/* Cancel what the job's worker is at, if that is a statement that may be. */
void
bbf_shmem_cancel(Oid datid, const char *job)
{
	if (bbf_shared == NULL)
		return;
	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < BBF_MAX_SLOTS; i++)
	{
		BbfSlot    *slot = &bbf_shared->slots[i];

		if (slot->kind == BBF_SLOT_WORKER && slot->datid == datid &&
			slot->pid != 0 && slot->cancellable && strcmp(slot->job, job) == 0)
			kill(slot->pid, SIGINT);
	}
	LWLockRelease(bbf_shared->lock);
}

/*
 * Ask our processes in a database to leave, and let the launcher start none
 * there until bbf_shmem_undrain() or the end of this backend.
 */
void
bbf_shmem_drain(Oid datid, bool terminate)
{
	BbfDatabase *db;

	if (bbf_shared == NULL)
		return;
	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	db = find_database(datid, false);
	if (db == NULL && (db = find_database(datid, true)) != NULL)
		db->only_drained = true;
	if (db)
		db->drained_by = MyProcPid;
	for (int i = 0; i < BBF_MAX_SLOTS; i++)
	{
		BbfSlot    *slot = &bbf_shared->slots[i];

		if (terminate && slot->kind != BBF_SLOT_FREE && slot->datid == datid && slot->pid != 0)
			kill(slot->pid, SIGTERM);
	}
	LWLockRelease(bbf_shared->lock);
}

/* Let the launcher start processes in the database again. */
void
bbf_shmem_undrain(Oid datid)
{
	BbfDatabase *db;

	if (bbf_shared == NULL)
		return;
	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	db = find_database(datid, false);
	if (db && db->drained_by == MyProcPid)
	{
		db->drained_by = 0;
		db->dirty = true;
		if (db->only_drained)
			memset(db, 0, sizeof(*db));
	}
	set_latches(datid);
	LWLockRelease(bbf_shared->lock);
}

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
	BbfDatabase *db;

	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	if (slot->kind == BBF_SLOT_FREE || slot->generation != generation || slot->exited)
	{
		LWLockRelease(bbf_shared->lock);
		return NULL;
	}
	db = find_database(slot->datid, false);
	if (db && db->drained_by != 0)
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

/* Are there owners whose jobs are due and who have no worker? */
bool
bbf_shmem_others_wait(void)
{
	bool		result = false;

	LWLockAcquire(bbf_shared->lock, LW_SHARED);
	for (int i = 0; i < bbf_shared->ndue && my_slot; i++)
	{
		if (bbf_shared->due[i].datid != my_slot->datid ||
			bbf_shared->due[i].owner != my_slot->owner)
			result = true;
	}
	LWLockRelease(bbf_shared->lock);
	return result;
}

/*
 * Leave word that an owner has due jobs.  When the list is full the database
 * is looked at again, by when the list is shorter.
 */
void
bbf_shmem_add_due(Oid datid, Oid owner)
{
	BbfDatabase *db;
	int			i;

	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	for (i = 0; i < bbf_shared->ndue; i++)
	{
		if (bbf_shared->due[i].datid == datid && bbf_shared->due[i].owner == owner)
			break;
	}
	if (i < BBF_MAX_DUE)
	{
		bbf_shared->due[i].datid = datid;
		bbf_shared->due[i].owner = owner;
		bbf_shared->ndue = Max(bbf_shared->ndue, i + 1);
	}
	else if ((db = find_database(datid, true)) != NULL)
		db->next_due = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 5000);
	if (bbf_shared->launcher_latch)
		SetLatch(bbf_shared->launcher_latch);
	LWLockRelease(bbf_shared->lock);
}

/* Something in the database is due at that time, or earlier. */
void
bbf_shmem_set_next_due(Oid datid, TimestampTz when)
{
	BbfDatabase *db;

	if (when == 0 || TIMESTAMP_IS_NOEND(when))
		return;
	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	db = find_database(datid, true);
	if (db && (db->next_due == 0 || when < db->next_due))
		db->next_due = when;
	if (bbf_shared->launcher_latch)
		SetLatch(bbf_shared->launcher_latch);
	LWLockRelease(bbf_shared->lock);
}

/* The database has no extension: only a wake-up brings it back. */
void
bbf_shmem_forget_database(Oid datid)
{
	BbfDatabase *db;

	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	db = find_database(datid, false);
	if (db && !db->dirty && !db->recheck && db->drained_by == 0)
		db->datid = InvalidOid;
	LWLockRelease(bbf_shared->lock);
}

/* The database is gone. */
void
bbf_shmem_remove_database(Oid datid)
{
	BbfDatabase *db;

	if (bbf_shared == NULL)
		return;
	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	db = find_database(datid, false);
	if (db)
		memset(db, 0, sizeof(*db));
	for (int i = bbf_shared->ndue - 1; i >= 0; i--)
	{
		if (bbf_shared->due[i].datid == datid)
			bbf_shared->due[i] = bbf_shared->due[--bbf_shared->ndue];
	}
	LWLockRelease(bbf_shared->lock);
}
