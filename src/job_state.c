/*
 * job_state.c
 *		What changes a job's rows in the extension's tables.
 *
 * Locks: the row in job_state is the last lock that any transaction of ours
 * takes, TRUNCATE's trigger included, so it is never part of a deadlock.
 *
 * Generations: everything that restarts a walk (a TRUNCATE, a new phase, a
 * resume) raises job_state.generation.  A batch commits its cursor and counters
 * in its own transaction with "WHERE generation = the one it began under": a
 * batch that was overtaken by a restart keeps its work on the user's table,
 * which is right whenever it is done, and leaves no trace here.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "job.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "sql.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

/* Run an UPDATE of one job's state with up to three more parameters. */
static bool
update_state(const char *name, const char *assignments, const char *condition,
			 int nargs, Oid *types, Datum *values, const char *nulls)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "UPDATE bgw_backfill.job_state SET %s WHERE job OPERATOR(pg_catalog.=) $1%s",
					 assignments, condition);
	types[0] = TEXTOID;
	values[0] = CStringGetTextDatum(name);
	return bbf_sql_catalog(sql.data, nargs, types, values, nulls, SPI_OK_UPDATE) > 0;
}

/*
 * Go on to a phase.  Returns false, and changes nothing, if somebody else has
 * moved the job meanwhile.
 */
bool
bbf_job_enter_phase(BbfJob *job, BbfPhase phase)
{
	Oid			types[3] = {TEXTOID, INT8OID, TEXTOID};
	Datum		values[3] = {0, Int64GetDatum(job->generation),
	CStringGetTextDatum(bbf_job_phase_name(phase))};

	if (!update_state(job->name,
					  "phase = $3, generation = generation OPERATOR(pg_catalog.+) 1,"
					  " walk_cursor = NULL, high_mark = NULL, rows_done = 0, rows_total = 0,"
					  " rows_changed = CASE WHEN $3 OPERATOR(pg_catalog.=) 'fill' THEN 0 ELSE rows_changed END,"
					  " index_percent = 0, batches = 0, batch_ms = NULL, rows_per_second = NULL,"
					  " retries = 0, waits = 0, retry_at = NULL, waiting_for = NULL, waiting_since = NULL,"
					  " phase_started_at = pg_catalog.clock_timestamp(),"
					  " fill_started_at = CASE $3 WHEN 'fill' THEN NULL"
					  "  WHEN 'index' THEN coalesce(fill_started_at, pg_catalog.clock_timestamp()) ELSE fill_started_at END,"
					  " fill_ended_at = CASE $3 WHEN 'fill' THEN NULL"
					  "  WHEN 'index' THEN coalesce(fill_ended_at, pg_catalog.clock_timestamp()) ELSE fill_ended_at END,"
					  " live_since = CASE WHEN $3 OPERATOR(pg_catalog.=) 'live' THEN pg_catalog.clock_timestamp() END,"
					  " scan_at = CASE WHEN $3 OPERATOR(pg_catalog.=) 'live' THEN NULL ELSE scan_at END,"
					  " sweep_started_at = NULL, switch_xid = NULL",
					  " AND generation OPERATOR(pg_catalog.=) $2",
					  3, types, values, NULL))
		return false;
	job->phase = phase;
	job->generation++;
	job->cursor = job->high_mark = NULL;
	job->rows_done = job->rows_total = 0;
	job->sweep_started_at = 0;
	if (phase == BBF_PHASE_LIVE)
		job->scan_at = 0;
	job->retries = 0;
	job->retry_at = 0;
	return true;
}

/*
 * Begin a walk over the source up to high_mark (NULL: the source is empty).  In a
 * verify, serves all requests made so far.
 */
