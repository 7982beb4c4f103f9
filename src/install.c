/*
 * install.c
 *		Phases install and uninstall, and the check that a worker makes when it
 *		takes a job.
 *
 * One short transaction that touches catalogs only.  Locks: the target first,
 * then the source, as the application's own foreign-key traffic does; each wait
 * is bounded, so no query ever queues behind us for longer than lock_timeout,
 * and the second wait, for which we hold the first lock, for less than it takes
 * the server to look for a deadlock: we give way, never a writer.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "columns.h"
#include "commands/extension.h"
#include "commands/trigger.h"
#include "index.h"
#include "install.h"
#include "leftovers.h"
#include "miscadmin.h"
#include "mode.h"
#include "names.h"
#include "objects.h"
#include "shape.h"
#include "sql.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "stored.h"
#include "txn.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

/*
 * The view of the pending rows.  A security invoker's: it gives nobody a look
 * at rows that he could not read himself.
 */
char *
bbf_install_view_sql(const BbfJob *job, const BbfPair *pair)
{
	const BbfMode *mode = bbf_mode_lookup(job->mode);

	return psprintf("CREATE OR REPLACE VIEW %s WITH (security_invoker = true) AS SELECT s.%s%s%s %s",
					bbf_object_sql(job, BBF_VIEW), pair->source_key,
					pair->group_by ? ", s." : "", pair->group_by ? pair->group_by : "",
					mode->pending_from(job, pair));
}

/* Is one of our triggers there as it should be? */
static bool
trigger_is_there(const BbfTriggerDef *def, const char *job)
{
	Relation	rel = table_open(def->relid, AccessShareLock);
	bool		found = false;

	for (int i = 0; rel->trigdesc && i < rel->trigdesc->numtriggers; i++)
	{
		Trigger    *trigger = &rel->trigdesc->triggers[i];

		if (strcmp(trigger->tgname, def->name) == 0)
			found = trigger->tgenabled == def->enabled && trigger->tgnargs > 0 &&
				strcmp(trigger->tgargs[0], job) == 0;
	}
	table_close(rel, AccessShareLock);
	return found;
}

/* Does the trigger run a function of this extension for this job? */
static bool
trigger_is_ours(const Trigger *trigger, const char *job)
{
	return !trigger->tgisinternal && trigger->tgnargs > 0 &&
		strcmp(trigger->tgargs[0], job) == 0 &&
		get_func_namespace(trigger->tgfoid) == get_namespace_oid("bgw_backfill", true);
}

/* Drop our triggers of a table, or only those that a list no longer has. */
static void
drop_triggers(const BbfJob *job, Oid relid, const char *table_sql, List *keep)
{
	Relation	rel = table_open(relid, AccessShareLock);
	TriggerDesc *triggers = bbf_shape_triggers(rel);
	List	   *drop = NIL;
	ListCell   *lc;

	for (int i = 0; triggers && i < triggers->numtriggers; i++)
	{
		bool		kept = false;

		if (!trigger_is_ours(&triggers->triggers[i], job->name))
			continue;
		foreach(lc, keep)
		{
			BbfTriggerDef *def = lfirst(lc);

			kept = kept || (def->relid == relid &&
							strcmp(def->name, triggers->triggers[i].tgname) == 0);
		}
		if (!kept)
			drop = lappend(drop, pstrdup(triggers->triggers[i].tgname));
	}
	table_close(rel, NoLock);
	foreach(lc, drop)
		bbf_sql_ddl(psprintf("DROP TRIGGER %s ON %s", quote_identifier(lfirst(lc)), table_sql));
}

/* Make a trigger that is missing or not as it should be. */
static void
make_trigger(const BbfTriggerDef *def, const BbfJob *job, const BbfPair *pair)
{
	const char *table = def->relid == pair->source ? pair->source_sql : pair->target_sql;

	if (trigger_is_there(def, job->name))
		return;
	bbf_sql_ddl(psprintf("DROP TRIGGER IF EXISTS %s ON %s", quote_identifier(def->name), table));
	bbf_sql_ddl(def->sql);
	if (def->enabled != TRIGGER_FIRES_ON_ORIGIN)
		bbf_sql_ddl(psprintf("ALTER TABLE %s ENABLE %s TRIGGER %s", table,
					 def->enabled == TRIGGER_FIRES_ON_REPLICA ? "REPLICA" : "ALWAYS",
					 quote_identifier(def->name)));
}

