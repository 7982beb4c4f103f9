/*
 * scan.c
 *		Phase live: the pending scan.
 *
 * Its cost does not depend on the backlog.  It reads the rows that can be handed out in
 * the order of their index, (group, key), some thousand with a statement, and notes how
 * many of each group are pending and which is the oldest.  Of a group it looks at a
 * bounded number of rows, and goes on with the group after it.  A scan ends after a
 * bounded number of rows, or when half of scan_timeout is over; the next one goes on
 * from there.  Dead index entries behind somebody's old snapshot can make a single
 * statement of it slow all the same: a scan that does not fit into scan_timeout is skipped
 * and counted.
 *
 * A round is a scan of all groups, in one part or several; the parts of a round do
 * not wait for scan_interval.  What is found is written under the round's number.  When
 * a round has ended, groups that it has not seen have nothing pending any more.
 *
 * Where no trigger follows the target, each row that is read is looked at: it is not
 * counted if it has got its match.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "index.h"
#include "lease.h"
#include "listed.h"
#include "portability/instr_time.h"
#include "quiet.h"
#include "scan.h"
#include "session.h"
#include "sql.h"
#include "txn.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#define MAX_ROWS_PER_GROUP	1000
#define MAX_ROWS_PER_SCAN	40000
#define ROWS_AT_ONCE		(MAX_ROWS_PER_GROUP + 1)	/* one more tells "that many" from "at least" */
#define GROUPS_AT_ONCE		1000	/* written with a statement */

/* a scan under way */
typedef struct PendingScan
{
	BbfJob	   *job;
	BbfPair    *pair;
	BbfListed	listed;
	instr_time	began;
	int64		read;			/* rows looked at */
	int64		groups;
	int64		pending;
	bool		capped;
	char	   *quiet_mark;		/* taken before anything was read; NULL: of a part */

	/* groups found and not yet written */
	int			n;
	char	   *keys[GROUPS_AT_ONCE];	/* NULL: the group of the nulls, or all rows */
	Datum		counts[GROUPS_AT_ONCE];
	Datum		caps[GROUPS_AT_ONCE];
	char	   *oldest[GROUPS_AT_ONCE];
} PendingScan;

/* rows that a statement has returned, and which of them are pending (NULL: all) */
typedef struct Rows
{
	SPITupleTable *table;
	int			n;
	bool	   *pending;
} Rows;

/* Write down the groups that were found.  Two that are written alike are one. */
static void
save_groups(PendingScan *scan)
{
	Oid			types[] = {TEXTOID, TEXTARRAYOID, INT4ARRAYOID, BOOLARRAYOID, TEXTARRAYOID, INT8OID};
	Datum		values[] = {CStringGetTextDatum(scan->job->name),
		bbf_lease_text_array(scan->keys, scan->n),
		PointerGetDatum(construct_array(scan->counts, scan->n, INT4OID, sizeof(int32), true, TYPALIGN_INT)),
		PointerGetDatum(construct_array(scan->caps, scan->n, BOOLOID, sizeof(bool), true, TYPALIGN_CHAR)),
	bbf_lease_text_array(scan->oldest, scan->n), Int64GetDatum(scan->job->scan_cycle)};

	if (scan->n > 0)
		bbf_sql_catalog("INSERT INTO bgw_backfill.pending_group AS g"
						" (job, group_key, pending, capped, oldest_key, scanned_at, cycle)"
						" SELECT DISTINCT ON (u.g) $1, u.g, u.n, u.c, u.o, pg_catalog.clock_timestamp(), $6"
						"  FROM ROWS FROM (pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4), pg_catalog.unnest($5))"
						"  u (g, n, c, o)"
						" ON CONFLICT (job, group_key) DO UPDATE SET pending = excluded.pending,"
						" capped = excluded.capped, oldest_key = excluded.oldest_key,"
						" scanned_at = excluded.scanned_at, cycle = excluded.cycle",
						6, types, values, NULL, SPI_OK_INSERT);
	scan->n = 0;
}

static Datum
value(const Rows *rows, int row, int column, bool *isnull)
{
	return SPI_getbinval(rows->table->vals[row], rows->table->tupdesc, column, isnull);
}

/*
 * The rows of a group, from one on, before another: note how many are pending, unless
 * none is.  capped: there may be more.
 */
static void
add_group(PendingScan *scan, const Rows *rows, int from, int before, char *group, bool capped)
{
	int			count = 0;
	int			oldest = 0;
	bool		isnull;

	for (int i = from; i < before && i < from + MAX_ROWS_PER_GROUP; i++)
	{
		if (rows->pending && !rows->pending[i])
			continue;
		if (count++ == 0)
			oldest = i;
	}
	if (count == 0)
		return;
	scan->keys[scan->n] = group;
	scan->counts[scan->n] = Int32GetDatum(count);
	scan->caps[scan->n] = BoolGetDatum(capped);
	scan->oldest[scan->n] = bbf_pair_key_out(scan->pair, value(rows, oldest, 1, &isnull));
	scan->groups++;
	scan->pending += count;
	scan->capped = scan->capped || capped;
	if (++scan->n == GROUPS_AT_ONCE)
		save_groups(scan);
}