bool
bbf_job_begin_walk(BbfJob *job, const char *high_mark, int64 rows_total)
{
	bool		sweep = job->phase != BBF_PHASE_FILL;
	Oid			types[5] = {TEXTOID, INT8OID, TEXTOID, INT8OID, INT8OID};
	Datum		values[5] = {0, Int64GetDatum(job->generation),
		high_mark ? CStringGetTextDatum(high_mark) : (Datum) 0,
	Int64GetDatum(rows_total), Int64GetDatum(job->verify_requests)};
	char		nulls[6] = "     ";

	if (high_mark == NULL)
		nulls[2] = 'n';
	if (sweep)
		return update_state(job->name,
							psprintf("walk_cursor = NULL, high_mark = $3, sweep_mismatches = 0, sweep_rows = 0,"
									 " sweep_eligible = 0, sweep_pending = 0, sweep_request = $5,"
									 " sweep_started_at = pg_catalog.clock_timestamp(), sweep_total = $4%s",
									 job->phase == BBF_PHASE_LIVE ? "" : ", rows_total = $4"),
							" AND generation OPERATOR(pg_catalog.=) $2",
							5, types, values, nulls);
	return update_state(job->name,
						"walk_cursor = NULL, high_mark = $3, rows_total = $4,"
						" fill_started_at = NULL, fill_ended_at = NULL",
						" AND generation OPERATOR(pg_catalog.=) $2",
						4, types, values, nulls);
}

/*
 * Commit a batch's progress with the batch.  Returns false, and changes
 * nothing, if the walk has been restarted meanwhile.
 */
bool
bbf_job_save_batch(BbfJob *job, const BbfBatch *batch, bool sweep)
{
	Oid			types[9] = {TEXTOID, INT8OID, TEXTOID, INT8OID, INT8OID, FLOAT8OID, INT4OID, INT8OID, INT8OID};
	Datum		values[9] = {0, Int64GetDatum(job->generation),
		batch->cursor ? CStringGetTextDatum(batch->cursor) : (Datum) 0,
		Int64GetDatum(batch->rows), Int64GetDatum(batch->changed),
	Float8GetDatum(batch->ms), Int32GetDatum(batch->next_size), Int64GetDatum(batch->eligible), Int64GetDatum(batch->pending)};
	char		nulls[10] = "         ";
	StringInfoData set;

	if (batch->cursor == NULL)
		nulls[2] = 'n';
	initStringInfo(&set);
	appendStringInfoString(&set,
						   "walk_cursor = coalesce($3, walk_cursor), batch_size = $7,"
						   " batch_ms = CASE WHEN $3 IS NULL THEN batch_ms ELSE $6 END,"
						   " batch_at = CASE WHEN $3 IS NULL THEN batch_at ELSE pg_catalog.clock_timestamp() END,"
						   " retries = 0, waits = 0, retry_at = NULL, waiting_for = NULL, waiting_since = NULL");
	if (sweep)
		appendStringInfoString(&set,
							   ", sweep_mismatches = sweep_mismatches OPERATOR(pg_catalog.+) $5,"
							   " sweep_rows = sweep_rows OPERATOR(pg_catalog.+) $4,"
							   " sweep_eligible = sweep_eligible OPERATOR(pg_catalog.+) $8,"
							   " sweep_pending = sweep_pending OPERATOR(pg_catalog.+) $9");
	if (job->phase == BBF_PHASE_FILL)
		appendStringInfoString(&set,
							   ", fill_ended_at = pg_catalog.clock_timestamp(),"
							   " fill_started_at = coalesce(fill_started_at, pg_catalog.clock_timestamp()"
							   "  OPERATOR(pg_catalog.-) pg_catalog.make_interval(secs => $6"
							   "  OPERATOR(pg_catalog./) 1000))");
	if (!(sweep && job->phase == BBF_PHASE_LIVE))
		appendStringInfoString(&set,
							   ", rows_done = rows_done OPERATOR(pg_catalog.+) $4,"
							   " rows_changed = rows_changed OPERATOR(pg_catalog.+) $5,"
							   " batches = batches OPERATOR(pg_catalog.+) CASE WHEN $3 IS NULL THEN 0 ELSE 1 END,"
							   " rows_per_second = (rows_done OPERATOR(pg_catalog.+) $4) OPERATOR(pg_catalog./)"
							   " greatest(pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()"
							   " OPERATOR(pg_catalog.-) phase_started_at), 0.001)");
	return update_state(job->name, set.data, " AND generation OPERATOR(pg_catalog.=) $2",
						sweep ? 9 : 7, types, values, nulls);
}

