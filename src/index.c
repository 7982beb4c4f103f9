/*
 * index.c
 *		Phase index: the partial index that the pending rows are read from, and
 *		the vacuum without which it is not read alone.
 *
 * CREATE INDEX CONCURRENTLY commits on its own, so it is run as a top-level
 * utility statement outside any transaction of ours, without lock_timeout (see
 * bbf_txn_begin_utility).  One at a time in the server: each reads a whole
 * table twice and holds back the xmin horizon meanwhile.
 *
 * What a crash or a cancel leaves behind is an invalid index that every writer
 * still maintains; it is dropped first thing when the job is taken again.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_index.h"
#include "index.h"
#include "mode.h"
#include "names.h"
#include "postmaster/autovacuum.h"
#include "shmem.h"
#include "session.h"
#include "sql.h"
#include "txn.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

/* The index's OID, or InvalidOid; whether it is usable. */
static Oid
find_index(const BbfJob *job, bool *valid)
{
	Oid			source = bbf_job_source(job);
	Oid			index = OidIsValid(source) ?
	get_relname_relid(bbf_job_object(job, "pending_idx"), get_rel_namespace(source)) : InvalidOid;
	HeapTuple	tuple;

	*valid = false;
	if (!OidIsValid(index))
		return InvalidOid;
	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(index));
	if (!HeapTupleIsValid(tuple) ||
		((Form_pg_index) GETSTRUCT(tuple))->indrelid != source)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("relation \"%s\" is in the way of the index of job \"%s\"",
						get_rel_name(index), job->name),
				 errhint("Rename it, then use bgw_backfill.resume('%s').", job->name)));
	*valid = ((Form_pg_index) GETSTRUCT(tuple))->indisvalid;
	ReleaseSysCache(tuple);
	return index;
}

/* Is the job's index there and usable? */
bool
bbf_index_is_there(const BbfJob *job)
{
	bool		valid;

	return bbf_mode_lookup(job->mode)->pending_index == NULL ||
		(OidIsValid(find_index(job, &valid)) && valid);
}

/* Run one statement that commits on its own. */
static void
run_concurrently(const char *sql)
{
	bbf_txn_begin_utility();
	bbf_txn_utility(sql);
	bbf_txn_end_utility();
}

/*
 * Make the index the only thing that a look at the pending rows reads:
 * that takes the visibility map, so a vacuum; slowly, as autovacuum does it.
 */
static void
vacuum_table(const char *table_sql)
{
	char		value[32];

	if (autovacuum_vac_cost_delay >= 0)
	{
		snprintf(value, sizeof(value), "%g", autovacuum_vac_cost_delay);
		bbf_session_set("vacuum_cost_delay", value);
	}
	if (autovacuum_vac_cost_limit > 0)
	{
		snprintf(value, sizeof(value), "%d", autovacuum_vac_cost_limit);
		bbf_session_set("vacuum_cost_limit", value);
	}
	run_concurrently(psprintf("VACUUM (ANALYZE, TRUNCATE false, PARALLEL 0) %s", table_sql));
}

/*
 * The statements to run, found in a transaction of its own; false: nothing is to
 * be done any more.  A pause() that commits after this look finds us cancellable.
 */
static bool
plan_build(const char *job_name, char **drop, char **create, char **table_sql)
{
	BbfJob	   *job;
	const BbfMode *mode;
	BbfPair    *pair;
	static const char *const pending_idx = "pending_idx";
	bool		valid;
	char	   *name;

	if (!bbf_txn_begin())
		return false;
	job = bbf_job_load(job_name);
	if (job == NULL || job->paused || job->uninstall || job->phase != BBF_PHASE_INDEX)
	{
		bbf_txn_commit();
		return false;
	}
	mode = bbf_mode_lookup(job->mode);
	pair = bbf_pair_load(job);
	name = bbf_job_object(job, pending_idx);
	*drop = *create = NULL;
	*table_sql = mode->table ? mode->table(job, pair) : pair->source_sql;
	if (mode->pending_index == NULL)
	{
		bbf_txn_commit();
		return true;
	}
	bbf_names_check_installed(job, get_rel_namespace(pair->source), &pending_idx, 1);
	if (OidIsValid(find_index(job, &valid)) && !valid)
		*drop = psprintf("DROP INDEX CONCURRENTLY %s", quote_qualified_identifier(pair->schema, name));
	if (!valid)
		*create = psprintf("CREATE INDEX CONCURRENTLY %s %s", quote_identifier(name),
						   mode->pending_index(job, pair));
	bbf_txn_commit();
	return true;
}

/* The index is there: comment on it, and go on to verify. */
static void
finish(const char *job_name)
{
	BbfJob	   *job;

	if (!bbf_txn_begin())
		return;
	job = bbf_job_load(job_name);
	if (job && job->phase == BBF_PHASE_INDEX && bbf_index_is_there(job))
	{
		if (bbf_mode_lookup(job->mode)->pending_index)
			bbf_sql_ddl(psprintf("COMMENT ON INDEX %s IS %s",
							 quote_qualified_identifier(get_namespace_name(get_rel_namespace(bbf_job_source(job))),
														bbf_job_object(job, "pending_idx")),
							 quote_literal_cstr(psprintf("pending rows of job %s, kept by bgw_backfill",
															bbf_job_display_name(job)))));
		bbf_job_enter_phase(job, BBF_PHASE_VERIFY);
	}
	bbf_txn_commit();
}

/* All of a build, while it is our turn. */
static void
build(const char *job_name)
{
	char	   *drop;
	char	   *create;
	char	   *table_sql;

	bbf_shmem_set_cancellable(true);
	if (!plan_build(job_name, &drop, &create, &table_sql))
		return;
	if (drop)
		run_concurrently(drop);
	if (create)
		run_concurrently(create);
	vacuum_table(table_sql);
	bbf_shmem_set_cancellable(false);
	finish(job_name);
}

/*
 * Build the index of a job and vacuum its source, in transactions of its own;
 * called outside any.  Returns false if another build is under way: try again
 * later.  What goes wrong is an error; pause() cancels.
 */
bool
bbf_index_build(const char *job_name)
{
	if (!bbf_shmem_claim_index_build())
		return false;
	PG_TRY();
	{
		build(job_name);
	}
	PG_FINALLY();
	{
		bbf_shmem_set_cancellable(false);
		bbf_shmem_release_index_build();
	}
	PG_END_TRY();
	return true;
}