/* The view's OID; an error if something else has its name. */
static Oid
find_view(const BbfJob *job)
{
	Oid			view = bbf_object_find(job, BBF_VIEW);

	if (OidIsValid(view) && get_rel_relkind(view) != RELKIND_VIEW)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("relation \"%s\" is in the way of the view of pending rows",
						bbf_object_name(job, BBF_VIEW)),
				 errhint("Rename it, then use bgw_backfill.resume('%s').", job->name)));
	return view;
}

/*
 * Everything of a job must belong to one role, the one we are, and the tables must
 * still be ones that track() would take.
 */
static void
check_tables(const BbfJob *job, const BbfPair *pair)
{
	Oid			view = find_view(job);
	const char *what = NULL;
	Relation	source;
	Relation	target;

	if (bbf_pair_owner(pair->source) != GetUserId())
		what = "source";
	else if (bbf_pair_owner(pair->target) != GetUserId())
		what = "target";
	else if (OidIsValid(view) && bbf_pair_owner(view) != GetUserId())
		what = "view of pending rows";
	if (what)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s of job \"%s\" does not belong to role \"%s\"",
						what, job->name, GetUserNameFromId(GetUserId(), false)),
				 errdetail("Source, target and view must have the same owner."),
				 errhint("Use ALTER ... OWNER TO, then bgw_backfill.resume('%s').", job->name)));

	source = table_open(pair->source, AccessShareLock);
	target = table_open(pair->target, AccessShareLock);
	bbf_shape_check_table(source, "source");
	bbf_shape_check_table(target, "target");
	bbf_shape_check_persistence(source, target);
	table_close(target, NoLock);
	table_close(source, NoLock);
}

/* Lock a table, waiting no longer than that. */
static void
lock_table(const char *table_sql, LOCKMODE mode, int timeout_ms)
{
	bbf_txn_lock_timeout(timeout_ms);
	bbf_sql_ddl(psprintf("LOCK TABLE ONLY %s IN %s MODE", table_sql,
				 mode == AccessExclusiveLock ? "ACCESS EXCLUSIVE" : "SHARE ROW EXCLUSIVE"));
}

/* Both tables, in the order that everybody takes them. */
static void
lock_both(const BbfJob *job, const BbfPair *pair, LOCKMODE target_mode, LOCKMODE source_mode)
{
	int			timeout = bbf_job_setting(job, BBF_LOCK_TIMEOUT);

	lock_table(pair->target_sql, target_mode, Max(timeout / 2, 1));
	lock_table(pair->source_sql, source_mode, Max(Min(timeout, DeadlockTimeout) / 2, 1));
}

/* Both tables against everybody: no trigger can be dropped with less. */
void
bbf_install_lock_alone(const BbfJob *job)
{
	BbfPair    *pair = bbf_pair_load(job);

	check_tables(job, pair);
	lock_both(job, pair, AccessExclusiveLock, AccessExclusiveLock);
}

/*
 * Follow columns of the job's tables that have got other names.  Ours that are called like
 * the key and the group get those names as well; writes since then may not have been
 * followed where that is a table.  False: the job has to fill anew.
 */
static bool
follow_columns(BbfJob *job, const BbfPair *pair)
{
	bool		renamed = false;
	ListCell   *lc;

	foreach(lc, bbf_columns_follow(job))
	{
		const BbfColumn *was = lfirst(lc);

		if (was->att != pair->source_key_att && was->att != pair->group_att)
			continue;
		for (BbfObject object = BBF_VIEW; object <= BBF_SIDECAR; object++)
		{
			Oid			relid = bbf_object_find(job, object);
			char	   *name = get_attname(pair->source, was->att, false);

			if (!OidIsValid(relid) || bbf_pair_owner(relid) != GetUserId() ||
				get_attnum(relid, was->name) == InvalidAttrNumber || get_attnum(relid, name) != InvalidAttrNumber)
				continue;
			bbf_txn_lock_timeout(bbf_job_setting(job, BBF_LOCK_TIMEOUT));
			bbf_sql_ddl(psprintf("ALTER %s %s RENAME COLUMN %s TO %s",
								 bbf_object_keyword(object),
								 bbf_object_sql(job, object),
								 quote_identifier(was->name), quote_identifier(name)));
			renamed = true;
		}
	}
	if (!renamed || bbf_mode_lookup(job->mode)->table == NULL || bbf_mode_lookup(job->mode)->passes)
		return true;
	if (job->phase == BBF_PHASE_LIVE)
		bbf_job_ask_sweep(job->name);
	else
		bbf_job_restart_fill(job->name);
	return job->phase == BBF_PHASE_LIVE;
}

