/*
 * move.c
 *		Moving a live job to another mode.
 *
 * configure(job, 'mode', ..) makes a successor: a job of its own on the same
 * tables, under a name that nobody sees, with triggers of its own.  It goes
 * through install, fill, index and verify like any other, while the job itself
 * stays live and its consumers read the view as before.  When the successor is
 * verified, one short transaction that has both tables to itself replaces the
 * view, the triggers and the job's configuration, and drops what only the old
 * mode needed.  No write falls between: the successor's triggers have kept its
 * state up to the lock, and the job's new ones do from there on.
 *
 * Mode watermark has no triggers, and what is written between the successor's walks
 * and the switch would wait for the next sweep.  Its table is built in mode sidecar,
 * therefore, and loses the triggers at the switch; a job that was in that mode has
 * triggers on the table already.
 *
 * The objects have their final names from the beginning, all but the triggers
 * (see bbf_job_object).  The successor's name is one that nobody can guess, nor give
 * to a job: whoever had it before would keep the job from moving.  Modes that keep the same table share it meanwhile.
 */
#include "postgres.h"

#include "access/transam.h"
#include "catalog/pg_type.h"
#include "check.h"
#include "install.h"
#include "mode.h"
#include "move.h"
#include "readers.h"
#include "sql.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "txn.h"
#include "utils/builtins.h"
#include "wake.h"
#include "watermark.h"

/* The flag column of a job that has named none. */
#define DEFAULT_FLAG "has_embedding"

/* The mode that a job has once this one, which may be its successor, is in its place. */
static const char *
mode_to_be(const BbfJob *job)
{
	return job->becomes ? job->becomes : job->mode;
}

/* Write the successor of a job. */
static void
insert_successor(const BbfJob *job, const BbfJob *successor)
{
	Oid			types[] = {TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	Datum		values[] = {CStringGetTextDatum(job->name), CStringGetTextDatum(successor->mode),
		successor->flag_column ? CStringGetTextDatum(successor->flag_column) : (Datum) 0,
	successor->becomes ? CStringGetTextDatum(successor->becomes) : (Datum) 0};
	char		nulls[] = {' ', ' ', successor->flag_column ? ' ' : 'n', successor->becomes ? ' ' : 'n', '\0'};

	if (bbf_sql_catalog("INSERT INTO bgw_backfill.job (job, successor_of, becomes, owner, role_oid, database_oid, system_id,"
						" source_oid, target_oid, source_schema, source_name, target_schema, target_name, mode,"
						" source_key, target_key, flag_column, pending_where, match_where, group_by, settings, paused,"
						" source_columns, target_columns, objects)"
						" SELECT '~' OPERATOR(pg_catalog.||) pg_catalog.gen_random_uuid()::pg_catalog.text, j.job, $4, j.owner, j.role_oid,"
						" j.database_oid, j.system_id, j.source_oid, j.target_oid, j.source_schema, j.source_name,"
						" j.target_schema, j.target_name, $2, j.source_key, j.target_key, $3, j.pending_where,"
						" j.match_where, j.group_by, j.settings, j.paused, j.source_columns, j.target_columns, j.objects"
						" FROM bgw_backfill.job j WHERE j.job OPERATOR(pg_catalog.=) $1 ON CONFLICT DO NOTHING",
						4, types, values, nulls, SPI_OK_INSERT) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("another job took flag column \"%s\" at this moment",
						successor->flag_column ? successor->flag_column : ""),
				 errhint("Try again.")));
	bbf_sql_catalog("INSERT INTO bgw_backfill.job_state (job) SELECT j.job FROM bgw_backfill.job j"
					" WHERE j.successor_of OPERATOR(pg_catalog.=) $1",
					1, types, values, NULL, SPI_OK_INSERT);
}

/* Give up a move that is under way: its successor takes away what it made. */
static bool
give_up(const BbfJob *job)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(job->name)};
	char	   *successor = bbf_job_successor(job->name);

	if (successor == NULL ||
		bbf_sql_catalog("UPDATE bgw_backfill.job SET uninstall = true, drop_objects = true"
						" WHERE successor_of OPERATOR(pg_catalog.=) $1",
						1, types, values, NULL, SPI_OK_UPDATE) == 0)
		return false;
	bbf_job_set_well(successor);
	bbf_wake_cancel_at_commit(successor);
	return true;
}

