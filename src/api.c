/*
 * api.c
 *		The SQL functions: each checks its arguments and the caller's rights,
 *		and changes the job's configuration.  The work is a worker's.
 *
 * None of them waits without a bound for a transaction that holds a job's row, or a
 * lock on its tables.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "api.h"
#include "catalog/pg_type.h"
#include "change.h"
#include "check.h"
#include "columns.h"
#include "compat.h"
#include "fmgr.h"
#include "guc.h"
#include "handoff.h"
#include "job.h"
#include "mode.h"
#include "move.h"
#include "session.h"
#include "shmem.h"
#include "sql.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/varlena.h"
#include "wake.h"

#define LOCK_WAIT_MS 10000		/* unless the session's lock_timeout is shorter */

PG_FUNCTION_INFO_V1(bgw_backfill_track);
PG_FUNCTION_INFO_V1(bgw_backfill_untrack);
PG_FUNCTION_INFO_V1(bgw_backfill_pause);
PG_FUNCTION_INFO_V1(bgw_backfill_resume);
PG_FUNCTION_INFO_V1(bgw_backfill_verify);
PG_FUNCTION_INFO_V1(bgw_backfill_configure);
PG_FUNCTION_INFO_V1(bgw_backfill_check_preload);

/* No worker runs, and nothing can be written, on a standby. */
void
bbf_api_refuse_in_recovery(const char *function)
{
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("cannot execute bgw_backfill.%s() during recovery", function),
				 errhint("Call it on the primary.")));
	PreventCommandIfReadOnly(psprintf("bgw_backfill.%s()", function));
}

/* Warn at CREATE EXTENSION that nothing would run; a restore must go on. */
Datum
bgw_backfill_check_preload(PG_FUNCTION_ARGS)
{
	if (bbf_shared == NULL)
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("bgw_backfill is not in shared_preload_libraries, so no job will run"),
				 errhint("Add this line to postgresql.conf and restart the server: shared_preload_libraries = 'bgw_backfill'")));
	PG_RETURN_VOID();
}

/* The beginning of a call; returns what end_call() goes back to. */
static int
begin_call(void)
{
	SPI_connect();
	return bbf_session_pin_waits(LOCK_WAIT_MS);
}

static void
end_call(int nestlevel)
{
	bbf_session_unpin(nestlevel);
	SPI_finish();
}

static char *
text_argument(FunctionCallInfo fcinfo, int n)
{
	return PG_ARGISNULL(n) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(n));
}

static char *
name_argument(FunctionCallInfo fcinfo, int n)
{
	return PG_ARGISNULL(n) ? NULL : pstrdup(NameStr(*PG_GETARG_NAME(n)));
}

/* Write a checked job into the extension's tables. */
static void
insert_job(const BbfJob *job)
{
	Oid			types[19];
	Datum		values[19];
	char		nulls[20];
	const char *texts[] = {job->name, job->owner, job->source_schema, job->source_name,
		job->target_schema, job->target_name, job->mode, job->source_key, job->target_key,
	job->flag_column, job->pending_where, job->match_where, job->group_by};
	int			n;

	memset(nulls, ' ', sizeof(nulls));
	for (n = 0; n < (int) lengthof(texts); n++)
	{
		types[n] = TEXTOID;
		values[n] = texts[n] ? CStringGetTextDatum(texts[n]) : (Datum) 0;
		nulls[n] = texts[n] ? ' ' : 'n';
	}
	types[13] = types[14] = types[15] = OIDOID;
	values[13] = ObjectIdGetDatum(MyDatabaseId);
	values[14] = ObjectIdGetDatum(job->source_oid);
	values[15] = ObjectIdGetDatum(job->target_oid);
	types[16] = INT8OID;
	values[16] = Int64GetDatum((int64) GetSystemIdentifier());
	types[17] = OIDOID;
	values[17] = ObjectIdGetDatum(job->role_oid);
	types[18] = TEXTOID;
	values[18] = job->handler ? CStringGetTextDatum(job->handler) : (Datum) 0;
	nulls[18] = job->handler ? ' ' : 'n';
	if (bbf_sql_catalog("INSERT INTO bgw_backfill.job (job, owner, source_schema, source_name,"
						" target_schema, target_name, mode, source_key, target_key, flag_column,"
						" pending_where, match_where, group_by, database_oid, source_oid, target_oid,"
						" system_id, role_oid, handler) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12,"
						" $13, $14, $15, $16, $17, $18, $19) ON CONFLICT DO NOTHING",
						19, types, values, nulls, SPI_OK_INSERT) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("job \"%s\" already exists", job->name),
				 errdetail("It was made, or took the same flag column, at this moment.")));
	bbf_job_forget_handouts(job->name);
	bbf_sql_catalog("INSERT INTO bgw_backfill.job_state (job) VALUES ($1)",
					1, types, values, NULL, SPI_OK_INSERT);
	(void) bbf_columns_follow(bbf_job_load(job->name));
}

/*
 * track(source, target, job, mode, source_key, target_key, flag_column,
 * pending_where, match_where, group_by, handler, dry_run) returns the job's
 * name.
 */
