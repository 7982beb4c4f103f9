/*
 * progress.c
 *		What the views read from shared memory.
 */
#include "postgres.h"

#include "catalog/pg_authid.h"
#include "commands/progress.h"
#include "compat.h"
#include "fmgr.h"
#include "funcapi.h"
#include "guc.h"
#include "miscadmin.h"
#include "shmem.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(bgw_backfill_worker_status);
PG_FUNCTION_INFO_V1(bgw_backfill_launcher_waiting_for);

static const char *const activity_names[] = {
	[BBF_ACT_STARTING] = "idle",
	[BBF_ACT_RUNNING] = "running",
	[BBF_ACT_SLEEPING] = "sleeping"
};

static double
fraction(int64 done, int64 total)
{
	return total > 0 ? Min((double) done / total, 1.0) : 0.0;
}

/*
 * How far an index build is, from what the server reports of it: it scans the
 * table, sorts and loads, waits for old transactions (waits), and scans once more.
 */
static double
index_percent(pid_t pid, bool *waits)
{
	int			n = pgstat_fetch_stat_numbackends();

	for (int i = 1; i <= n; i++)
	{
		LocalPgBackendStatus *local = bbf_local_beentry(i);
		PgBackendStatus *status = local ? &local->backendStatus : NULL;
		int64	   *param;

		if (status == NULL || status->st_procpid != pid)
			continue;
		param = status->st_progress_param;
		if (status->st_progress_command == PROGRESS_COMMAND_VACUUM)
			return 80 + 19 * fraction(param[PROGRESS_VACUUM_HEAP_BLKS_SCANNED],
									  param[PROGRESS_VACUUM_TOTAL_HEAP_BLKS]);
		if (status->st_progress_command == PROGRESS_COMMAND_ANALYZE)
			return 99;
		if (status->st_progress_command != PROGRESS_COMMAND_CREATE_INDEX)
			return 0;
		*waits = param[PROGRESS_CREATEIDX_PHASE] == PROGRESS_CREATEIDX_PHASE_WAIT_1 ||
			param[PROGRESS_CREATEIDX_PHASE] == PROGRESS_CREATEIDX_PHASE_WAIT_2 ||
			param[PROGRESS_CREATEIDX_PHASE] == PROGRESS_CREATEIDX_PHASE_WAIT_3;
		switch (param[PROGRESS_CREATEIDX_PHASE])
		{
			case PROGRESS_CREATEIDX_PHASE_WAIT_1:
				return 0;
			case PROGRESS_CREATEIDX_PHASE_BUILD:
				return 40 * fraction(param[PROGRESS_SCAN_BLOCKS_DONE],
									 param[PROGRESS_SCAN_BLOCKS_TOTAL]);
			case PROGRESS_CREATEIDX_PHASE_WAIT_2:
				return 40;
			case PROGRESS_CREATEIDX_PHASE_VALIDATE_TABLESCAN:
				return 45 + 30 * fraction(param[PROGRESS_SCAN_BLOCKS_DONE],
										  param[PROGRESS_SCAN_BLOCKS_TOTAL]);
			case PROGRESS_CREATEIDX_PHASE_WAIT_3:
				return 78;
			default:
				return 42;
		}
	}
	return 0;
}

/*
 * The workers of this database, for whom they concern.  The percentage of an
 * index build never goes back: what was shown is kept in the slot.
 */
Datum
bgw_backfill_worker_status(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	bool		see_all = has_privs_of_role(GetUserId(), ROLE_PG_READ_ALL_STATS);
	BbfSlot		slots[BBF_MAX_SLOTS];

	InitMaterializedSRF(fcinfo, 0);
	if (bbf_shared == NULL)
		return (Datum) 0;
	LWLockAcquire(bbf_shared->lock, LW_SHARED);
	memcpy(slots, bbf_shared->slots, sizeof(slots));
	LWLockRelease(bbf_shared->lock);

	for (int i = 0; i < BBF_MAX_SLOTS; i++)
	{
		BbfSlot    *slot = &slots[i];
		Datum		values[7];
		bool		nulls[7] = {0};

		if (slot->kind != BBF_SLOT_WORKER || slot->pid == 0 || slot->datid != MyDatabaseId ||
			!(see_all || has_privs_of_role(GetUserId(), slot->owner)))
			continue;
		if (slot->statement == BBF_STATEMENT_LONG)
		{
			bool		waits = false;
			double		percent = index_percent(slot->pid, &waits);

			LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
			if (bbf_shared->slots[i].generation == slot->generation)
			{
				percent = Max(percent, bbf_shared->slots[i].index_percent);
				bbf_shared->slots[i].index_percent = percent;
			}
			LWLockRelease(bbf_shared->lock);
			slot->index_percent = percent;
			if (waits && slot->waiting_for[0] == '\0')
			{
				strlcpy(slot->waiting_for, "older transactions", NAMEDATALEN);
				slot->waiting_since = 0;
			}
		}
		values[0] = Int32GetDatum(slot->pid);
		values[1] = ObjectIdGetDatum(slot->owner);
		values[2] = CStringGetTextDatum(slot->job);
		values[3] = CStringGetTextDatum(activity_names[slot->activity]);
		values[4] = CStringGetTextDatum(slot->waiting_for);
		values[5] = TimestampTzGetDatum(slot->waiting_since);
		values[6] = Float8GetDatum(slot->index_percent);
		nulls[4] = slot->waiting_for[0] == '\0';
		nulls[5] = nulls[4] || slot->waiting_since == 0;
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* What keeps the launcher from starting workers, or NULL. */
Datum
bgw_backfill_launcher_waiting_for(PG_FUNCTION_ARGS)
{
	const char *reason = NULL;

	if (bbf_shared == NULL)
		reason = "shared_preload_libraries";
	else if (!bbf_guc_enabled)
		reason = "bgw_backfill.enabled";
	else if (bbf_shared->no_slots_since != 0)
		reason = "max_worker_processes";
	if (reason == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(reason));
}