/* Is the job on its way to the mode already?  An error if it is to another. */
static bool
is_moving(const BbfJob *job, const char *mode)
{
	char	   *name = bbf_job_successor(job->name);
	BbfJob	   *successor = name ? bbf_job_load(name) : NULL;

	if (successor == NULL)
		return false;
	if (successor->uninstall)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("what a move of job \"%s\" to mode \"%s\" has made is being taken away",
						job->name, mode_to_be(successor)),
				 errhint("Try again once bgw_backfill.progress shows no rebuilding.")));
	if (strcmp(mode_to_be(successor), mode) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("job \"%s\" is being moved to mode \"%s\"", job->name, mode_to_be(successor)),
				 errhint("Wait until bgw_backfill.progress shows no rebuilding, or give the move up with bgw_backfill.configure('%s', 'mode', '%s').",
						 job->name, job->mode)));
	ereport(NOTICE,
			(errmsg("job \"%s\" is being moved to mode \"%s\" already", job->name, mode)));
	return true;
}

/*
 * Begin to move a job to another mode; to the one that it has: give up a move
 * that is under way.  The caller may change the job.
 */
void
bbf_move_request(BbfJob *job, const char *mode)
{
	BbfJob		successor = *job;
	bool		shares_table;

	if (strcmp(bbf_mode_lookup(mode)->name, job->mode) == 0)
	{
		if (give_up(job))
			ereport(NOTICE, (errmsg("job \"%s\" stays in mode \"%s\"", job->name, job->mode)));
		return;
	}
	if (is_moving(job, mode))
		return;
	if (job->changing)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("the conditions of job \"%s\" are about to change", job->name),
				 errhint("Try again in a moment.")));
	if (job->phase != BBF_PHASE_LIVE || job->health != BBF_HEALTH_OK || job->uninstall)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("job \"%s\" is not live", job->name),
				 errdetail("Its phase is %s.", bbf_job_phase_name(job->phase)),
				 errhint("Use CALL bgw_backfill.wait('%s') first.", job->name)));
	successor.mode = pstrdup(mode);
	successor.successor_of = job->name;
	shares_table = bbf_mode_same_place(bbf_mode_lookup(mode), bbf_mode_lookup(job->mode));
	if (bbf_mode_lookup(mode)->passes && !shares_table)
	{
		successor.becomes = successor.mode;
		successor.mode = pstrdup(bbf_mode_sidecar.name);
	}
	if (bbf_mode_lookup(mode)->writes_source)
		successor.flag_column = job->flag_column ? job->flag_column : pstrdup(DEFAULT_FLAG);
	else
		successor.flag_column = NULL;
	bbf_check_successor(&successor, shares_table);
	insert_successor(job, &successor);
	bbf_readers_warn(job, mode);
}

/* The job takes over what its successor is. */
static void
take_over(const BbfJob *job, const BbfJob *successor)
{
	Oid			types[] = {TEXTOID, TEXTOID};
	Datum		values[] = {CStringGetTextDatum(job->name), CStringGetTextDatum(successor->name)};

	bbf_sql_catalog("UPDATE bgw_backfill.job_state s SET phase = 'live', flag_added = n.flag_added,"
					" generation = s.generation OPERATOR(pg_catalog.+) 1, walk_cursor = NULL, high_mark = NULL,"
					" batch_size = n.batch_size, fill_started_at = n.fill_started_at, fill_ended_at = n.fill_ended_at,"
					" rows_changed = n.rows_changed, live_since = coalesce(s.live_since, pg_catalog.clock_timestamp()),"
					" verified_at = n.verified_at, mismatches = n.mismatches, sweep_started_at = NULL, scan_at = NULL,"
					" prune_cursor = NULL, refilling = false, watermark = NULL, next_mark = NULL,"
					" next_mark_xid = NULL, pass_mark = NULL, pass_cursor = NULL, pass_end = NULL,"
					" pass_at = NULL, files = NULL"
					" FROM bgw_backfill.job_state n"
					" WHERE s.job OPERATOR(pg_catalog.=) $1 AND n.job OPERATOR(pg_catalog.=) $2",
					2, types, values, NULL, SPI_OK_UPDATE);
	bbf_job_delete(successor->name);
	bbf_sql_catalog("DELETE FROM bgw_backfill.job_skipped WHERE job OPERATOR(pg_catalog.=) $1",
					1, types, values, NULL, SPI_OK_DELETE);
}

