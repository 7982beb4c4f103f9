/*
 * quiet.c
 *		Is there anything for a live job to do?
 *
 * A live job is due every scan_interval.  Where the last scan has found nothing pending,
 * nothing is handed out or came back, and nothing has happened to its tables since, a scan
 * would find nothing either.  The scheduler, which looks at the job anyway, can tell that
 * without a process that is connected as the owner.
 *
 * What has happened is told by a mark: the counters of the server's statistics for the
 * tables, which each writer brings up to date after it has written, and the versions of the
 * rows in the catalogs that describe the tables, what stands on them, who may read, and the
 * job.  The mark
 * is taken before a scan reads anything: what is written later changes it, sooner or later;
 * what was written before and is counted later only makes a scan that was not needed.
 * Who has turned the statistics off (track_counts) is found by the scan that is made all
 * the same after MAX_QUIET intervals.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "mode.h"
#include "quiet.h"
#include "sql.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#define MAX_QUIET	10			/* intervals without a scan */
#define SLACK		10			/* a job is passed by up to a tenth of its interval before it is due, so that many are at once */

/* What tells that something has happened to a job's tables. */
char *
bbf_quiet_mark(const BbfJob *job)
{
	Oid			types[] = {OIDARRAYOID, TEXTOID};
	Datum		oids[2 + BBF_OBJECTS] = {ObjectIdGetDatum(job->source_oid), ObjectIdGetDatum(job->target_oid)};
	static const char *const catalogs[][2] = {
		{"pg_attribute", "x.attrelid OPERATOR(pg_catalog.=) ANY ($1)"},
		{"pg_attrdef", "x.adrelid OPERATOR(pg_catalog.=) ANY ($1)"},
		{"pg_trigger", "x.tgrelid OPERATOR(pg_catalog.=) ANY ($1)"},
		{"pg_constraint", "x.conrelid OPERATOR(pg_catalog.=) ANY ($1)"},
		{"pg_rewrite", "x.ev_class OPERATOR(pg_catalog.=) ANY ($1)"},
		{"pg_auth_members", "true"}
	};
	Datum		values[2];
	StringInfoData sql;
	char	   *mark;

	for (int i = 0; i < BBF_OBJECTS; i++)
		oids[2 + i] = ObjectIdGetDatum(job->objects[i]);
	values[0] = PointerGetDatum(construct_array(oids, lengthof(oids), OIDOID, sizeof(Oid), true, TYPALIGN_INT));
	values[1] = CStringGetTextDatum(job->name);
	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT pg_catalog.concat_ws(' ',"
						   " (SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', c.oid, c.xmin, c.relfilenode,"
						   "   pg_catalog.pg_stat_get_tuples_inserted(c.oid), pg_catalog.pg_stat_get_tuples_updated(c.oid),"
						   "   pg_catalog.pg_stat_get_tuples_deleted(c.oid)), ',' ORDER BY c.oid)"
						   "  FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) ANY ($1)),");
	for (int i = 0; i < (int) lengthof(catalogs); i++)
		appendStringInfo(&sql, " (SELECT pg_catalog.concat(pg_catalog.count(*), '/', pg_catalog.sum(x.xmin::pg_catalog.text::pg_catalog.int8))"
						 " FROM pg_catalog.%s x WHERE %s),", catalogs[i][0], catalogs[i][1]);
	appendStringInfoString(&sql, " (SELECT pg_catalog.sum(pg_catalog.hashtext(pg_catalog.concat_ws(' ', o.oid, o.rolsuper, o.rolbypassrls, o.rolinherit)))"
						   "  FROM pg_catalog.pg_roles o),"
						   " (SELECT j.xmin FROM bgw_backfill.job j WHERE j.job OPERATOR(pg_catalog.=) $2))");
	bbf_sql_catalog(sql.data, 2, types, values, NULL, SPI_OK_SELECT);
	mark = bbf_sql_text(0, 1);
	SPI_freetuptable(SPI_tuptable);
	return mark;
}

/*
 * If a live job is due for a scan, or soon will be, and has nothing to do: count it as
 * scanned.  False: a worker has to see to it.
 */
bool
bbf_quiet_pass_by(const BbfJob *job, TimestampTz now)
{
	int64		interval = 1000 * (int64) bbf_job_setting(job, BBF_SCAN_INTERVAL);
	Oid			types[] = {TEXTOID, TEXTOID, INT4OID};
	Datum		values[3] = {CStringGetTextDatum(job->name), 0, Int32GetDatum(MAX_QUIET)};

	if (job->phase != BBF_PHASE_LIVE || job->health != BBF_HEALTH_OK || job->uninstall || job->paused || job->changing ||
		job->successor_of || job->quiet_mark == NULL || job->scan_at == 0 || job->pass_end || job->retries > 0 || job->waits > 0 ||
		bbf_job_next_scan(job) > TimestampTzPlusMilliseconds(now, interval / SLACK) ||
		bbf_job_sweep_is_due(job, now) ||
		/* the watermark is on its way to the newest key */
		(bbf_mode_lookup(job->mode)->passes &&
		 (job->watermark == NULL || job->next_mark == NULL || strcmp(job->watermark, job->next_mark) != 0)) ||
		!bbf_job_try_lock(job->name))
		return false;
	values[1] = CStringGetTextDatum(bbf_quiet_mark(job));
	return bbf_sql_catalog("UPDATE bgw_backfill.job_state s SET scan_at = pg_catalog.clock_timestamp(),"
						   " pass_at = CASE WHEN pass_at IS NULL THEN NULL ELSE pg_catalog.clock_timestamp() END,"
						   " quiet_scans = quiet_scans OPERATOR(pg_catalog.+) 1"
						   " WHERE job OPERATOR(pg_catalog.=) $1 AND quiet_mark OPERATOR(pg_catalog.=) $2"
						   " AND quiet_scans OPERATOR(pg_catalog.<) $3 AND pending OPERATOR(pg_catalog.=) 0"
						   " AND scan_group IS NULL AND handoff_at IS NULL AND cut_short OPERATOR(pg_catalog.=) 0"
						   " AND NOT EXISTS (SELECT FROM bgw_backfill.claim c WHERE c.job OPERATOR(pg_catalog.=) $1"
						   "  AND c.keys OPERATOR(pg_catalog.<>) '{}')"
						   " AND NOT EXISTS (SELECT FROM bgw_backfill.attempt a WHERE a.job OPERATOR(pg_catalog.=) $1)"
						   " AND NOT EXISTS (SELECT FROM bgw_backfill.passed p WHERE p.job OPERATOR(pg_catalog.=) $1)",
						   3, types, values, NULL, SPI_OK_UPDATE) > 0;
}