/*
 * New conditions hold from now on: a sweep begins anew, however far one was, and
 * makes rows pending that were not.
 */
void
bbf_job_change_conditions(const BbfJob *job)
{
	Oid			types[1] = {TEXTOID};
	Datum		values[1] = {CStringGetTextDatum(job->name)};

	bbf_sql_catalog("UPDATE bgw_backfill.job SET pending_where = new_pending_where, match_where = new_match_where,"
					" changing = false, new_pending_where = NULL, new_match_where = NULL,"
					" verify_requests = verify_requests OPERATOR(pg_catalog.+) 1 WHERE job OPERATOR(pg_catalog.=) $1",
					1, types, values, NULL, SPI_OK_UPDATE);
	update_state(job->name,
				 "generation = generation OPERATOR(pg_catalog.+) 1, walk_cursor = NULL, high_mark = NULL,"
				 " sweep_started_at = NULL, sweep_rows = 0, sweep_eligible = 0, sweep_pending = 0, refilling = true",
				 "", 1, types, values, NULL);
}

/* Let a live job have a sweep soon. */
void
bbf_job_ask_sweep(const char *name)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};

	bbf_sql_catalog("UPDATE bgw_backfill.job SET verify_requests = verify_requests OPERATOR(pg_catalog.+) 1"
					" WHERE job OPERATOR(pg_catalog.=) $1",
					1, types, values, NULL, SPI_OK_UPDATE);
}

/* A sweep has reached its end: what it found is the truth of its beginning. */
void
bbf_job_end_sweep(BbfJob *job)
{
	Oid			types[2] = {TEXTOID, INT8OID};
	Datum		values[2] = {0, Int64GetDatum(job->generation)};

	update_state(job->name,
				 "verified_at = sweep_started_at, mismatches = sweep_mismatches, refilling = false,"
				 " sweep_started_at = NULL, walk_cursor = NULL, high_mark = NULL",
				 " AND generation OPERATOR(pg_catalog.=) $2", 2, types, values, NULL);
}

/* Remember how far a phase that has to begin anew was, so that it is not shown to go back. */
void
bbf_job_keep_percent(BbfJob *job, double percent)
{
	Oid			types[2] = {TEXTOID, FLOAT8OID};
	Datum		values[2] = {0, Float8GetDatum(percent)};

	update_state(job->name, "index_percent = greatest(index_percent, $2)", "", 2, types, values, NULL);
}

/* Remember whether the flag column is ours to drop. */
void
bbf_job_set_flag_added(BbfJob *job, bool added)
{
	Oid			types[2] = {TEXTOID, BOOLOID};
	Datum		values[2] = {0, BoolGetDatum(added)};

	update_state(job->name, "flag_added = $2", "", 2, types, values, NULL);
	job->flag_added = added;
}

/* The batch size to go on with; 0: the setting's. */
void
bbf_job_set_batch_size(BbfJob *job, int32 size)
{
	Oid			types[2] = {TEXTOID, INT4OID};
	Datum		values[2] = {0, Int32GetDatum(size)};

	update_state(job->name, "batch_size = $2", "", 2, types, values, NULL);
	job->batch_size = size;
}

/*
 * Write the tables' present names and OIDs into the configuration.  Changes
 * nothing, and so wakes nobody, when they are the same.
 */