Datum
bgw_backfill_track(PG_FUNCTION_ARGS)
{
	MemoryContext context = CurrentMemoryContext;
	BbfJob		job = {0};
	char	   *name;
	int			level;

	bbf_api_refuse_in_recovery("track");
	if (bbf_shared == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("bgw_backfill is not in shared_preload_libraries"),
				 errdetail("Without it no worker would take the job."),
				 errhint("Add this line to postgresql.conf and restart the server: shared_preload_libraries = 'bgw_backfill'")));
	for (int i = 0; i < PG_NARGS(); i++)
	{
		if (PG_ARGISNULL(i) && (i == 0 || i == 1 || i == 3 || i == 11))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("source, target, mode and dry_run must not be null")));
	}
	level = begin_call();
	job.source_oid = PG_GETARG_OID(0);
	job.target_oid = PG_GETARG_OID(1);
	job.name = text_argument(fcinfo, 2);
	job.mode = text_argument(fcinfo, 3);
	job.source_key = name_argument(fcinfo, 4);
	job.target_key = name_argument(fcinfo, 5);
	job.flag_column = name_argument(fcinfo, 6);
	job.pending_where = text_argument(fcinfo, 7);
	job.match_where = text_argument(fcinfo, 8);
	job.group_by = name_argument(fcinfo, 9);
	job.database_oid = MyDatabaseId;
	job.system_id = (int64) GetSystemIdentifier();
	bbf_check_job(&job);
	if (!PG_ARGISNULL(10))
		job.handler = bbf_handoff_check(PG_GETARG_OID(10), bbf_pair_load(&job));
	if (PG_GETARG_BOOL(11))
		bbf_check_report(&job);
	else
		insert_job(&job);
	name = MemoryContextStrdup(context, job.name);
	end_call(level);
	PG_RETURN_TEXT_P(cstring_to_text(name));
}

/* There is no job of that name. */
void
bbf_api_no_such_job(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("job \"%s\" does not exist", name),
			 errhint("The view bgw_backfill.jobs lists your jobs.")));
}

/*
 * The job of that name, for a caller who may change it: a member of the role
 * that owns its source (or owned it, if the table is gone).
 */
BbfJob *
bbf_api_own_job(const char *name)
{
	BbfJob	   *job = bbf_job_load(name);
	Oid			owner;

	if (job == NULL || job->successor_of)
		bbf_api_no_such_job(name);
	owner = bbf_pair_owner(bbf_job_source(job));
	if (!OidIsValid(owner))
		owner = get_role_oid(job->owner, true);
	if (!(OidIsValid(owner) ? has_privs_of_role(GetUserId(), owner) : superuser()))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of job \"%s\"", name),
				 errdetail("A job belongs to the owner of its source.")));
	return job;
}

/* Change a job's configuration, and its successor's, which wakes the launcher. */
static void
update_job(const char *name, const char *assignments, const char *value)
{
	Oid			types[] = {TEXTOID, TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name), value ? CStringGetTextDatum(value) : (Datum) 0};

	bbf_sql_catalog(psprintf("UPDATE bgw_backfill.job SET %s WHERE job OPERATOR(pg_catalog.=) $1"
							 " OR successor_of OPERATOR(pg_catalog.=) $1",
							 assignments),
					value ? 2 : 1, types, values, NULL, SPI_OK_UPDATE);
}