/* What the job is about to make has a name that is free, or its own object's. */
static void
check_names(const BbfJob *job, const BbfPair *pair)
{
	static const BbfObject objects[] = {BBF_VIEW, BBF_SIDECAR, BBF_SIDECAR_IDX, BBF_SIDECAR_KEY};
	int			first = job->successor_of ? 1 : 0;
	int			last = bbf_mode_lookup(job->mode)->table ? (int) lengthof(objects) : 1;

	bbf_names_check_installed(job, get_namespace_oid(pair->schema, false), objects + first, Max(last - first, 0));
}

static void
make_view(const BbfJob *job, const BbfPair *pair)
{
	bbf_sql_ddl(bbf_install_view_sql(job, pair));
	bbf_sql_ddl(psprintf("COMMENT ON VIEW %s IS %s", bbf_object_sql(job, BBF_VIEW),
						 quote_literal_cstr(bbf_leftover_mark(job, BBF_VIEW))));
}

/*
 * Put the triggers and the view of a job as it is from now on in the place of
 * those of the job as it was and of its successor.  Both tables are locked.
 */
void
bbf_install_switch(const BbfJob *before, const BbfJob *successor, const BbfJob *after, const BbfPair *pair)
{
	ListCell   *lc;

	drop_triggers(before, pair->target, pair->target_sql, NIL);
	drop_triggers(before, pair->source, pair->source_sql, NIL);
	drop_triggers(successor, pair->target, pair->target_sql, NIL);
	drop_triggers(successor, pair->source, pair->source_sql, NIL);
	make_view(after, pair);
	foreach(lc, bbf_mode_lookup(after->mode)->triggers(after, pair))
		make_trigger(lfirst(lc), after, pair);
}

/*
 * Make everything of the job that is not there, and go on to the fill.  Called
 * in a transaction; may be called again at any time.
 */
void
bbf_install_run(BbfJob *job)
{
	const BbfMode *mode = bbf_mode_lookup(job->mode);
	BbfPair    *pair = bbf_pair_load(job);
	LOCKMODE	source_lock;
	List	   *triggers;
	ListCell   *lc;

	check_names(job, pair);
	check_tables(job, pair);
	source_lock = mode->source_lock(job, pair);
	if (source_lock != NoLock)
		lock_both(job, pair, ShareRowExclusiveLock, source_lock);
	pair = bbf_pair_load(job);	/* what was read before the locks is a guess */
	check_tables(job, pair);
	bbf_objects_move_along(job, get_rel_namespace(pair->source));
	(void) follow_columns(job, pair);

	bbf_leftovers_drop_misfits(job, pair);
	mode->install(job, pair);
	triggers = mode->triggers(job, pair);
	drop_triggers(job, pair->target, pair->target_sql, triggers);
	drop_triggers(job, pair->source, pair->source_sql, triggers);
	foreach(lc, triggers)
		make_trigger(lfirst(lc), job, pair);
	if (job->successor_of == NULL)
		make_view(job, pair);

	bbf_leftovers_drop_unused(job);
	bbf_objects_record(job);
	bbf_job_rename(job, pair->source, pair->target);
	bbf_job_enter_phase(job, BBF_PHASE_FILL);
}

/*
 * Is the installation as it should be, and does what was stored still hold?  If not, puts
 * the job back to phase install, which repairs what is missing, or drops what was stored,
 * and returns false.  An error for what
 * cannot be repaired.
 */