void
bbf_job_rename(BbfJob *job, Oid source, Oid target)
{
	Oid			types[] = {TEXTOID, OIDOID, OIDOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID,
	OIDOID, INT8OID};
	char	   *names[] = {get_namespace_name(get_rel_namespace(source)), get_rel_name(source),
	get_namespace_name(get_rel_namespace(target)), get_rel_name(target)};
	Datum		values[] = {CStringGetTextDatum(job->name), ObjectIdGetDatum(source),
		ObjectIdGetDatum(target), CStringGetTextDatum(names[0]), CStringGetTextDatum(names[1]),
		CStringGetTextDatum(names[2]), CStringGetTextDatum(names[3]),
	ObjectIdGetDatum(MyDatabaseId), Int64GetDatum((int64) GetSystemIdentifier())};

	if (job->source_oid == source && job->target_oid == target && bbf_job_same_place(job) &&
		strcmp(job->source_schema, names[0]) == 0 && strcmp(job->source_name, names[1]) == 0 &&
		strcmp(job->target_schema, names[2]) == 0 && strcmp(job->target_name, names[3]) == 0)
		return;
	bbf_sql_catalog("UPDATE bgw_backfill.job SET source_oid = $2, target_oid = $3,"
					" source_schema = $4, source_name = $5, target_schema = $6, target_name = $7,"
					" database_oid = $8, system_id = $9"
					" WHERE job OPERATOR(pg_catalog.=) $1",
					9, types, values, NULL, SPI_OK_UPDATE);
	job->source_oid = source;
	job->target_oid = target;
	job->source_schema = names[0];
	job->source_name = names[1];
	job->target_schema = names[2];
	job->target_name = names[3];
	job->database_oid = MyDatabaseId;
	job->system_id = (int64) GetSystemIdentifier();
}

/* Make the job that of these tables and their owner. */
void
bbf_job_adopt(BbfJob *job, Oid source, Oid target, Oid owner)
{
	Oid			types[] = {TEXTOID, TEXTOID, OIDOID};
	Datum		values[] = {CStringGetTextDatum(job->name),
	CStringGetTextDatum(GetUserNameFromId(owner, false)), ObjectIdGetDatum(owner)};

	bbf_job_rename(job, source, target);
	bbf_sql_catalog("UPDATE bgw_backfill.job SET owner = $2, role_oid = $3, source_columns = '{}', target_columns = '{}', objects = '{}'"
					" WHERE job OPERATOR(pg_catalog.=) $1",
					3, types, values, NULL, SPI_OK_UPDATE);
	/* what was handed out there is not handed out here */
	bbf_sql_catalog("DELETE FROM bgw_backfill.claim WHERE job OPERATOR(pg_catalog.=) $1",
					1, types, values, NULL, SPI_OK_DELETE);
	bbf_sql_catalog("DELETE FROM bgw_backfill.passed WHERE job OPERATOR(pg_catalog.=) $1",
					1, types, values, NULL, SPI_OK_DELETE);
	/* transaction ids and files of another server mean nothing here */
	update_state(job->name,
				 "watermark = NULL, next_mark = NULL, next_mark_xid = NULL, pass_mark = NULL,"
				 " pass_cursor = NULL, pass_end = NULL, pass_at = NULL, files = NULL, switch_xid = NULL",
				 "", 1, types, values, NULL);
}

/* An error's text as it is kept: cut where it is longer than anybody reads. */
const char *
bbf_job_cut_error(const char *message)
{
	size_t		len = strlen(message);
	int			kept = pg_mbcharcliplen(message, (int) len, BBF_MAX_ERROR);

	return kept < (int) len ? pnstrdup(message, kept) : message;
}

/*
 * Record what went wrong.  health BBF_HEALTH_OK: to be tried again after
 * delay_ms.  message NULL: nothing went wrong, the job only waits.
 */