/* untrack(job, drop_objects) */
Datum
bgw_backfill_untrack(PG_FUNCTION_ARGS)
{
	BbfJob	   *job;
	char	   *successor;
	int			level;

	bbf_api_refuse_in_recovery("untrack");
	level = begin_call();
	job = bbf_api_own_job(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	if (!OidIsValid(bbf_job_source(job)) && !OidIsValid(bbf_job_target(job)))
	{
		bbf_job_delete(job->name);
		if ((successor = bbf_job_successor(job->name)) != NULL)
			bbf_job_delete(successor);
		ereport(NOTICE,
				(errmsg("the tables of job \"%s\" are gone, job removed", job->name)));
	}
	else
	{
		update_job(job->name, PG_GETARG_BOOL(1) ? "uninstall = true, drop_objects = true" :
				   "uninstall = true, drop_objects = false", NULL);
		bbf_job_set_well(job->name);
		bbf_wake_cancel_at_commit(job->name);
		if ((successor = bbf_job_successor(job->name)) != NULL)
		{
			bbf_job_set_well(successor);
			bbf_wake_cancel_at_commit(successor);
		}
	}
	end_call(level);
	PG_RETURN_VOID();
}

/* pause(job) */
Datum
bgw_backfill_pause(PG_FUNCTION_ARGS)
{
	BbfJob	   *job;
	char	   *successor;
	int			level;

	bbf_api_refuse_in_recovery("pause");
	level = begin_call();
	job = bbf_api_own_job(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	update_job(job->name, "paused = true", NULL);
	bbf_wake_cancel_at_commit(job->name);
	if ((successor = bbf_job_successor(job->name)) != NULL)
		bbf_wake_cancel_at_commit(successor);
	end_call(level);
	PG_RETURN_VOID();
}

/*
 * resume(job).  A job that came from somewhere else, or whose tables have a new
 * owner, begins anew: its triggers may not have served meanwhile.
 */
Datum
bgw_backfill_resume(PG_FUNCTION_ARGS)
{
	BbfJob	   *job;
	Oid			source;
	Oid			target;
	Oid			owner;
	char	   *successor;
	int			level;

	bbf_api_refuse_in_recovery("resume");
	level = begin_call();
	job = bbf_api_own_job(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	source = bbf_job_source(job);
	target = bbf_job_target(job);
	if (!OidIsValid(source) || !OidIsValid(target))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("%s table of job \"%s\" does not exist",
						OidIsValid(source) ? "target" : "source", job->name),
				 errhint("Use bgw_backfill.untrack('%s') to end the job.", job->name)));
	owner = bbf_pair_owner(source);
	if (!has_privs_of_role(GetUserId(), bbf_pair_owner(target)))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_TABLE, get_rel_name(target));
	bbf_shmem_forget_ended(job->name);
	/* a failed one may have missed something: a sweep will tell */
	update_job(job->name, job->health == BBF_HEALTH_OK ? "paused = false" :
			   "paused = false, verify_requests = verify_requests OPERATOR(pg_catalog.+) 1", NULL);
	bbf_job_set_well(job->name);
	if ((successor = bbf_job_successor(job->name)) != NULL)
		bbf_job_set_well(successor);
	if (job->health == BBF_HEALTH_HELD || !bbf_job_same_place(job) || !bbf_job_belongs_to(job, owner))
	{
		BbfJob	   *moving = successor ? bbf_job_load(successor) : NULL;

		bbf_job_adopt(job, source, target, owner);
		if (moving)
		{
			/* a move that was under way elsewhere is given up */
			bbf_job_adopt(moving, source, target, owner);
			bbf_move_request(job, job->mode);
		}
		job = bbf_api_own_job(job->name);	/* it may have been removed at this moment */
		bbf_job_enter_phase(job, BBF_PHASE_INSTALL);
	}
	end_call(level);
	PG_RETURN_VOID();
}

/* verify(job) */
Datum
bgw_backfill_verify(PG_FUNCTION_ARGS)
{
	BbfJob	   *job;
	int			level;

	bbf_api_refuse_in_recovery("verify");
	level = begin_call();
	job = bbf_api_own_job(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	update_job(job->name, "verify_requests = verify_requests OPERATOR(pg_catalog.+) 1", NULL);
	end_call(level);
	PG_RETURN_VOID();
}

/* configure(job, setting, value); value NULL: the server's again */
Datum
bgw_backfill_configure(PG_FUNCTION_ARGS)
{
	char	   *setting_name = text_argument(fcinfo, 1);
	char	   *value = text_argument(fcinfo, 2);
	BbfSetting	setting;
	BbfJob	   *job;
	const char *name;
	int			level;

	bbf_api_refuse_in_recovery("configure");
	if (PG_ARGISNULL(0) || setting_name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("job and setting must not be null")));
	level = begin_call();
	job = bbf_api_own_job(text_argument(fcinfo, 0));
	/* one change at a time: of two, each would not see the other */
	bbf_job_lock(job->name);
	job = bbf_api_own_job(job->name);
	if (strcmp(setting_name, "mode") == 0)
	{
		if (value == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("mode must not be null")));
		bbf_move_request(job, value);
		end_call(level);
		PG_RETURN_VOID();
	}
	if (strcmp(setting_name, "handler") == 0)
	{
		bbf_change_handler(job, value);
		end_call(level);
		PG_RETURN_VOID();
	}
	if (strcmp(setting_name, "pending_where") == 0 || strcmp(setting_name, "match_where") == 0)
	{
		bbf_change_request(job, setting_name, value);
		end_call(level);
		PG_RETURN_VOID();
	}
	if (!bbf_guc_find_per_job(setting_name, &setting))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("unrecognized per-job setting: \"%s\"", setting_name),
				 errhint("The per-job settings are batch_size, batch_sleep, lock_timeout, statement_timeout, scan_interval, scan_timeout, verify_interval, lookback, max_attempts, max_leased, handoff_rows, handoff_groups and handoff_lease.")));
	name = bbf_guc_name(setting) + strlen("bgw_backfill.");
	if (value == NULL)
		update_job(job->name, "settings = ARRAY(SELECT s FROM pg_catalog.unnest(settings) s"
				   " WHERE pg_catalog.split_part(s, '=', 1) OPERATOR(pg_catalog.<>) $2)", name);
	else
		update_job(job->name, "settings = ARRAY(SELECT s FROM pg_catalog.unnest(settings) s"
				   " WHERE pg_catalog.split_part(s, '=', 1) OPERATOR(pg_catalog.<>)"
				   "  pg_catalog.split_part($2, '=', 1)) OPERATOR(pg_catalog.||) $2",
				   psprintf("%s=%s", name, bbf_guc_show(setting, bbf_guc_parse(setting, value))));
	end_call(level);
	PG_RETURN_VOID();
}
