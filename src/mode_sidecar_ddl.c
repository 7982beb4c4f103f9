/*
 * mode_sidecar_ddl.c
 *		The table of pending keys: what it takes, how it is made, checked, and
 *		dropped again; and the triggers on a source.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/pg_am.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "enqueue.h"
#include "executor/spi.h"
#include "expr.h"
#include "leftovers.h"
#include "mode_sidecar.h"
#include "objects.h"
#include "readers.h"
#include "shape.h"
#include "sql.h"
#include "trigger_defs.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/ruleutils.h"
#include "utils/syscache.h"

/* The sidecar must not have two columns of one name, nor an order of its own. */
void
bbf_sidecar_check(const BbfJob *job, Relation source, Relation target)
{
	BbfPair    *pair = bbf_pair_load(job);
	Oid			opclass = GetDefaultOpClass(pair->key_type, BTREE_AM_OID);

	if (strcmp(job->source_key, BBF_ENQUEUED_AT) == 0 ||
		(job->group_by && strcmp(job->group_by, BBF_ENQUEUED_AT) == 0))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_COLUMN),
				 errmsg("column \"%s\" cannot be key or group in mode \"%s\"", BBF_ENQUEUED_AT, job->mode),
				 errdetail("The table of pending keys has a column of that name of its own."),
				 errhint("Rename the column, or use mode => 'column'.")));
	if (!OidIsValid(opclass) || get_opclass_family(opclass) != pair->key_opfamily)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("the index on source key \"%s\" does not have the default order of its type",
						job->source_key),
				 errdetail("The table of pending keys is indexed by the default operator class of type %s.",
						   format_type_be(pair->key_type)),
				 errhint("Use mode => 'column', or an index with the default operator class.")));
}

char *
bbf_sidecar_describe(const BbfJob *job, Relation source)
{
	return psprintf("table \"%s\" would be created beside table \"%s\", which is never updated",
					bbf_object_name(job, BBF_SIDECAR), RelationGetRelationName(source));
}

/* One column of the sidecar against the source's. */
static void
check_column(const BbfJob *job, Oid sidecar, Oid source, const char *name)
{
	AttrNumber	theirs = get_attnum(source, name);
	AttrNumber	ours = get_attnum(sidecar, name);

	if (ours == InvalidAttrNumber)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("table \"%s\" has no column \"%s\" any more", get_rel_name(sidecar), name),
				 errhint("Use DROP TABLE %s CASCADE; the worker makes it, and the view, anew.",
						 quote_identifier(get_rel_name(sidecar)))));
	if (get_atttype(sidecar, ours) != get_atttype(source, theirs))
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" has type %s in table \"%s\" and type %s in table \"%s\"", name,
						format_type_be(get_atttype(source, theirs)), get_rel_name(source),
						format_type_be(get_atttype(sidecar, ours)), get_rel_name(sidecar)),
				 errhint("Use DROP TABLE %s CASCADE and bgw_backfill.resume('%s'); the worker makes it, and the view, anew.",
						 quote_identifier(get_rel_name(sidecar)), job->name)));
}

/* Has the sidecar that index? */
static bool
has_index(const BbfJob *job, BbfObject object)
{
	Oid			index = bbf_object_find(job, object);
	HeapTuple	tuple = OidIsValid(index) ? SearchSysCache1(INDEXRELID, ObjectIdGetDatum(index)) : NULL;
	bool		result = HeapTupleIsValid(tuple) &&
		((Form_pg_index) GETSTRUCT(tuple))->indrelid == bbf_object_find(job, BBF_SIDECAR);

	if (HeapTupleIsValid(tuple))
		ReleaseSysCache(tuple);
	return result;
}

/*
 * The table itself, its columns and indexes; an error for what cannot be
 * repaired.
 */
