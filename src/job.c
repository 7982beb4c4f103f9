/*
 * job.c
 *		A job as a struct: read from the extension's tables, and what follows
 *		from it.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "columns.h"
#include "compat.h"
#include "job.h"
#include "sql.h"
#include "throttle.h"
#include "txn.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

static const char *const phase_names[] = {
	[BBF_PHASE_INSTALL] = "install",
	[BBF_PHASE_FILL] = "fill",
	[BBF_PHASE_INDEX] = "index",
	[BBF_PHASE_VERIFY] = "verify",
	[BBF_PHASE_LIVE] = "live",
	[BBF_PHASE_UNINSTALL] = "uninstall"
};

/* The name of a phase. */
const char *
bbf_job_phase_name(BbfPhase phase)
{
	return phase_names[phase];
}

/* The phase of that name; false if there is none. */
bool
bbf_job_phase_from_name(const char *name, BbfPhase *phase)
{
	for (int i = 0; i < (int) lengthof(phase_names); i++)
	{
		if (strcmp(name, phase_names[i]) == 0)
		{
			*phase = i;
			return true;
		}
	}
	return false;
}

/* A column of the row just read, as text; NULL if it is null. */
static char *
text_column(const char *name)
{
	TupleDesc	desc = SPI_tuptable->tupdesc;

	return bbf_sql_text(0, SPI_fnumber(desc, name));
}

/* The same as a Datum; 0 if it is null. */
static Datum
column(const char *name)
{
	TupleDesc	desc = SPI_tuptable->tupdesc;
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[0], desc,
									  SPI_fnumber(desc, name), &isnull);

	return isnull ? (Datum) 0 : value;
}

static void
read_objects(BbfJob *job)
{
	Datum	   *oids;
	int			n;

	deconstruct_array(DatumGetArrayTypeP(column("objects")), OIDOID, sizeof(Oid), true, TYPALIGN_INT, &oids, NULL, &n);
	for (int i = 0; i < Min(n, BBF_OBJECTS); i++)
		job->objects[i] = DatumGetObjectId(oids[i]);
}

static void
read_configuration(BbfJob *job)
{
	job->name = text_column("job");
	job->owner = text_column("owner");
	job->role_oid = DatumGetObjectId(column("role_oid"));
	job->database_oid = DatumGetObjectId(column("database_oid"));
	job->system_id = DatumGetInt64(column("system_id"));
	job->source_oid = DatumGetObjectId(column("source_oid"));
	job->target_oid = DatumGetObjectId(column("target_oid"));
	job->source_schema = text_column("source_schema");
	job->source_name = text_column("source_name");
	job->target_schema = text_column("target_schema");
	job->target_name = text_column("target_name");
	job->mode = text_column("mode");
	job->source_key = text_column("source_key");
	job->target_key = text_column("target_key");
	job->flag_column = text_column("flag_column");
	job->pending_where = text_column("pending_where");
	job->match_where = text_column("match_where");
	job->group_by = text_column("group_by");
	job->handler = text_column("handler");
	job->changing = DatumGetBool(column("changing"));
	job->new_pending_where = text_column("new_pending_where");
	job->new_match_where = text_column("new_match_where");
	job->successor_of = text_column("successor_of");
	job->becomes = text_column("becomes");
	job->source_columns = bbf_columns_from_array(column("source_columns"));
	job->target_columns = bbf_columns_from_array(column("target_columns"));
	read_objects(job);
	job->settings = text_column("settings_text");
	job->paused = DatumGetBool(column("paused"));
	job->uninstall = DatumGetBool(column("uninstall"));
	job->drop_objects = DatumGetBool(column("drop_objects"));
	job->verify_requests = DatumGetInt64(column("verify_requests"));
}

