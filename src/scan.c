/*
 * scan.c
 *		Phase live: the pending scan.
 *
 * Its cost does not depend on the backlog: it steps from group to group through
 * the partial index, counts a bounded number of rows in each and in all, and
 * visits a bounded number of groups, going on from there next time.  All of it
 * has to fit into scan_timeout, because dead index entries behind somebody's
 * old snapshot can make even an empty scan slow; a scan that does not is skipped
 * and counted, and the next one is due in its turn.
 *
 * What is found is written under a cycle number: a cycle is a pass over all
 * groups, in one scan or several.  When it ends, groups that it has not seen
 * have nothing pending any more.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "mode.h"
#include "portability/instr_time.h"
#include "scan.h"
#include "session.h"
#include "sql.h"
#include "txn.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"

#define MAX_ROWS_PER_GROUP	1000
#define MAX_ROWS_PER_SCAN	40000
#define MAX_GROUPS_PER_SCAN 500

/* a scan under way */
typedef struct PendingScan
{
	BbfJob	   *job;
	BbfPair    *pair;
	char	   *from;			/* FROM .. WHERE .. of the pending rows */
	int64		counted;
	int			groups;
} PendingScan;

/* Write down one group. */
static void
save_group(PendingScan *scan, const char *group, int64 pending, bool capped, const char *oldest)
{
	Oid			types[] = {TEXTOID, TEXTOID, INT8OID, BOOLOID, TEXTOID, INT8OID};
	Datum		values[] = {CStringGetTextDatum(scan->job->name),
		group ? CStringGetTextDatum(group) : (Datum) 0, Int64GetDatum(pending),
		BoolGetDatum(capped), CStringGetTextDatum(oldest),
	Int64GetDatum(scan->job->scan_cycle)};

	bbf_sql_catalog("INSERT INTO bgw_backfill.pending_group AS g"
					" (job, group_key, pending, capped, oldest_key, scanned_at, cycle)"
					" VALUES ($1, $2, $3, $4, $5, pg_catalog.clock_timestamp(), $6)"
					" ON CONFLICT (job, group_key) DO UPDATE SET pending = excluded.pending,"
					" capped = excluded.capped, oldest_key = excluded.oldest_key,"
					" scanned_at = excluded.scanned_at, cycle = excluded.cycle",
					6, types, values, group ? NULL : " n    ", SPI_OK_INSERT);
}

/*
 * Count one group and write it down.  condition: which one, on $1 if it is not
 * the NULL group or the only one.  Nothing is written for a group without
 * pending rows.
 */
static void
scan_group(PendingScan *scan, const char *condition, Datum group, const char *group_text)
{
	const BbfPair *pair = scan->pair;
	Oid			types[] = {pair->group_type};
	Datum		values[] = {group};
	int			nargs = group_text ? 1 : 0;
	int64		limit = Min(MAX_ROWS_PER_GROUP, MAX_ROWS_PER_SCAN - scan->counted);
	char	   *oldest;
	int64		pending;
	bool		isnull;

	bbf_sql_run(psprintf("SELECT s.%s %s%s ORDER BY s.%s LIMIT 1", pair->source_key,
						 scan->from, condition, pair->source_key),
				nargs, types, values, NULL, SPI_OK_SELECT);
	if (SPI_processed == 0)
		return;
	oldest = bbf_pair_key_out(pair, SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
												  1, &isnull));
	SPI_freetuptable(SPI_tuptable);

	/* one more than the limit tells "that many" from "at least that many" */
	bbf_sql_run(psprintf("SELECT pg_catalog.count(*) FROM (SELECT %s%s LIMIT " INT64_FORMAT ") x",
						 scan->from, condition, limit + 1),
				nargs, types, values, NULL, SPI_OK_SELECT);
	pending = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	SPI_freetuptable(SPI_tuptable);

	save_group(scan, group_text, Min(pending, limit), pending > limit, oldest);
	scan->counted += Min(pending, limit);
	scan->groups++;
}

/* The first group after one (NULL: of all); false if there is none. */
static bool
next_group(PendingScan *scan, const char *after, Datum *group)
{
	const BbfPair *pair = scan->pair;
	Oid			types[] = {TEXTOID};
	Datum		values[1];
	bool		isnull;
	int16		typlen;
	bool		typbyval;

	if (after)
	{
		types[0] = pair->group_type;
		values[0] = bbf_pair_group_in(pair, after);
	}
	bbf_sql_run(psprintf("SELECT s.%s %s AND s.%s %s ORDER BY s.%s LIMIT 1",
						 pair->group_by, scan->from, pair->group_by,
						 after ? psprintf("%s $1", pair->group_gt) : "IS NOT NULL",
						 pair->group_by),
				after ? 1 : 0, types, values, NULL, SPI_OK_SELECT);
	if (SPI_processed == 0)
		return false;
	get_typlenbyval(pair->group_type, &typlen, &typbyval);
	*group = datumCopy(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull),
					   typbyval, typlen);
	SPI_freetuptable(SPI_tuptable);
	return true;
}