void
bbf_job_record_error(const char *name, const char *message, BbfHealth health,
					 const char *waiting_for, int64 delay_ms)
{
	static const char *const healths[] = {"ok", "failed", "held"};
	Oid			types[5] = {TEXTOID, TEXTOID, TEXTOID, TEXTOID, FLOAT8OID};
	Datum		values[5] = {0, message ? CStringGetTextDatum(bbf_job_cut_error(message)) : (Datum) 0,
		CStringGetTextDatum(healths[health]),
		waiting_for ? CStringGetTextDatum(waiting_for) : (Datum) 0,
	Float8GetDatum(delay_ms / 1000.0)};
	char		nulls[6] = "     ";

	if (message == NULL)
		nulls[1] = 'n';
	if (waiting_for == NULL)
		nulls[3] = 'n';
	update_state(name,
				 "health = CASE $3 WHEN 'ok' THEN health ELSE $3 END,"
				 " retries = CASE WHEN $2 IS NULL THEN retries ELSE retries OPERATOR(pg_catalog.+) 1 END,"
				 " waits = CASE WHEN $2 IS NULL THEN waits OPERATOR(pg_catalog.+) 1 ELSE waits END,"
				 " retry_at = pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+)"
				 "  pg_catalog.make_interval(secs => $5),"
				 " waiting_since = CASE WHEN $4 IS NULL THEN NULL"
				 "  WHEN waiting_for OPERATOR(pg_catalog.=) $4 THEN waiting_since"
				 "  ELSE pg_catalog.clock_timestamp() END,"
				 " waiting_for = $4,"
				 " errors = CASE WHEN $2 IS NULL THEN errors ELSE errors OPERATOR(pg_catalog.+) 1 END,"
				 " last_error = coalesce($2, last_error),"
				 " last_error_at = CASE WHEN $2 IS NULL THEN last_error_at ELSE pg_catalog.clock_timestamp() END",
				 "", 5, types, values, nulls);
}

/* Show an error with a job that goes on all the same. */
void
bbf_job_note_error(const char *name, const char *message)
{
	Oid			types[2] = {TEXTOID, TEXTOID};
	Datum		values[2] = {0, CStringGetTextDatum(bbf_job_cut_error(message))};

	update_state(name,
				 "errors = errors OPERATOR(pg_catalog.+) 1, last_error = $2,"
				 " last_error_at = pg_catalog.clock_timestamp()",
				 "", 2, types, values, NULL);
}

/* Show what ran out of time since the last scan began. */
void
bbf_job_note_cut(const char *name, BbfStage stage)
{
	Oid			types[2] = {TEXTOID, INT4OID};
	Datum		values[2] = {0, Int32GetDatum(1 << stage)};

	update_state(name, "cut_short = cut_short OPERATOR(pg_catalog.|) $2", "", 2, types, values, NULL);
}

/* The job waits its turn, which is no failure. */
void
bbf_job_wait(const char *name, const char *waiting_for, int64 delay_ms)
{
	Oid			types[3] = {TEXTOID, TEXTOID, FLOAT8OID};
	Datum		values[3] = {0, CStringGetTextDatum(waiting_for), Float8GetDatum(delay_ms / 1000.0)};

	update_state(name,
				 "retry_at = pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+)"
				 "  pg_catalog.make_interval(secs => $3),"
				 " waiting_since = CASE WHEN waiting_for OPERATOR(pg_catalog.=) $2 THEN waiting_since"
				 "  ELSE pg_catalog.clock_timestamp() END,"
				 " waiting_for = $2",
				 "", 3, types, values, NULL);
}

/* Work went on: nothing is being retried any more. */
void
bbf_job_clear_retries(BbfJob *job)
{
	Oid			types[1];
	Datum		values[1];

	if (job->retries == 0 && job->waits == 0)
		return;
	update_state(job->name,
				 "retries = 0, waits = 0, retry_at = NULL, waiting_for = NULL, waiting_since = NULL",
				 "", 1, types, values, NULL);
	job->retries = job->waits = 0;
	job->retry_at = 0;
}

/* Forget a job's failure: it is tried again at once. */
void
bbf_job_set_well(const char *name)
{
	Oid			types[1];
	Datum		values[1];

	update_state(name,
				 "health = 'ok', retries = 0, waits = 0, retry_at = NULL, waiting_for = NULL, waiting_since = NULL",
				 "", 1, types, values, NULL);
}