static void
read_state(BbfJob *job)
{
	char	   *health = text_column("health");

	if (!bbf_job_phase_from_name(text_column("phase"), &job->phase))
		elog(ERROR, "job \"%s\" has no valid phase", job->name);
	job->health = strcmp(health, "ok") == 0 ? BBF_HEALTH_OK :
		strcmp(health, "held") == 0 ? BBF_HEALTH_HELD : BBF_HEALTH_FAILED;
	job->generation = DatumGetInt64(column("generation"));
	job->flag_added = DatumGetBool(column("flag_added"));
	job->cursor = text_column("walk_cursor");
	job->high_mark = text_column("high_mark");
	job->has_skipped = DatumGetBool(column("has_skipped"));
	job->rows_done = DatumGetInt64(column("rows_done"));
	job->rows_total = DatumGetInt64(column("rows_total"));
	job->batch_size = DatumGetInt32(column("batch_size"));
	job->rows_per_second = DatumGetFloat8(column("rows_per_second"));
	job->batch_at = DatumGetTimestampTz(column("batch_at"));
	job->verified_at = DatumGetTimestampTz(column("verified_at"));
	job->sweep_request = DatumGetInt64(column("sweep_request"));
	job->sweep_started_at = DatumGetTimestampTz(column("sweep_started_at"));
	job->sweep_mismatches = DatumGetInt64(column("sweep_mismatches"));
	job->prune_cursor = text_column("prune_cursor");
	job->attempt_cursor = text_column("attempt_cursor");
	job->claim_cursor = text_column("claim_cursor");
	job->watermark = text_column("watermark");
	job->next_mark = text_column("next_mark");
	job->next_mark_xid = text_column("next_mark_xid");
	job->pass_mark = text_column("pass_mark");
	job->pass_cursor = text_column("pass_cursor");
	job->pass_end = text_column("pass_end");
	job->pass_at = DatumGetTimestampTz(column("pass_at"));
	job->switch_xid = text_column("switch_xid");
	job->key_order = text_column("key_order");
	job->files = text_column("files");
	job->scan_at = DatumGetTimestampTz(column("scan_at"));
	job->part_at = DatumGetTimestampTz(column("part_at"));
	job->scan_ms = DatumGetFloat8(column("scan_ms"));
	job->handoff_at = DatumGetTimestampTz(column("handoff_at"));
	job->quiet_mark = text_column("quiet_mark");
	job->cut_short = DatumGetInt32(column("cut_short"));
	job->scan_cycle = DatumGetInt64(column("scan_cycle"));
	job->scan_group = text_column("scan_group");
	job->retries = DatumGetInt32(column("retries"));
	job->waits = DatumGetInt32(column("waits"));
	job->retry_at = DatumGetTimestampTz(column("retry_at"));
}

/*
 * Read a job, in the current memory context's SPI procedure; NULL if there is
 * none by that name.
 */
BbfJob *
bbf_job_load(const char *name)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	BbfJob	   *job;

	if (bbf_sql_catalog_kept("SELECT j.*, s.*, pg_catalog.array_to_string(j.settings, ',') AS settings_text,"
						" EXISTS (SELECT FROM bgw_backfill.job_skipped k"
						"  WHERE k.job OPERATOR(pg_catalog.=) j.job) AS has_skipped"
						" FROM bgw_backfill.job j"
						" JOIN bgw_backfill.job_state s ON s.job OPERATOR(pg_catalog.=) j.job"
						" WHERE j.job OPERATOR(pg_catalog.=) $1",
						1, types, values, NULL, SPI_OK_SELECT) == 0)
		return NULL;
	job = palloc0(sizeof(BbfJob));
	read_configuration(job);
	read_state(job);
	SPI_freetuptable(SPI_tuptable);
	bbf_columns_resolve(job);
	return job;
}

/*
 * Begin a transaction and read a job, which lives as long as the caller's memory
 * context.  NULL, outside any transaction, if there is none by that name.
 */
BbfJob *
bbf_job_begin(const char *name)
{
	BbfJob	   *job;

	if (!bbf_txn_begin())
		return NULL;
	job = bbf_job_load(name);
	if (job == NULL)
		bbf_txn_commit();
	return job;
}

