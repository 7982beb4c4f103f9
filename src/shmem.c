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

/* A database's entry, or NULL.  The lock is held. */
BbfDatabase *
bbf_shmem_database(Oid datid)
{
	return find_database(datid, false);
}

/* Take an entry off the list of due owners; the others stay in order.  The lock is held. */
void
bbf_shmem_drop_due(int i)
{
	BbfDue	   *due = &bbf_shared->due[i];

	memmove(due, due + 1, sizeof(BbfDue) * (bbf_shared->ndue - i - 1));
	bbf_shared->ndue--;
}

/* Is the database to be left alone?  The lock is held. */
bool
bbf_shmem_is_drained(Oid datid)
{
	BbfDatabase *db = find_database(datid, false);

	return db && db->drained_by != 0;
}

/* Has the owner a worker, or one that is about to start?  The lock is held. */
bool
bbf_shmem_has_worker(Oid datid, Oid owner)
{
	for (int i = 0; i < BBF_MAX_SLOTS; i++)
	{
		BbfSlot    *slot = &bbf_shared->slots[i];

		if (slot->kind == BBF_SLOT_WORKER && slot->datid == datid && slot->owner == owner)
			return true;
	}
	return false;
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

		if (slot->kind == BBF_SLOT_FREE || slot->datid != datid || slot->latch == NULL)
			continue;
		slot->woken = true;
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

/* Wake the launcher, unless it is we: it sleeps before it tries again. */
static void
tell_launcher(void)
{
	if (bbf_shared->launcher_latch && bbf_shared->launcher_pid != MyProcPid)
		SetLatch(bbf_shared->launcher_latch);
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
	tell_launcher();
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
	tell_launcher();
	LWLockRelease(bbf_shared->lock);
}

/*
 * A job of an owner's is due at that time.  A worker that he has knows; he is judged
 * anew when that is gone.
 */
void
bbf_shmem_set_owner_due(Oid datid, Oid owner, TimestampTz when)
{
	bool		served;

	LWLockAcquire(bbf_shared->lock, LW_SHARED);
	served = bbf_shmem_has_worker(datid, owner);
	LWLockRelease(bbf_shared->lock);
	if (served)
		bbf_shmem_add_due(datid, owner);
	else
		bbf_shmem_set_next_due(datid, when);
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
			bbf_shmem_drop_due(i);
	}
	LWLockRelease(bbf_shared->lock);
}