/* Put a job back to phase fill, from wherever it is in its life. */
void
bbf_job_restart_fill(const char *name)
{
	Oid			types[1];
	Datum		values[1];

	update_state(name,
				 "phase = 'fill', generation = generation OPERATOR(pg_catalog.+) 1,"
				 " walk_cursor = NULL, high_mark = NULL, rows_done = 0, rows_total = 0, rows_changed = 0,"
				 " batches = 0, batch_ms = NULL, rows_per_second = NULL, fill_started_at = NULL,"
				 " fill_ended_at = NULL, live_since = NULL, sweep_started_at = NULL, scan_at = NULL,"
				 " switch_xid = NULL, phase_started_at = pg_catalog.clock_timestamp()",
				 " AND phase OPERATOR(pg_catalog.<>) ALL ('{install,uninstall}')",
				 1, types, values, NULL);
}

/* Put a job back to its very beginning; a failure is forgotten, but not that it is held. */
void
bbf_job_begin_anew(const char *name)
{
	Oid			types[1];
	Datum		values[1];

	update_state(name,
				 "phase = 'install', generation = generation OPERATOR(pg_catalog.+) 1,"
				 " walk_cursor = NULL, high_mark = NULL, live_since = NULL, sweep_started_at = NULL, scan_at = NULL,"
				 " switch_xid = NULL, phase_started_at = pg_catalog.clock_timestamp(),"
				 " health = CASE health WHEN 'held' THEN health ELSE 'ok' END, retries = 0, waits = 0, retry_at = NULL,"
				 " waiting_for = NULL, waiting_since = NULL",
				 "", 1, types, values, NULL);
}

/* Delete the rows of a job from some tables. */
static void
delete_from(const char *name, const char *const *tables, int n)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};

	for (int i = 0; i < n; i++)
		bbf_sql_catalog(psprintf("DELETE FROM bgw_backfill.%s WHERE job OPERATOR(pg_catalog.=) $1", tables[i]),
						1, types, values, NULL, SPI_OK_DELETE);
}

/*
 * Forget what was handed out of a job; before one is made as well: a claim may have
 * been committed after the job before it, of that name, was gone.
 */
void
bbf_job_forget_handouts(const char *name)
{
	static const char *const tables[] = {"claim", "answered", "attempt", "passed", "stretch", "group_wait"};

	delete_from(name, tables, lengthof(tables));
}

/* Forget a job and everything we know about it. */
void
bbf_job_delete(const char *name)
{
	static const char *const tables[] = {"pending_group", "job_skipped", "job_state", "job"};

	bbf_job_forget_handouts(name);
	delete_from(name, tables, lengthof(tables));
}

/* Remember a row that somebody else had locked. */
void
bbf_job_skip(const BbfJob *job, const char *key)
{
	Oid			types[] = {TEXTOID, TEXTOID};
	Datum		values[] = {CStringGetTextDatum(job->name), CStringGetTextDatum(key)};

	bbf_sql_catalog("INSERT INTO bgw_backfill.job_skipped (job, key) VALUES ($1, $2) ON CONFLICT DO NOTHING",
					2, types, values, NULL, SPI_OK_INSERT);
}

/*
 * A remembered row, or NULL if there is none.  Any one of them, so that a row
 * that stays locked does not keep the others waiting.
 */
char *
bbf_job_next_skipped(const BbfJob *job)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(job->name)};
	char	   *key;

	if (bbf_sql_catalog("SELECT key FROM bgw_backfill.job_skipped WHERE job OPERATOR(pg_catalog.=) $1"
						" ORDER BY pg_catalog.random() LIMIT 1",
						1, types, values, NULL, SPI_OK_SELECT) == 0)
		return NULL;
	key = bbf_sql_text(0, 1);
	SPI_freetuptable(SPI_tuptable);
	return key;
}

/* Such a row is done. */
void
bbf_job_unskip(const BbfJob *job, const char *key)
{
	Oid			types[] = {TEXTOID, TEXTOID};
	Datum		values[] = {CStringGetTextDatum(job->name), CStringGetTextDatum(key)};

	bbf_sql_catalog("DELETE FROM bgw_backfill.job_skipped WHERE job OPERATOR(pg_catalog.=) $1"
					" AND key OPERATOR(pg_catalog.=) $2",
					2, types, values, NULL, SPI_OK_DELETE);
}