/* The names of all jobs of the database. */
List *
bbf_job_names(void)
{
	List	   *names = NIL;
	uint64		n = bbf_sql_catalog("SELECT job FROM bgw_backfill.job ORDER BY created_at, job",
									0, NULL, NULL, NULL, SPI_OK_SELECT);

	for (uint64 i = 0; i < n; i++)
		names = lappend(names, bbf_sql_text(i, 1));
	SPI_freetuptable(SPI_tuptable);
	return names;
}

/* The value of a per-job setting: the job's own, else the server's. */
int
bbf_job_setting(const BbfJob *job, BbfSetting setting)
{
	const char *p = job->settings;
	const char *name = bbf_guc_name(setting) + strlen("bgw_backfill.");
	size_t		len = strlen(name);

	while (p && *p)
	{
		const char *end = strchrnul(p, ',');

		if (strncmp(p, name, len) == 0 && p[len] == '=')
			return bbf_guc_parse(setting, pnstrdup(p + len + 1, end - p - len - 1));
		p = *end ? end + 1 : end;
	}
	return bbf_guc_server_value(setting);
}

/*
 * Is this the database that the job was tracked in?  A dump, an upgrade or a
 * copied database carries the rows somewhere else.
 */
bool
bbf_job_same_place(const BbfJob *job)
{
	return job->database_oid == MyDatabaseId &&
		job->system_id == (int64) GetSystemIdentifier();
}

/*
 * A table by OID if the job is at home here: another table that has taken the
 * name is not the job's.  Elsewhere, where OIDs mean nothing, by its names.
 */
static Oid
find_table(const BbfJob *job, Oid relid, const char *schema, const char *name)
{
	Oid			schema_oid;

	if (bbf_job_same_place(job))
		return get_rel_name(relid) != NULL ? relid : InvalidOid;
	schema_oid = get_namespace_oid(schema, true);
	return OidIsValid(schema_oid) ? get_relname_relid(name, schema_oid) : InvalidOid;
}

/* OID of the source, or InvalidOid. */
Oid
bbf_job_source(const BbfJob *job)
{
	return find_table(job, job->source_oid, job->source_schema, job->source_name);
}

/* OID of the target, or InvalidOid. */
Oid
bbf_job_target(const BbfJob *job)
{
	return find_table(job, job->target_oid, job->target_schema, job->target_name);
}

/*
 * Is this the role that the job was made for?  A new owner of the tables has to
 * say himself, with resume(), that he wants the job, and with it the conditions
 * that run with his rights.
 */
bool
bbf_job_belongs_to(const BbfJob *job, Oid role)
{
	char	   *name;

	if (bbf_job_same_place(job))
		return role == job->role_oid;
	name = OidIsValid(role) ? GetUserNameFromId(role, true) : NULL;
	return name && strcmp(name, job->owner) == 0;
}

/* The name of the job that is to take a job's place; NULL: none. */
char *
bbf_job_successor(const char *name)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	char	   *successor = NULL;

	if (bbf_sql_catalog("SELECT job FROM bgw_backfill.job WHERE successor_of OPERATOR(pg_catalog.=) $1",
						1, types, values, NULL, SPI_OK_SELECT) > 0)
		successor = bbf_sql_text(0, 1);
	SPI_freetuptable(SPI_tuptable);
	return successor;
}

/* Keep others from changing the configuration of a job and of its successor. */
void
bbf_job_lock(const char *name)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};

	bbf_sql_catalog("SELECT 1 FROM bgw_backfill.job WHERE job OPERATOR(pg_catalog.=) $1"
					" OR successor_of OPERATOR(pg_catalog.=) $1 ORDER BY successor_of NULLS FIRST FOR NO KEY UPDATE",
					1, types, values, NULL, SPI_OK_SELECT);
	SPI_freetuptable(SPI_tuptable);
}

/*
 * Keep others from changing a job and its state; false, at once, if somebody has
 * locked either.
 */