/* Read rows in order.  Those of a mode without triggers may have got their match. */
static Rows
read_rows(PendingScan *scan, BbfListedFrom from, Datum group)
{
	Rows		rows;

	rows.n = (int) bbf_listed_read(&scan->listed, from, group, (Datum) 0, ROWS_AT_ONCE);
	rows.table = SPI_tuptable;
	rows.pending = NULL;
	scan->read += rows.n;
	if (scan->listed.mode->passes)
	{
		Datum	   *keys = palloc(sizeof(Datum) * Max(rows.n, 1));
		bool		isnull;

		for (int i = 0; i < rows.n; i++)
			keys[i] = value(&rows, i, 1, &isnull);
		rows.pending = bbf_listed_among(&scan->listed, keys, rows.n, true);
	}
	return rows;
}

/* The row before which the rows of a row's group end. */
static int
group_end(const PendingScan *scan, const Rows *rows, int from)
{
	const BbfPair *pair = scan->pair;
	bool		isnull;
	Datum		group = value(rows, from, 2, &isnull);
	int16		typlen;
	bool		typbyval;
	int			i;

	get_typlenbyval(pair->group_type, &typlen, &typbyval);
	for (i = from + 1; i < rows->n; i++)
	{
		Datum		next = value(rows, i, 2, &isnull);

		if (!datum_image_eq(group, next, typbyval, typlen) && !bbf_pair_same_group(pair, group, next))
			break;
	}
	return i;
}

/* Is it time to leave the rest to the next part? */
static bool
is_enough(const PendingScan *scan)
{
	int			timeout = bbf_job_setting(scan->job, BBF_SCAN_TIMEOUT);
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	INSTR_TIME_SUBTRACT(now, scan->began);
	return scan->read >= MAX_ROWS_PER_SCAN || (timeout > 0 && INSTR_TIME_GET_MILLISEC(now) > timeout / 2.0);
}

/* The round that is under way is given up. */
static void
begin_round_anew(const BbfJob *job)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(job->name)};

	bbf_sql_catalog("UPDATE bgw_backfill.job_state SET round_groups = 0, round_pending = 0, round_capped = false"
					" WHERE job OPERATOR(pg_catalog.=) $1", 1, types, values, NULL, SPI_OK_UPDATE);
}

/*
 * Step through the groups from where the last scan stopped.  Returns the group
 * to go on after next time, or NULL if the round is complete.
 */
static char *
scan_groups(PendingScan *scan)
{
	const BbfPair *pair = scan->pair;
	char	   *after = pair->group_by ? scan->job->scan_group : NULL;
	bool		more = pair->group_by != NULL;
	Rows		rows;

	if (after && !bbf_pair_group_is_readable(pair, scan->job->name, after))
	{
		after = NULL;
		begin_round_anew(scan->job);
	}
	while (more)
	{
		int			end;

		rows = read_rows(scan, after ? BBF_LISTED_NEXT_GROUP : BBF_LISTED_FIRST_GROUP,
						 after ? bbf_pair_group_in(pair, after) : (Datum) 0);
		more = rows.n == ROWS_AT_ONCE;
		for (int from = 0; from < rows.n; from = end)
		{
			bool		cut;
			bool		isnull;

			end = group_end(scan, &rows, from);
			cut = more && end == rows.n;
			if (cut && from > 0)
				break;			/* read as a whole next */
			after = bbf_pair_group_out(pair, value(&rows, from, 2, &isnull));
			add_group(scan, &rows, from, end, after, cut);
		}
		SPI_freetuptable(rows.table);
		if (more && is_enough(scan))
			return after;
	}
	rows = read_rows(scan, BBF_LISTED_NULLS, (Datum) 0);
	add_group(scan, &rows, 0, rows.n, NULL, rows.n == ROWS_AT_ONCE);
	SPI_freetuptable(rows.table);
	return NULL;
}

