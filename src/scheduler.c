/*
 * scheduler.c
 *		The scheduler: connected to one database for a moment, it finds the jobs
 *		that are due and the owners they belong to, leaves the answer in shared
 *		memory and exits.
 *
 * It reads and writes the extension's own tables and the catalogs, never a
 * user's table.  It is also who speaks for a worker that cannot: when a job's
 * tables are gone, or its owner could not connect, or the job came here in a
 * dump or a copied database.
 *
 * Each job is looked at in a transaction of its own, and none is waited for: what
 * is the matter with one, or who holds its rows, delays no other.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "catalog/pg_extension.h"
#include "identity.h"
#include "job.h"
#include "launcher.h"
#include "miscadmin.h"
#include "pair.h"
#include "quiet.h"
#include "scheduler.h"
#include "shmem.h"
#include "sql.h"
#include "txn.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#define TRY_AGAIN_MS	2000
#define LOCK_WAIT_MS	10		/* for what is deleted with a job */

static bool again = false;		/* something could not be done now */

/*
 * The rows of a job, to be written; false: somebody else holds one.  He may do so
 * for as long as he likes, so we come back.
 */
static bool
take_rows(const BbfJob *job)
{
	if (bbf_job_try_lock(job->name))
		return true;
	again = true;
	return false;
}

/* Record why no worker can be started for a job. */
static void
give_up(const BbfJob *job, BbfHealth health, const char *problem, const char *hint)
{
	char	   *message = hint ? psprintf("%s (%s)", problem, hint) : psprintf("%s", problem);

	if (!take_rows(job))
		return;
	ereport(LOG,
			(errmsg("job \"%s\" cannot go on: %s", job->name, problem),
			 hint ? errhint("%s", hint) : 0));
	bbf_job_record_error(job->name, message, health, NULL, 0);
}

/*
 * What keeps a job from being run by the role that owns its source, or NULL; and
 * a hint.
 */
static char *
obstacle(const BbfJob *job, Oid owner, char **hint)
{
	if (!OidIsValid(owner))
	{
		*hint = psprintf("Use bgw_backfill.untrack('%s') to end the job.", job->name);
		return psprintf("source table \"%s.%s\" does not exist", job->source_schema, job->source_name);
	}
	if (!job->uninstall && !bbf_job_belongs_to(job, owner))
	{
		*hint = psprintf("The new owner may use bgw_backfill.resume('%s').", job->name);
		return psprintf("source table \"%s.%s\" does not belong to role \"%s\" any more",
						job->source_schema, job->source_name, job->owner);
	}
	return bbf_identity_problem(owner, hint);
}

/* Find out when a job is due, and who has to be started for it. */
static void
schedule(const BbfJob *job, TimestampTz now)
{
	TimestampTz due = bbf_job_next_due(job);
	Oid			owner = bbf_pair_owner(bbf_job_source(job));
	char	   *problem;
	char	   *hint;

	if (job->uninstall && !OidIsValid(owner))
		owner = bbf_pair_owner(bbf_job_target(job));
	if (job->uninstall && !OidIsValid(owner))
	{
		if (take_rows(job))
			bbf_job_delete(job->name);	/* nothing is left to uninstall */
	}
	else if (!bbf_job_same_place(job) && !job->uninstall)
	{
		if (job->health != BBF_HEALTH_HELD)
			give_up(job, BBF_HEALTH_HELD,
					"the job was tracked in another database or server",
					psprintf("Use bgw_backfill.resume('%s') to go on with it here; it verifies first.",
							 job->name));
	}
	else if (due == 0)
		return;
	else if ((problem = obstacle(job, owner, &hint)) != NULL)
		give_up(job, BBF_HEALTH_FAILED, problem, hint);
	else if (bbf_quiet_pass_by(job, now))
		bbf_shmem_set_owner_due(MyDatabaseId, owner, bbf_job_next_due(bbf_job_load(job->name)));
	else if (due > now && !bbf_shmem_was_ended(job->name))
		bbf_shmem_set_owner_due(MyDatabaseId, owner, due);
	else
		bbf_shmem_add_due(MyDatabaseId, owner);
}

