/*
 * launcher.c
 *		The launcher: starts a scheduler in each database in which something may
 *		be due, and a worker for each owner whose jobs a scheduler found due.
 *
 * It is connected to no database: it reads pg_database, which is shared, and
 * nothing else.  It sleeps on its latch until a job changes, a process leaves,
 * or the next thing is due.
 *
 * Databases are found, not configured: each is looked at once by a scheduler,
 * which says whether the extension is there.  After that only a change of a job
 * or a due date brings a scheduler back, so a database without the extension
 * costs nothing.  pg_database is read again every minute: a database that was
 * made from a template with jobs in it wakes nobody.
 *
 * A process that was registered and did not come to attach to its slot, or that
 * left it without saying goodbye, is noticed here; its database is looked at
 * again after a while, never at once, so that nothing loops hot.
 */
#include "postgres.h"

#include "compat.h"
#include "databases.h"
#include "guc.h"
#include "launcher.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/procarray.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "watch.h"

#define LOOK_AT_DATABASES_MS	(60 * 1000)
#define COME_BACK_AFTER_MS		5000	/* to a database whose process was lost */
#define ATTACH_WITHIN_MS		(30 * 1000)
#define NO_SLOTS_RETRY_MS		1000
#define WATCH_MS				1000	/* while there are processes of ours */

static BackgroundWorkerHandle *handles[BBF_MAX_SLOTS];

/* Register the launcher with the postmaster. */
void
bbf_launcher_register(void)
{
	BackgroundWorker worker = {0};

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = 1;
	snprintf(worker.bgw_library_name, BGW_MAXLEN, "bgw_backfill");
	snprintf(worker.bgw_function_name, BGW_MAXLEN, "bbf_launcher_main");
	snprintf(worker.bgw_name, BGW_MAXLEN, "bgw_backfill launcher");
	snprintf(worker.bgw_type, BGW_MAXLEN, "bgw_backfill launcher");
	RegisterBackgroundWorker(&worker);
}

/*
 * The beginning of a launched process: take the slot that the launcher chose.
 * NULL if the launcher has given up on us meanwhile.
 */
BbfSlot *
bbf_launcher_attach(Datum main_arg, BbfLaunch *launch)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	memcpy(launch, MyBgworkerEntry->bgw_extra, sizeof(BbfLaunch));
	return bbf_shmem_attach(DatumGetInt32(main_arg), launch->generation);
}

static void
leave(int code, Datum arg)
{
	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	if (bbf_shared->launcher_pid == MyProcPid)
	{
		bbf_shared->launcher_pid = 0;
		bbf_shared->launcher_latch = NULL;
	}
	LWLockRelease(bbf_shared->lock);
}

/* Come back to a database after a while.  The lock is held. */
static void
come_back_later(Oid datid)
{
	TimestampTz when = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), COME_BACK_AFTER_MS);
	BbfDatabase *db = bbf_shmem_database(datid);

	if (db && (db->next_due == 0 || db->next_due > when))
		db->next_due = when;
}

/*
 * A worker has left.  If its owner became due while it ran, whether another may
 * connect as him was judged then, perhaps long ago: have it judged anew.  After one
 * that was lost that happens in a while.  The lock is held.
 */
static void
judge_anew(const BbfSlot *slot)
{
	BbfDatabase *db = bbf_shmem_database(slot->datid);

	for (int i = 0; i < bbf_shared->ndue; i++)
	{
		BbfDue	   *due = &bbf_shared->due[i];

		if (due->datid != slot->datid || due->owner != slot->owner)
			continue;
		bbf_shmem_drop_due(i);
		if (db && slot->clean)
			db->dirty = true;
		return;
	}
}

/* Has a slot's process gone?  The lock is held. */
static bool
is_lost(int slotno)
{
	BbfSlot    *slot = &bbf_shared->slots[slotno];
	pid_t		pid;

	if (handles[slotno])
		return GetBackgroundWorkerPid(handles[slotno], &pid) == BGWH_STOPPED;

	/* launched by a launcher before us */
	if (slot->pid != 0)
		return BackendPidGetProc(slot->pid) == NULL;
	return TimestampDifferenceExceeds(slot->launched_at, GetCurrentTimestamp(), ATTACH_WITHIN_MS);
}

