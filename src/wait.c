/*
 * wait.c
 *		The procedure wait().
 *
 * It commits between its looks, so that it holds no snapshot while it waits:
 * CREATE INDEX CONCURRENTLY waits for all older snapshots, and would wait for
 * one of somebody who waits for the index.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "fmgr.h"
#include "job.h"
#include "miscadmin.h"
#include "pair.h"
#include "nodes/parsenodes.h"
#include "sql.h"
#include "storage/latch.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(bgw_backfill_wait);

/* between two looks: from the first to the second, growing */
#define MIN_SLEEP_MS	50
#define MAX_SLEEP_MS	500

/* May the caller see the job?  As the views have it: his own jobs, or he reads all statistics. */
static bool
may_see(const char *name)
{
	BbfJob	   *job = bbf_job_load(name);
	Oid			owner = job ? bbf_pair_owner(bbf_job_source(job)) : InvalidOid;

	if (job == NULL || job->successor_of)
		return false;
	if (!OidIsValid(owner))
		owner = get_role_oid(job->owner, true);
	return has_privs_of_role(GetUserId(), ROLE_PG_READ_ALL_STATS) ||
		(OidIsValid(owner) ? is_member_of_role(GetUserId(), owner) : superuser());
}

/*
 * Has the job reached the phase?  An error if it never will without a hand.  The
 * job must be one that the caller may see.
 */
static bool
has_reached(const char *name, BbfPhase wanted)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	char	   *phase_name;
	char	   *state;
	char	   *last_error;
	BbfPhase	phase;

	if (!may_see(name) ||
		bbf_sql_catalog("SELECT phase, state, last_error FROM bgw_backfill.progress"
						" WHERE job OPERATOR(pg_catalog.=) $1",
						1, types, values, NULL, SPI_OK_SELECT) == 0)
	{
		if (wanted == BBF_PHASE_UNINSTALL)
			return true;
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("job \"%s\" does not exist", name),
				 errhint("The view bgw_backfill.jobs lists your jobs.")));
	}
	phase_name = bbf_sql_text(0, 1);
	state = bbf_sql_text(0, 2);
	last_error = bbf_sql_text(0, 3);
	SPI_freetuptable(SPI_tuptable);
	if (!bbf_job_phase_from_name(phase_name, &phase))
		elog(ERROR, "job \"%s\" has no valid phase", name);
	if (phase == BBF_PHASE_UNINSTALL && wanted != BBF_PHASE_UNINSTALL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("job \"%s\" is being removed", name)));
	if (strcmp(state, "failed") == 0 || strcmp(state, "held") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("job \"%s\" is %s", name, state),
				 last_error ? errdetail_internal("%s", last_error) : 0,
				 errhint("Use bgw_backfill.resume('%s') when the cause is gone.", name)));
	return wanted != BBF_PHASE_UNINSTALL && phase >= wanted;
}

/* Let go of the snapshot and sleep for a moment. */
static void
sleep_without_snapshot(long ms)
{
	static uint32 wait_event = 0;

	SPI_commit();
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 ms, bbf_wait_event(wait_event, "BgwBackfillWaitForPhase"));
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

/* wait(job, phase, timeout) */
Datum
bgw_backfill_wait(PG_FUNCTION_ARGS)
{
	CallContext *call = (CallContext *) fcinfo->context;
	char	   *name;
	char	   *phase_name;
	BbfPhase	phase;
	TimestampTz until;
	MemoryContext look;
	long		ms = MIN_SLEEP_MS;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1) || PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("job, phase and timeout must not be null")));
	if (call == NULL || !IsA(call, CallContext) || call->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("bgw_backfill.wait() cannot run inside a transaction block"),
				 errdetail("It must not hold a snapshot while it waits."),
				 errhint("Use CALL bgw_backfill.wait(...) on its own.")));
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	phase_name = text_to_cstring(PG_GETARG_TEXT_PP(1));
	if (!bbf_job_phase_from_name(phase_name, &phase))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unrecognized phase: \"%s\"", phase_name),
				 errhint("The phases are install, fill, index, verify, live and uninstall.")));
	until = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
													TimestampTzGetDatum(GetCurrentTimestamp()),
													PG_GETARG_DATUM(2)));

	SPI_connect_ext(SPI_OPT_NONATOMIC);
	look = AllocSetContextCreate(CurrentMemoryContext, "bgw_backfill wait", ALLOCSET_SMALL_SIZES);
	for (;;)
	{
		MemoryContextSwitchTo(look);
		MemoryContextReset(look);
		if (has_reached(name, phase))
			break;
		if (GetCurrentTimestamp() >= until)
			ereport(ERROR,
					(errcode(ERRCODE_QUERY_CANCELED),
					 errmsg("job \"%s\" did not reach phase \"%s\" in time", name, phase_name),
					 errhint("See bgw_backfill.progress; the job goes on.")));
		sleep_without_snapshot(ms);
		ms = Min(ms + ms / 4, MAX_SLEEP_MS);
	}
	SPI_finish();
	PG_RETURN_VOID();
}