/* Is the extension that is installed here the one that this library is for? */
static bool
version_is_ours(void)
{
	Oid			types[] = {OIDOID};
	Datum		values[] = {ObjectIdGetDatum(bbf_txn_extension_oid())};
	char	   *version;

	if (bbf_sql_catalog("SELECT extversion FROM pg_catalog.pg_extension WHERE oid OPERATOR(pg_catalog.=) $1",
						1, types, values, NULL, SPI_OK_SELECT) == 0)
		return false;
	version = bbf_sql_text(0, 1);
	if (strcmp(version, "1.0") == 0)
		return true;
	ereport(LOG,
			(errmsg("extension bgw_backfill has version %s in this database, the library 1.0", version),
			 errhint("Restart the server, so that it loads the new library.")));
	return false;
}

/*
 * A prepared transaction may still bring a change that wakes nobody.  Looked at
 * before the jobs are: one that is committed in between is seen with them.  The
 * mark is taken off first, so that one that comes now puts it there again.
 */
static void
look_for_prepared(void)
{
	bbf_shmem_clear_recheck(MyDatabaseId);
	if (bbf_sql_catalog("SELECT 1 FROM pg_catalog.pg_prepared_xacts"
						" WHERE database OPERATOR(pg_catalog.=) pg_catalog.current_database() LIMIT 1",
						0, NULL, NULL, NULL, SPI_OK_SELECT) > 0)
		bbf_shmem_recheck(MyDatabaseId);
}

/* The names of the jobs to be looked at, in memory that outlives the look; NIL: none. */
static List *
list_jobs(const char *unused)
{
	List	   *names = NIL;

	if (!bbf_txn_begin())
		bbf_shmem_forget_database(MyDatabaseId);
	else
	{
		if (version_is_ours())
		{
			look_for_prepared();
			names = bbf_job_names();
		}
		bbf_txn_commit();
	}
	return names;
}

static List *
look_at_job(const char *name)
{
	BbfJob	   *job = bbf_job_begin(name);

	if (job == NULL)
		return NIL;
	bbf_txn_lock_timeout(LOCK_WAIT_MS);
	schedule(job, GetCurrentTimestamp());
	bbf_txn_commit();
	return NIL;
}

/* One look; an error of it is reported, and ends it alone. */
static List *
guarded(List *(*look) (const char *name), const char *name)
{
	MemoryContext context = CurrentMemoryContext;
	List	   *volatile names = NIL;

	PG_TRY();
	{
		names = look(name);
	}
	PG_CATCH();
	{
		EmitErrorReport();
		FlushErrorState();
		bbf_txn_abort();
		again = true;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	return names;
}

static void
schedule_all(void)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "bgw_backfill job", ALLOCSET_DEFAULT_SIZES);
	List	   *names;
	ListCell   *lc;

	MemoryContextSwitchTo(TopMemoryContext);
	names = guarded(list_jobs, NULL);
	foreach(lc, names)
	{
		CHECK_FOR_INTERRUPTS();
		MemoryContextReset(context);
		MemoryContextSwitchTo(context);
		guarded(look_at_job, lfirst(lc));
	}
	if (again)
		bbf_shmem_set_next_due(MyDatabaseId, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), TRY_AGAIN_MS));
}

/* A scheduler's main function. */
void
bbf_scheduler_main(Datum main_arg)
{
	BbfLaunch	launch;

	if (bbf_launcher_attach(main_arg, &launch) == NULL)
		return;
	BackgroundWorkerInitializeConnectionByOid(launch.datid, InvalidOid, 0);
	bbf_shmem_set_limit(0);
	schedule_all();
	bbf_shmem_say_goodbye();
}