/* Free the slots of processes that have left or were lost. */
static void
reap(void)
{
	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < BBF_MAX_SLOTS; i++)
	{
		BbfSlot    *slot = &bbf_shared->slots[i];
		BbfDatabase *db;

		if (slot->kind == BBF_SLOT_FREE || !(slot->exited || is_lost(i)))
			continue;
		if (!slot->clean)
			come_back_later(slot->datid);
		if (slot->kind == BBF_SLOT_WORKER)
			judge_anew(slot);
		if (slot->terminated && slot->kind == BBF_SLOT_WORKER && (db = bbf_shmem_database(slot->datid)) != NULL)
			db->dirty = true;	/* so that it is recorded */
		slot->kind = BBF_SLOT_FREE;
		slot->pid = 0;
		slot->latch = NULL;
		if (handles[i])
			pfree(handles[i]);
		handles[i] = NULL;
	}
	/* a backend that was to undrain a database may have died */
	for (int i = 0; i < BBF_MAX_DATABASES; i++)
	{
		BbfDatabase *db = &bbf_shared->databases[i];

		if (db->drained_by != 0 && BackendPidGetProc(db->drained_by) == NULL)
		{
			db->drained_by = 0;
			if (db->only_drained)
				memset(db, 0, sizeof(*db));
		}
	}
	LWLockRelease(bbf_shared->lock);
}

/* Reserve a slot.  The lock is held.  -1: none is free. */
static int
reserve_slot(BbfSlotKind kind, Oid datid, Oid owner)
{
	for (int i = 0; i < BBF_MAX_SLOTS; i++)
	{
		BbfSlot    *slot = &bbf_shared->slots[i];
		uint64		generation = slot->generation + 1;

		if (slot->kind != BBF_SLOT_FREE)
			continue;
		memset(slot, 0, sizeof(*slot));
		slot->kind = kind;
		slot->generation = generation;
		slot->datid = datid;
		slot->owner = owner;
		slot->launched_at = GetCurrentTimestamp();
		return i;
	}
	return -1;
}

/* max_worker_processes is used up: say so once, until it is over. */
static void
report_no_slots(bool none)
{
	bool		news = none && bbf_shared->no_slots_since == 0;

	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	if (!none)
		bbf_shared->no_slots_since = 0;
	else if (news)
		bbf_shared->no_slots_since = GetCurrentTimestamp();
	LWLockRelease(bbf_shared->lock);
	if (news)
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("bgw_backfill found no free background worker slot"),
				 errdetail("Jobs wait until one is free."),
				 errhint("Consider increasing max_worker_processes.")));
}

/* Launch a scheduler or a worker.  False: it could not be. */
static bool
launch(BbfSlotKind kind, Oid datid, Oid owner)
{
	const char *what = kind == BBF_SLOT_WORKER ? "worker" : "scheduler";
	BackgroundWorker worker = {0};
	BbfLaunch	extra = {.datid = datid, .owner = owner};
	MemoryContext old;
	int			slotno;
	bool		registered;

	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	slotno = reserve_slot(kind, datid, owner);
	if (slotno >= 0)
		extra.generation = bbf_shared->slots[slotno].generation;
	LWLockRelease(bbf_shared->lock);
	if (slotno < 0)
		return false;

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION | BBF_WORKER_FLAG;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_notify_pid = MyProcPid;
	worker.bgw_main_arg = Int32GetDatum(slotno);
	snprintf(worker.bgw_library_name, BGW_MAXLEN, "bgw_backfill");
	snprintf(worker.bgw_function_name, BGW_MAXLEN, "bbf_%s_main", what);
	snprintf(worker.bgw_name, BGW_MAXLEN, "bgw_backfill %s for database %u", what, datid);
	snprintf(worker.bgw_type, BGW_MAXLEN, "bgw_backfill %s", what);
	memcpy(worker.bgw_extra, &extra, sizeof(extra));

	old = MemoryContextSwitchTo(TopMemoryContext);
	registered = RegisterDynamicBackgroundWorker(&worker, &handles[slotno]);
	MemoryContextSwitchTo(old);
	if (!registered)
	{
		LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
		bbf_shared->slots[slotno].kind = BBF_SLOT_FREE;
		LWLockRelease(bbf_shared->lock);
		handles[slotno] = NULL;
	}
	report_no_slots(!registered);
	return registered;
}

/*
 * A database that a scheduler should look at now, or InvalidOid: of those that have
 * changed or are due, the one that was looked at longest ago.
 */
static Oid
take_due_database(TimestampTz now)
{
	BbfDatabase *first = NULL;
	Oid			result = InvalidOid;

	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < BBF_MAX_DATABASES; i++)
	{
		BbfDatabase *db = &bbf_shared->databases[i];

		if (!OidIsValid(db->datid) || db->drained_by != 0 ||
			!(db->dirty || (db->next_due != 0 && db->next_due <= now)) ||
			bbf_shmem_count(BBF_SLOT_SCHEDULER, db->datid, InvalidOid) > 0)
			continue;
		if (first == NULL || db->looked_at < first->looked_at)
			first = db;
	}
	if (first && bbf_shmem_count(BBF_SLOT_SCHEDULER, InvalidOid, InvalidOid) < BBF_MAX_SCHEDULERS)
	{
		first->dirty = false;
		first->next_due = 0;
		first->looked_at = now;
		result = first->datid;
	}
	LWLockRelease(bbf_shared->lock);
	return result;
}