bool
bbf_job_try_lock(const char *name)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	bool		locked;

	locked = bbf_sql_catalog("SELECT 1 FROM bgw_backfill.job j JOIN bgw_backfill.job_state s ON s.job OPERATOR(pg_catalog.=) j.job"
							 " WHERE j.job OPERATOR(pg_catalog.=) $1 FOR UPDATE SKIP LOCKED",
							 1, types, values, NULL, SPI_OK_SELECT) > 0;
	SPI_freetuptable(SPI_tuptable);
	return locked;
}

/* The name that a user knows the job by. */
const char *
bbf_job_display_name(const BbfJob *job)
{
	return job->successor_of ? job->successor_of : job->name;
}

/*
 * The name of one of the job's objects: "<job>_<suffix>".  A successor's triggers
 * and constraints ("bbf_..") are its own, all else has its final name.
 */
char *
bbf_job_object(const BbfJob *job, const char *suffix)
{
	return psprintf("%s_%s", strncmp(suffix, "bbf_", 4) == 0 ? job->name : bbf_job_display_name(job), suffix);
}

/*
 * When the next batch of the job's walk may begin: batch_sleep after the last
 * one, whatever else the worker has to do meanwhile.
 */
TimestampTz
bbf_job_next_batch(const BbfJob *job)
{
	return job->batch_at == 0 ? 1 :
		TimestampTzPlusMilliseconds(job->batch_at, bbf_throttle_batch_delay(job));
}

/* When a live job is due for a sweep; 0: never. */
static TimestampTz
next_sweep(const BbfJob *job)
{
	int			interval = bbf_job_setting(job, BBF_VERIFY_INTERVAL);

	if (job->sweep_started_at != 0)
		return bbf_job_next_batch(job);
	if (job->verify_requests > job->sweep_request)
		return 1;
	return interval < 0 ? 0 :
		TimestampTzPlusMilliseconds(job->verified_at, 1000 * (int64) interval);
}

/*
 * When the job is due; 0 if it is not due until somebody changes it.  A time
 * in the past means now.
 */
TimestampTz
bbf_job_next_due(const BbfJob *job)
{
	TimestampTz due;
	TimestampTz other;
	TimestampTz sweep;

	if (job->uninstall)
		return job->health == BBF_HEALTH_FAILED ? 0 : Max(job->retry_at, 1);
	if (job->paused || job->health != BBF_HEALTH_OK)
		return 0;
	switch (job->phase)
	{
		case BBF_PHASE_FILL:
		case BBF_PHASE_VERIFY:
			due = bbf_job_next_batch(job);
			break;
		case BBF_PHASE_LIVE:
			due = job->changing ? 1 : bbf_job_next_scan(job);
			other = bbf_job_next_part(job);
			if (other != 0)
				due = Min(due, other);
			if (job->handler && job->handoff_at != 0)
				due = Min(due, job->handoff_at);
			sweep = next_sweep(job);
			if (sweep != 0)
				due = Min(due, sweep);
			break;
		default:
			due = 1;
	}
	return Max(due, job->retry_at);
}

/* When a live job is due for a pending scan, or for the next batch of the pass before it. */
TimestampTz
bbf_job_next_scan(const BbfJob *job)
{
	if (job->pass_end != NULL)
		return bbf_job_next_batch(job); /* of the pass before the scan */
	return job->scan_at == 0 ? 1 :
		TimestampTzPlusMilliseconds(job->scan_at,
									1000 * (int64) bbf_job_setting(job, BBF_SCAN_INTERVAL));
}

/*
 * When the next part of a round of scans is due, which does not wait for the interval:
 * so long after the last one that the parts take a fifth of the time.  0: none is.
 */
TimestampTz
bbf_job_next_part(const BbfJob *job)
{
	if (job->scan_group == NULL || job->part_at == 0 || job->scan_at == 0)
		return 0;
	return TimestampTzPlusMilliseconds(job->part_at, bbf_throttle_rest(job->scan_ms));
}

/* In phase live: is a sweep, or its next batch, due? */
bool
bbf_job_sweep_is_due(const BbfJob *job, TimestampTz now)
{
	TimestampTz sweep = next_sweep(job);

	return sweep != 0 && sweep <= now;
}
