/*
 * index.c
 *		Phase index: the partial index that the pending rows are read from, and
 *		the vacuum without which it is not read alone.
 *
 * CREATE INDEX CONCURRENTLY commits on its own, so it is run as a top-level
 * utility statement outside any transaction of ours, without lock_timeout (see
 * bbf_txn_begin_utility).  One at a time in the server: each reads a whole
 * table twice and holds back the xmin horizon meanwhile.  One that waits for old
 * transactions does not count (bbf_shmem_claim_index_build), nor does a vacuum.
 *
 * What a crash or a cancel leaves behind is an invalid index that every writer
 * still maintains; it is dropped first thing when the job is taken again.
 */
#include "postgres.h"

#include "catalog/pg_index.h"
#include "index.h"
#include "leftovers.h"
#include "mode.h"
#include "names.h"
#include "objects.h"
#include "postmaster/autovacuum.h"
#include "shmem.h"
#include "session.h"
#include "storage/proc.h"
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
	Oid			index = OidIsValid(source) ? bbf_object_find(job, BBF_PENDING_IDX) : InvalidOid;
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

/* Drop the job's index, if it has one, in the transaction that is open. */
void
bbf_index_drop(const BbfJob *job)
{
	bool		valid;
	Oid			index = bbf_mode_lookup(job->mode)->pending_index ? find_index(job, &valid) : InvalidOid;

	if (OidIsValid(index))
		bbf_sql_ddl(psprintf("DROP INDEX %s", bbf_object_sql(job, BBF_PENDING_IDX)));
}

/*
 * About how many rows are pending, by what the server knows of the index that they are
 * read from: its size and how full vacuum has found it; of a table of pending keys that
 * has never seen one, how many rows it has by the statistics.  0: not known.
 */
int64
bbf_index_estimate(const BbfJob *job, const BbfPair *pair)
{
	Oid			types[] = {OIDOID, OIDOID};
	Datum		values[] = {ObjectIdGetDatum(bbf_object_find(job, bbf_mode_lookup(job->mode)->table == NULL ? BBF_PENDING_IDX :
														 job->group_by ? BBF_SIDECAR_IDX : BBF_SIDECAR_KEY)),
	ObjectIdGetDatum(pair->source)};
	int64		estimate = 0;

	if (bbf_sql_catalog("SELECT CASE WHEN c.reltuples OPERATOR(pg_catalog.>) 0 OR i.indrelid OPERATOR(pg_catalog.=) $2 THEN"
						"  (c.reltuples OPERATOR(pg_catalog./) greatest(c.relpages, 1)"
						"   OPERATOR(pg_catalog.*) (pg_catalog.pg_relation_size(c.oid)"
						"   OPERATOR(pg_catalog./) pg_catalog.current_setting('block_size')::pg_catalog.int8))::pg_catalog.int8"
						" ELSE pg_catalog.pg_stat_get_live_tuples(i.indrelid) END"
						" FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) i.indexrelid"
						" WHERE i.indexrelid OPERATOR(pg_catalog.=) $1",
						2, types, values, NULL, SPI_OK_SELECT) > 0)
	{
		char	   *text = bbf_sql_text(0, 1);

		estimate = text ? Max(strtoll(text, NULL, 10), 0) : 0;
	}
	SPI_freetuptable(SPI_tuptable);
	return estimate;
}

/* what is to be done for a job */
typedef struct Build
{
	char	   *drop;			/* statements; NULL: not to be run */
	char	   *create;
	char	   *table_sql;
	int			lock_timeout;
} Build;

/* Run one statement that commits on its own; lock_timeout_ms 0: it waits as long as it takes. */
static void
run_concurrently(const char *sql, int lock_timeout_ms)
{
	bbf_txn_begin_utility(lock_timeout_ms);
	bbf_txn_utility(sql);
	bbf_txn_end_utility();
}

/*
 * Make the index the only thing that a look at the pending rows reads:
 * that takes the visibility map, so a vacuum; slowly, as autovacuum does it.  It waits
 * for a lock no longer than the server needs to take an autovacuum away.
 */
static void
vacuum_table(const Build *build)
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
	run_concurrently(psprintf("VACUUM (ANALYZE, TRUNCATE false, PARALLEL 0) %s", build->table_sql),
					 Max(build->lock_timeout, 2 * DeadlockTimeout));
}

/*
 * The statements to run, found in a transaction of its own; false: nothing is to
 * be done any more.  A pause() that commits after this look finds us cancellable.
 */
static bool
plan_build(const char *job_name, Build *build)
{
	BbfJob	   *job;
	const BbfMode *mode;
	BbfPair    *pair;
	static const BbfObject pending_idx = BBF_PENDING_IDX;
	bool		valid;

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
	memset(build, 0, sizeof(Build));
	build->lock_timeout = bbf_job_setting(job, BBF_LOCK_TIMEOUT);
	build->table_sql = mode->table ? mode->table(job, pair) : pair->source_sql;
	if (mode->pending_index == NULL)
	{
		bbf_txn_commit();
		return true;
	}
	bbf_names_check_installed(job, get_rel_namespace(pair->source), &pending_idx, 1);
	if (OidIsValid(find_index(job, &valid)) && !valid)
		build->drop = psprintf("DROP INDEX CONCURRENTLY %s", bbf_object_sql(job, BBF_PENDING_IDX));
	if (!valid)
		build->create = psprintf("CREATE INDEX CONCURRENTLY %s %s", quote_identifier(bbf_object_name(job, BBF_PENDING_IDX)),
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
							 bbf_object_sql(job, BBF_PENDING_IDX),
							 quote_literal_cstr(bbf_leftover_mark(job, BBF_PENDING_IDX))));
		bbf_objects_record(job);
		bbf_job_enter_phase(job, BBF_PHASE_VERIFY);
	}
	bbf_txn_commit();
}

/*
 * Drop and create what is to be, if it is our turn; false: it is not.  Others' turn
 * comes when that is done, whatever is done then.
 */
static bool
build_index(const Build *build)
{
	if (build->drop == NULL && build->create == NULL)
		return true;
	if (!bbf_shmem_claim_index_build())
		return false;
	PG_TRY();
	{
		if (build->drop)
			run_concurrently(build->drop, 0);
		if (build->create)
			run_concurrently(build->create, 0);
	}
	PG_FINALLY();
	{
		bbf_shmem_release_index_build();
	}
	PG_END_TRY();
	return true;
}

/*
 * Build the index of a job and vacuum its source, in transactions of its own;
 * called outside any.  Returns false if another build is under way: try again
 * later.  What goes wrong is an error; pause() cancels.
 */
bool
bbf_index_build(const char *job_name)
{
	Build		build;
	bool		planned;
	bool		built;

	bbf_shmem_set_statement(BBF_STATEMENT_LONG);
	planned = plan_build(job_name, &build);
	built = planned && build_index(&build);
	if (built)
		vacuum_table(&build);
	bbf_shmem_set_statement(BBF_STATEMENT_PLAIN);
	if (built)
		finish(job_name);
	return built || !planned;
}