bool
bbf_install_check(BbfJob *job)
{
	const BbfMode *mode = bbf_mode_lookup(job->mode);
	BbfPair    *pair = bbf_pair_load(job);
	char	   *missing = NULL;
	ListCell   *lc;

	check_tables(job, pair);
	bbf_objects_move_along(job, get_rel_namespace(pair->source));
	bbf_job_rename(job, pair->source, pair->target);
	if (!follow_columns(job, pair) || !bbf_stored_check(job, pair))
		return false;
	(void) mode->missing(job, pair, &missing);
	/* before what may keep the job from going on: who may not read is kept out all the same */
	if (missing == NULL && mode->sync_readers)
		mode->sync_readers(job, pair);
	if (missing == NULL)
	{
		foreach(lc, mode->triggers(job, pair))
		{
			BbfTriggerDef *def = lfirst(lc);

			if (!trigger_is_there(def, job->name))
				missing = psprintf("trigger \"%s\"", def->name);
		}
	}
	if (missing == NULL && mode->strange)
		missing = mode->strange(job, pair);
	if (missing == NULL && job->successor_of == NULL && !OidIsValid(find_view(job)))
		missing = psprintf("view \"%s\"", bbf_object_name(job, BBF_VIEW));
	bbf_objects_record(job);
	if (missing == NULL)
		return true;

	ereport(LOG,
			(errmsg("job \"%s\": %s is missing, altered or not the job's, repairing", job->name, missing)));
	bbf_job_enter_phase(job, BBF_PHASE_INSTALL);
	return false;
}

/*
 * Take away what holds the conditions of a job, whatever they are, so that install makes it
 * anew: triggers, and the index on pending rows.
 */
void
bbf_install_forget_conditions(const BbfJob *job)
{
	BbfPair    *pair = bbf_pair_tables(job);

	lock_both(job, pair, AccessExclusiveLock, AccessExclusiveLock);
	drop_triggers(job, pair->target, pair->target_sql, NIL);
	drop_triggers(job, pair->source, pair->source_sql, NIL);
	bbf_index_drop(job);
}

/* Is the table of pending keys that of the job whose place this one was to take? */
static bool
shares_table(const BbfJob *job)
{
	BbfJob	   *other = job->successor_of ? bbf_job_load(job->successor_of) : NULL;

	return other && bbf_mode_same_place(bbf_mode_lookup(other->mode), bbf_mode_lookup(job->mode));
}

/*
 * The source is gone, and with it its triggers; a table of pending keys and its
 * view are not.
 */
static void
drop_leftovers(const BbfJob *job)
{
	for (BbfObject object = job->successor_of ? BBF_SIDECAR : BBF_VIEW; object <= BBF_SIDECAR; object++)
	{
		Oid			relid = bbf_object_find(job, object);

		if (OidIsValid(relid) && bbf_pair_owner(relid) == GetUserId() && !shares_table(job))
			bbf_sql_ddl(psprintf("DROP %s %s", get_rel_relkind(relid) == RELKIND_VIEW ? "VIEW" : "TABLE",
								 bbf_object_sql(job, object)));
	}
}

/*
 * Drop what install made, and forget the job.  Called in a transaction.  A
 * table that is gone has taken its objects with it.
 */
void
bbf_install_undo(BbfJob *job)
{
	const BbfMode *mode = bbf_mode_lookup(job->mode);
	BbfPair    *pair = bbf_pair_tables(job);
	int			timeout = bbf_job_setting(job, BBF_LOCK_TIMEOUT);

	if (OidIsValid(pair->target))
	{
		lock_table(pair->target_sql, ShareRowExclusiveLock, Max(timeout / 2, 1));
		drop_triggers(job, pair->target, pair->target_sql, NIL);
	}
	if (OidIsValid(pair->source))
	{
		lock_table(pair->source_sql, job->drop_objects ? AccessExclusiveLock : ShareRowExclusiveLock,
				   Max(Min(timeout, DeadlockTimeout) / 2, 1));
		drop_triggers(job, pair->source, pair->source_sql, NIL);
		if (job->successor_of == NULL && job->drop_objects && OidIsValid(find_view(job)))
			bbf_sql_ddl(psprintf("DROP VIEW %s", bbf_object_sql(job, BBF_VIEW)));
		if (!shares_table(job))
			mode->uninstall(job, pair);
	}
	else if (job->drop_objects && mode->table)
		drop_leftovers(job);
	bbf_job_delete(job->name);
}