BbfMissing
bbf_sidecar_missing(const BbfJob *job, const BbfPair *pair, char **what)
{
	Oid			sidecar = bbf_object_find(job, BBF_SIDECAR);

	if (!OidIsValid(sidecar))
	{
		*what = psprintf("table \"%s\"", bbf_object_name(job, BBF_SIDECAR));
		return BBF_MISSING_OBJECT;
	}
	if (get_rel_relkind(sidecar) != RELKIND_RELATION || bbf_pair_owner(sidecar) != pair->owner)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("relation \"%s\" is not a table of the owner of job \"%s\"",
						bbf_object_name(job, BBF_SIDECAR), job->name),
				 errhint("Rename it or give it back, then use bgw_backfill.resume('%s').", job->name)));
	check_column(job, sidecar, pair->source, job->source_key);
	if (job->group_by)
		check_column(job, sidecar, pair->source, job->group_by);
	if (!has_index(job, BBF_SIDECAR_KEY))
		*what = psprintf("index \"%s\"", bbf_object_name(job, BBF_SIDECAR_KEY));
	else if (job->group_by && !has_index(job, BBF_SIDECAR_IDX))
		*what = psprintf("index \"%s\"", bbf_object_name(job, BBF_SIDECAR_IDX));
	else
		return BBF_MISSING_NOTHING;
	return BBF_MISSING_OBJECT;
}

/* The definition of a column like one of the source's. */
static char *
column_like(Oid source, const char *name)
{
	AttrNumber	attno = get_attnum(source, name);
	Oid			type;
	int32		typmod;
	Oid			collation;
	StringInfoData sql;

	get_atttypetypmodcoll(source, attno, &type, &typmod, &collation);
	initStringInfo(&sql);
	appendStringInfo(&sql, "%s %s", quote_identifier(name),
					 format_type_extended(type, typmod, FORMAT_TYPE_TYPEMOD_GIVEN | FORMAT_TYPE_FORCE_QUALIFY));
	if (OidIsValid(collation))
		appendStringInfo(&sql, " COLLATE %s", generate_collation_name(collation));
	return sql.data;
}

/* Grants as on the source. */
void
bbf_sidecar_sync_readers(const BbfJob *job, const BbfPair *pair)
{
	bbf_readers_sync(pair, bbf_object_find(job, BBF_SIDECAR), bbf_sidecar_table(job, pair));
}

/* Make the table, or those of its indexes that are not there. */
void
bbf_sidecar_install(BbfJob *job, const BbfPair *pair)
{
	const char *table = bbf_sidecar_table(job, pair);

	if (!OidIsValid(bbf_object_find(job, BBF_SIDECAR)))
	{
		bbf_sql_ddl(psprintf("CREATE TABLE %s (%s NOT NULL, %s%s%s pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.now())"
							 " WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000,"
							 " autovacuum_analyze_scale_factor = 0.1, autovacuum_analyze_threshold = 1000)",
							 table, column_like(pair->source, job->source_key),
							 job->group_by ? column_like(pair->source, job->group_by) : "",
							 job->group_by ? ", " : "", BBF_ENQUEUED_AT));
		bbf_sql_ddl(psprintf("COMMENT ON TABLE %s IS %s", table,
							 quote_literal_cstr(bbf_leftover_mark(job, BBF_SIDECAR))));
		bbf_sidecar_sync_readers(job, pair);
	}
	else
		bbf_sidecar_remove_strange(job, pair);
	if (!has_index(job, BBF_SIDECAR_KEY))
		bbf_sql_ddl(psprintf("ALTER TABLE ONLY %s ADD CONSTRAINT %s PRIMARY KEY (%s)", table,
							 quote_identifier(bbf_object_name(job, BBF_SIDECAR_KEY)), pair->source_key));
	if (pair->group_by && !has_index(job, BBF_SIDECAR_IDX))
		bbf_sql_ddl(psprintf("CREATE INDEX %s ON ONLY %s (%s, %s)",
							 quote_identifier(bbf_object_name(job, BBF_SIDECAR_IDX)), table,
							 pair->group_by, pair->source_key));
}

void
bbf_sidecar_uninstall(const BbfJob *job, const BbfPair *pair)
{
	Oid			sidecar = bbf_object_find(job, BBF_SIDECAR);

	if (job->drop_objects && OidIsValid(sidecar) && get_rel_relkind(sidecar) == RELKIND_RELATION)
		bbf_sql_ddl(psprintf("DROP TABLE %s", bbf_sidecar_table(job, pair)));
}

LOCKMODE
bbf_sidecar_source_lock(const BbfJob *job, const BbfPair *pair)
{
	return ShareRowExclusiveLock;
}

/* A list of columns, quoted. */
static char *
column_list(Oid relid, Bitmapset *columns)
{
	StringInfoData sql;
	int			attno = -1;

	initStringInfo(&sql);
	while ((attno = bms_next_member(columns, attno)) >= 0)
		appendStringInfo(&sql, "%s%s", sql.len ? ", " : "", quote_identifier(get_attname(relid, attno, false)));
	return sql.data;
}