/* Write down that a scan, or a part of one, was made. */
static void
save_scan(const PendingScan *scan, const char *go_on_after, bool part)
{
	BbfJob	   *job = scan->job;
	Oid			types[] = {TEXTOID, TEXTOID, FLOAT8OID, INT8OID, INT8OID, BOOLOID, INT8OID, BOOLOID, TEXTOID};
	Datum		values[] = {CStringGetTextDatum(job->name),
		go_on_after ? CStringGetTextDatum(go_on_after) : (Datum) 0,
		(Datum) 0, Int64GetDatum(scan->groups), Int64GetDatum(scan->pending), BoolGetDatum(scan->capped),
	Int64GetDatum(bbf_index_estimate(job, scan->pair)), BoolGetDatum(part),
	scan->quiet_mark ? CStringGetTextDatum(scan->quiet_mark) : (Datum) 0};
	char		nulls[] = {' ', go_on_after ? ' ' : 'n', ' ', ' ', ' ', ' ', ' ', ' ', scan->quiet_mark ? ' ' : 'n', '\0'};
	instr_time	took;

	INSTR_TIME_SET_CURRENT(took);
	INSTR_TIME_SUBTRACT(took, scan->began);
	job->scan_ms = INSTR_TIME_GET_MILLISEC(took);
	job->part_at = GetCurrentTimestamp();
	values[2] = Float8GetDatum(job->scan_ms);
	bbf_sql_catalog(psprintf("UPDATE bgw_backfill.job_state SET part_at = pg_catalog.clock_timestamp(),"
							 " scan_at = CASE WHEN $8 THEN scan_at ELSE pg_catalog.clock_timestamp() END,"
							 " scans = scans OPERATOR(pg_catalog.+) CASE WHEN $8 THEN 0 ELSE 1 END,"
							 " cut_short = CASE WHEN $8 THEN cut_short ELSE 0 END,"
							 " quiet_mark = $9, quiet_scans = 0,"
							 " scan_group = $2, scan_ms = $3, pending_estimate = $7, %s"
							 " WHERE job OPERATOR(pg_catalog.=) $1",
							 go_on_after ?
							 "round_groups = round_groups OPERATOR(pg_catalog.+) $4,"
							 " round_pending = round_pending OPERATOR(pg_catalog.+) $5, round_capped = round_capped OR $6" :
							 "scan_cycle = scan_cycle OPERATOR(pg_catalog.+) 1, rounded_at = pg_catalog.clock_timestamp(),"
							 " groups = round_groups OPERATOR(pg_catalog.+) $4, pending = round_pending OPERATOR(pg_catalog.+) $5,"
							 " pending_capped = round_capped OR $6, round_groups = 0, round_pending = 0, round_capped = false"),
					9, types, values, nulls, SPI_OK_UPDATE);
}

/* A round is complete: groups that it has not seen are forgotten, some of them each time. */
static void
forget_groups(const BbfJob *job)
{
	Oid			types[] = {TEXTOID, INT8OID, INT8OID};
	Datum		values[] = {CStringGetTextDatum(job->name), Int64GetDatum(job->scan_cycle), Int64GetDatum(MAX_ROWS_PER_SCAN)};

	bbf_sql_catalog("DELETE FROM bgw_backfill.pending_group WHERE ctid OPERATOR(pg_catalog.=) ANY (ARRAY("
					"SELECT g.ctid FROM bgw_backfill.pending_group g WHERE g.job OPERATOR(pg_catalog.=) $1"
					" AND g.cycle OPERATOR(pg_catalog.<>) $2 LIMIT $3))",
					3, types, values, NULL, SPI_OK_DELETE);
}

/*
 * One pending scan, or one more part of a round, in the transaction that the caller
 * began and will commit, within scan_timeout.
 */
void
bbf_scan_run(BbfJob *job, bool part)
{
	PendingScan *scan = palloc0(sizeof(PendingScan));
	char	   *go_on_after;

	scan->job = job;
	INSTR_TIME_SET_CURRENT(scan->began);
	bbf_txn_arm(bbf_job_setting(job, BBF_SCAN_TIMEOUT));
	scan->quiet_mark = part ? NULL : bbf_quiet_mark(job);
	scan->pair = bbf_pair_load(job);
	bbf_listed_begin(&scan->listed, job, scan->pair);	/* groups are written as claims write them */
	go_on_after = scan_groups(scan);
	bbf_listed_end(&scan->listed);
	save_groups(scan);
	if (go_on_after == NULL)
		forget_groups(job);
	bbf_txn_disarm();
	save_scan(scan, go_on_after, part);
	job->scan_group = go_on_after;
}

/* A scan did not go as far as it should: it is counted, and the next one comes in its turn. */
void
bbf_scan_record_skip(const BbfJob *job)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(job->name)};

	bbf_sql_catalog("UPDATE bgw_backfill.job_state SET part_at = NULL, scan_at = pg_catalog.clock_timestamp(), cut_short = 0,"
					" scans_skipped = scans_skipped OPERATOR(pg_catalog.+) 1 WHERE job OPERATOR(pg_catalog.=) $1",
					1, types, values, NULL, SPI_OK_UPDATE);
}