/*
 * An owner who should have a worker now: of those who have the fewest, in whatever
 * databases, the one who has waited longest.  One who has one already in his database
 * stays on the list until that has exited, and is then judged anew: it may have made up
 * its mind to before the job became due.
 */
static bool
take_due_owner(BbfDue *result)
{
	int			found = -1;
	int			fewest = 0;

	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	if (bbf_shmem_count(BBF_SLOT_WORKER, InvalidOid, InvalidOid) < bbf_guc_server_value(BBF_MAX_WORKERS))
	{
		for (int i = 0; i < bbf_shared->ndue; i++)
		{
			BbfDue	   *due = &bbf_shared->due[i];
			int			workers = bbf_shmem_count(BBF_SLOT_WORKER, InvalidOid, due->owner);

			if (bbf_shmem_is_drained(due->datid) ||
				bbf_shmem_has_worker(due->datid, due->owner) ||
				(found >= 0 && workers >= fewest))
				continue;
			found = i;
			fewest = workers;
		}
	}
	if (found >= 0)
	{
		*result = bbf_shared->due[found];
		bbf_shmem_drop_due(found);
	}
	LWLockRelease(bbf_shared->lock);
	return found >= 0;
}

/* Start what is due.  False if a process could not be started. */
static bool
start_due(void)
{
	TimestampTz now = GetCurrentTimestamp();
	BbfDue		due;
	Oid			datid;

	while (OidIsValid(datid = take_due_database(now)))
	{
		if (!launch(BBF_SLOT_SCHEDULER, datid, InvalidOid))
		{
			bbf_shmem_set_next_due(datid, now);
			return false;
		}
	}
	while (take_due_owner(&due))
	{
		if (!launch(BBF_SLOT_WORKER, due.datid, due.owner))
		{
			bbf_shmem_add_due(due.datid, due.owner);
			return false;
		}
	}
	return true;
}

/* How long the launcher sleeps if nothing is due: while there are processes of ours, not for long. */
static long
longest_sleep(void)
{
	long		result = LOOK_AT_DATABASES_MS;

	LWLockAcquire(bbf_shared->lock, LW_SHARED);
	for (int i = 0; i < BBF_MAX_SLOTS; i++)
	{
		if (bbf_shared->slots[i].pid != 0)
			result = WATCH_MS;
	}
	LWLockRelease(bbf_shared->lock);
	return result;
}

/* How long until something is due, at most until_ms. */
static long
time_to_sleep(long until_ms)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		all_busy;

	LWLockAcquire(bbf_shared->lock, LW_SHARED);
	all_busy = bbf_shmem_count(BBF_SLOT_SCHEDULER, InvalidOid, InvalidOid) >= BBF_MAX_SCHEDULERS;
	for (int i = 0; i < BBF_MAX_DATABASES && !all_busy; i++)
	{
		BbfDatabase *db = &bbf_shared->databases[i];

		/* a scheduler that is running will wake us when it is done */
		if (OidIsValid(db->datid) && db->drained_by == 0 && db->next_due != 0 &&
			bbf_shmem_count(BBF_SLOT_SCHEDULER, db->datid, InvalidOid) == 0)
			until_ms = Min(until_ms, TimestampDifferenceMilliseconds(now, db->next_due));
	}
	LWLockRelease(bbf_shared->lock);
	return Max(until_ms, 1);
}

/* The launcher's main function. */
void
bbf_launcher_main(Datum main_arg)
{
	TimestampTz looked_at = 0;
	uint32		wait_event = 0;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);

	before_shmem_exit(leave, (Datum) 0);
	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	bbf_shared->launcher_pid = MyProcPid;
	bbf_shared->launcher_latch = MyLatch;
	LWLockRelease(bbf_shared->lock);
	pgstat_report_activity(STATE_IDLE, NULL);

	for (;;)
	{
		long		sleep_ms;

		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			bbf_databases_mark_all();
		}

		reap();
		bbf_watch_run();
		if (bbf_guc_enabled)
		{
			if (TimestampDifferenceExceeds(looked_at, GetCurrentTimestamp(), LOOK_AT_DATABASES_MS))
			{
				bbf_databases_look();
				looked_at = GetCurrentTimestamp();
			}
			sleep_ms = start_due() ? time_to_sleep(longest_sleep()) : NO_SLOTS_RETRY_MS;
		}
		else
			sleep_ms = longest_sleep();
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 sleep_ms, bbf_wait_event(wait_event, "BgwBackfillLauncherMain"));
		ResetLatch(MyLatch);
	}
}