/*
 * The triggers on the source.  New rows are added one by one, if that is possible
 * without a statement; one trigger, and no WHEN, which the server reads and plans
 * for each statement anew.  Otherwise they are collected, but only eligible ones:
 * the others cost the look at their condition.  All of them are, where that look
 * would run a user's code: the statements that settle them look as the owner.  An UPDATE that names none of the
 * columns that count costs nothing, unless a BEFORE trigger might change one all
 * the same.
 */
static List *
source_triggers(List *list, const BbfJob *job, const BbfPair *pair)
{
	const char *s = pair->source_sql;
	Oid			relid = pair->source;
	/* the server evaluates a WHEN as who writes, and under his path */
	bool		when = pair->pending_where && !bbf_expr_runs_users_code(job->pending_where, relid, job->source_was);
	char	   *is_new = when ? psprintf(" WHEN %s", bbf_expr_deparse(job->pending_where, relid, job->source_was, "new")) : "";
	char	   *was_old = when ? psprintf(" WHEN %s", bbf_expr_deparse(job->pending_where, relid, job->source_was, "old")) : "";
	Bitmapset  *columns = bbf_expr_columns(job->pending_where, relid, job->source_was);
	char	   *changed;
	char	   *of_columns;
	bool		of_any;

	columns = bms_add_member(columns, pair->source_key_att);
	if (pair->group_by)
		columns = bms_add_member(columns, pair->group_att);
	changed = bbf_trigger_changed(relid, columns);
	of_any = bbf_shape_has_before_update(relid);
	of_columns = of_any ? "" : psprintf(" OF %s", column_list(relid, columns));

	if (bbf_enqueue_is_possible(job, pair))
		list = bbf_trigger_def(list, job, relid, "bbf_srcadd", 'O',
							   psprintf("INSERT ON %s FOR EACH ROW", s), "source_changed", ", 'row'");
	else
	{
		list = bbf_trigger_def(list, job, relid, "bbf_srcpick", 'O',
							   psprintf("INSERT ON %s FOR EACH ROW%s", s, is_new), "source_changed", "");
		list = bbf_trigger_def(list, job, relid, "bbf_srcins", 'O',
							   psprintf("INSERT ON %s FOR EACH STATEMENT", s), "source_changed", "");
	}
	list = bbf_trigger_def(list, job, relid, "bbf_srcgone", 'O',
						   psprintf("DELETE ON %s FOR EACH ROW%s", s, was_old), "source_changed", "");
	list = bbf_trigger_def(list, job, relid, "bbf_srcdel", 'O',
						   psprintf("DELETE ON %s FOR EACH STATEMENT", s), "source_changed", "");
	/* two names: so that the check notices a BEFORE trigger that comes or goes */
	list = bbf_trigger_def(list, job, relid, of_any ? "bbf_srcany" : "bbf_srcchg", 'O',
						   psprintf("UPDATE%s ON %s FOR EACH ROW WHEN (%s)", of_columns, s, changed),
						   "source_changed", "");
	list = bbf_trigger_def(list, job, relid, of_any ? "bbf_srcanys" : "bbf_srcupd", 'O',
						   psprintf("UPDATE%s ON %s FOR EACH STATEMENT", of_columns, s),
						   "source_changed", "");
	list = bbf_trigger_def(list, job, relid, "bbf_srctrun", 'A',
						   psprintf("TRUNCATE ON %s FOR EACH STATEMENT", s), "source_truncated", "");
	/* logical apply fires no statement triggers but TRUNCATE's */
	list = bbf_trigger_def(list, job, relid, "bbf_srcrow", 'R',
						   psprintf("INSERT ON %s FOR EACH ROW%s", s, is_new), "source_changed", ", 'row'");
	list = bbf_trigger_def(list, job, relid, "bbf_srcrowd", 'R',
						   psprintf("DELETE ON %s FOR EACH ROW%s", s, was_old), "source_changed", ", 'row'");
	return bbf_trigger_def(list, job, relid, "bbf_srcrowu", 'R',
						   psprintf("UPDATE ON %s FOR EACH ROW WHEN (%s)", s, changed),
						   "source_changed", ", 'row'");
}

List *
bbf_sidecar_triggers(const BbfJob *job, const BbfPair *pair)
{
	return source_triggers(bbf_trigger_target_defs(job, pair), job, pair);
}