/*
 * Step through the groups from where the last scan stopped.  Returns the group
 * to go on after next time, or NULL if the cycle is complete.
 */
static char *
scan_groups(PendingScan *scan)
{
	const BbfPair *pair = scan->pair;
	char	   *after = scan->job->scan_group;
	Datum		group;

	if (pair->group_by == NULL)
	{
		scan_group(scan, "", (Datum) 0, NULL);
		return NULL;
	}
	if (after && !bbf_pair_group_is_readable(pair, scan->job->name, after))
		after = NULL;
	while (next_group(scan, after, &group))
	{
		if (scan->groups >= MAX_GROUPS_PER_SCAN || scan->counted >= MAX_ROWS_PER_SCAN)
			return after;
		after = bbf_pair_group_out(pair, group);
		scan_group(scan, psprintf(" AND s.%s %s $1", pair->group_by, pair->group_eq), group, after);
	}
	scan_group(scan, psprintf(" AND s.%s IS NULL", pair->group_by), (Datum) 0, NULL);
	return NULL;
}

/* Write down that a scan was made, or (seconds NULL) skipped. */
static void
save_scan(const BbfJob *job, const char *go_on_after, bool cycle_complete, double ms, bool skipped)
{
	Oid			types[] = {TEXTOID, TEXTOID, INT8OID, FLOAT8OID, BOOLOID};
	Datum		values[] = {CStringGetTextDatum(job->name),
		go_on_after ? CStringGetTextDatum(go_on_after) : (Datum) 0,
		Int64GetDatum(job->scan_cycle + (cycle_complete ? 1 : 0)),
	Float8GetDatum(ms), BoolGetDatum(skipped)};

	bbf_sql_catalog("UPDATE bgw_backfill.job_state SET scan_at = pg_catalog.clock_timestamp(),"
					" scan_group = $2, scan_cycle = $3,"
					" scan_ms = CASE WHEN $5 THEN scan_ms ELSE $4 END,"
					" scans = scans OPERATOR(pg_catalog.+) CASE WHEN $5 THEN 0 ELSE 1 END,"
					" scans_skipped = scans_skipped OPERATOR(pg_catalog.+) CASE WHEN $5 THEN 1 ELSE 0 END,"
					" pending = CASE WHEN $5 THEN pending ELSE (SELECT coalesce(pg_catalog.sum(g.pending), 0)"
					"  FROM bgw_backfill.pending_group g WHERE g.job OPERATOR(pg_catalog.=) $1)::pg_catalog.int8 END"
					" WHERE job OPERATOR(pg_catalog.=) $1",
					5, types, values, go_on_after ? NULL : " n   ", SPI_OK_UPDATE);
}

/*
 * One pending scan, in the transaction that the caller began and will commit,
 * within scan_timeout.
 */
void
bbf_scan_run(BbfJob *job)
{
	PendingScan scan = {.job = job};
	Oid			types[] = {TEXTOID, INT8OID};
	Datum		values[] = {CStringGetTextDatum(job->name), Int64GetDatum(job->scan_cycle)};
	instr_time	start;
	instr_time	end;
	char	   *go_on_after;
	int			nestlevel = NewGUCNestLevel();

	bbf_session_pin_keys();		/* groups are written as claims write them */
	INSTR_TIME_SET_CURRENT(start);
	bbf_txn_arm(bbf_job_setting(job, BBF_SCAN_TIMEOUT));
	scan.pair = bbf_pair_load(job);
	scan.from = bbf_mode_lookup(job->mode)->pending_from(job, scan.pair);
	go_on_after = scan_groups(&scan);
	if (go_on_after == NULL)
		bbf_sql_catalog("DELETE FROM bgw_backfill.pending_group WHERE job OPERATOR(pg_catalog.=) $1"
						" AND cycle OPERATOR(pg_catalog.<>) $2",
						2, types, values, NULL, SPI_OK_DELETE);
	bbf_txn_disarm();
	INSTR_TIME_SET_CURRENT(end);
	INSTR_TIME_SUBTRACT(end, start);
	save_scan(job, go_on_after, go_on_after == NULL, INSTR_TIME_GET_MILLISEC(end), false);
	bbf_session_unpin(nestlevel);
}

/* A scan ran out of time: count it, and let the next one come in its turn. */
void
bbf_scan_record_skip(const BbfJob *job)
{
	save_scan(job, job->scan_group, false, 0, true);
}