/* Write the new mode into the configuration. */
static void
set_mode(const BbfJob *job, const BbfJob *successor)
{
	Oid			types[] = {TEXTOID, TEXTOID, TEXTOID};
	Datum		values[] = {CStringGetTextDatum(job->name), CStringGetTextDatum(mode_to_be(successor)),
	successor->flag_column ? CStringGetTextDatum(successor->flag_column) : (Datum) 0};

	bbf_sql_catalog("UPDATE bgw_backfill.job SET mode = $2, flag_column = $3 WHERE job OPERATOR(pg_catalog.=) $1",
					3, types, values, successor->flag_column ? NULL : "  n", SPI_OK_UPDATE);
}

/*
 * Have all snapshots ended that do not see all of the successor's state?  A
 * consumer who keeps his snapshot reads the view as it is defined by then, but its
 * rows as they were.
 */
static bool
old_snapshots_have_ended(const BbfJob *successor)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(successor->name)};
	TransactionId limit;
	int			n;

	if (successor->switch_xid == NULL)
	{
		bbf_sql_catalog("UPDATE bgw_backfill.job_state SET switch_xid ="
						" pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::pg_catalog.text"
						" WHERE job OPERATOR(pg_catalog.=) $1",
						1, types, values, NULL, SPI_OK_UPDATE);
		return false;
	}
	limit = (TransactionId) strtoull(successor->switch_xid, NULL, 10);
	TransactionIdRetreat(limit);
	(void) GetCurrentVirtualXIDs(limit, true, false, PROC_IN_VACUUM, &n);
	return n == 0;
}

/*
 * Whoever we waited for, to have both tables alone, may have truncated one, given
 * the move up, or ended the job.  Look once more, at what cannot change any more:
 * the state changes under locks on the tables, the configuration under the rows'.
 */
static bool
is_still_verified(BbfJob **job, BbfJob *successor)
{
	BbfJob	   *now;

	*job = bbf_job_load(successor->successor_of);
	now = bbf_job_load(successor->name);
	if (*job == NULL || (*job)->uninstall || now == NULL || now->uninstall ||
		now->phase != BBF_PHASE_LIVE || now->generation != successor->generation)
		return false;
	/* a table that both keep is as good as the job says as well */
	if ((*job)->phase != BBF_PHASE_LIVE &&
		bbf_mode_same_place(bbf_mode_lookup((*job)->mode), bbf_mode_lookup(successor->mode)))
		return false;
	return bbf_install_check(successor);
}

/*
 * A successor is verified: put it in its job's place, in the transaction that is
 * open.  False: not yet.
 */
bool
bbf_move_finish(BbfJob *successor)
{
	BbfJob	   *job = bbf_job_load(successor->successor_of);
	BbfJob	   *moved;
	BbfPair    *pair;
	char	   *mark = NULL;

	if (job == NULL || job->uninstall)
	{
		/* untracked meanwhile: so is this */
		bbf_install_undo(successor);
		return true;
	}
	if (!old_snapshots_have_ended(successor))
		return false;
	/* the rows before the tables: nobody's queries stand behind us while we wait for those */
	bbf_txn_lock_timeout(bbf_job_setting(job, BBF_LOCK_TIMEOUT));
	bbf_job_lock(job->name);
	if (bbf_mode_lookup(mode_to_be(successor))->passes)
		mark = bbf_watermark_highest(bbf_pair_load(successor));
	bbf_install_lock_alone(successor);
	if (!is_still_verified(&job, successor))
		return false;
	pair = bbf_pair_load(successor);
	take_over(job, successor);
	set_mode(job, successor);
	moved = bbf_job_load(job->name);
	bbf_watermark_take_over(moved, mark);
	bbf_install_switch(job, successor, moved, pair);
	if (!bbf_mode_same_place(bbf_mode_lookup(job->mode), bbf_mode_lookup(moved->mode)))
	{
		job->drop_objects = true;
		bbf_mode_lookup(job->mode)->uninstall(job, pair);
	}
	ereport(LOG,
			(errmsg("job \"%s\" has moved from mode \"%s\" to mode \"%s\"", job->name, job->mode, moved->mode)));
	return true;
}
