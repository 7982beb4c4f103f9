/*
 * mode_column_ddl.c
 *		Mode "column": what it looks for before, makes, checks, and drops again.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/pg_type.h"
#include "commands/comment.h"
#include "executor/executor.h"
#include "expr.h"
#include "mode_column.h"
#include "objects.h"
#include "readers.h"
#include "rewrite/prs2lock.h"
#include "shape.h"
#include "sql.h"
#include "trigger_defs.h"
#include "txn.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

/* The flag column's attributes; false if there is none. */
bool
bbf_column_flag_attribute(const BbfJob *job, Oid source, FormData_pg_attribute *att)
{
	HeapTuple	tuple = SearchSysCacheAttName(source, job->flag_column);

	if (!HeapTupleIsValid(tuple))
		return false;
	*att = *(Form_pg_attribute) GETSTRUCT(tuple);
	ReleaseSysCache(tuple);
	return true;
}

/* The flag column, quoted. */
const char *
bbf_column_flag(const BbfJob *job)
{
	return quote_identifier(job->flag_column);
}

/*
 * A source that cannot be updated would make the application's inserts into
 * the target fail, through our trigger.
 */
static void
check_source_can_be_updated(Relation source)
{
	const char *why = NULL;

	for (int i = 0; source->rd_rules && i < source->rd_rules->numLocks; i++)
	{
		if (source->rd_rules->rules[i]->event == CMD_UPDATE)
			why = "The table has a rule on UPDATE.";
	}
	if (bbf_shape_publishes_without_identity(source))
		why = "The table publishes updates and has no replica identity.";
	if (why)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("source table \"%s\" cannot be updated", RelationGetRelationName(source)),
				 errdetail("%s Mode \"column\" updates a flag on it, so that inserts into the target would fail.", why),
				 errhint("Use mode => 'sidecar', which never updates the source.")));
}

void
bbf_column_check(const BbfJob *job, Relation source, Relation target)
{
	FormData_pg_attribute att;

	if (job->flag_column == NULL || job->flag_column[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("mode \"column\" needs a flag_column")));
	check_source_can_be_updated(source);
	bbf_shape_report_triggers(source, WARNING);
	if (bbf_expr_runs_users_code(job->pending_where, RelationGetRelid(source), job->source_was))
		ereport(WARNING,
				(errmsg("pending_where calls functions, or uses types, that are not the server's own"),
				 errdetail("It becomes the condition of an index, which the server evaluates as whoever reads or writes table \"%s\".",
						   RelationGetRelationName(source)),
				 errhint("In mode \"sidecar\" it is evaluated as the owner of the table alone.")));
	if (!bbf_column_flag_attribute(job, RelationGetRelid(source), &att))
	{
		bbf_shape_check_column_can_be_added(source);
		return;
	}
	if (att.attnum < 0 || att.atttypid != BOOLOID)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" of table \"%s\" is not boolean",
						job->flag_column, RelationGetRelationName(source)),
				 errdetail("Its type is %s.", format_type_be(att.atttypid)),
				 errhint("Name another flag_column; it is added if it does not exist.")));
	if (att.attgenerated || att.attidentity)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TABLE_DEFINITION),
				 errmsg("column \"%s\" of table \"%s\" is a generated column",
						job->flag_column, RelationGetRelationName(source)),
				 errhint("Name another flag_column; it is added if it does not exist.")));
	if (!att.attnotnull &&
		bbf_shape_has_constraint(RelationGetRelid(source), bbf_job_object(job, "bbf_notnull")))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("constraint \"%s\" of table \"%s\" already exists",
						bbf_job_object(job, "bbf_notnull"), RelationGetRelationName(source)),
				 errdetail("A job makes and drops one of that name."),
				 errhint("Drop it, or give another name as job => '...'.")));
	if (strcmp(job->flag_column, job->source_key) == 0 ||
		(job->group_by && strcmp(job->flag_column, job->group_by) == 0))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("column \"%s\" cannot be flag, key and group at once", job->flag_column)));
}

char *
bbf_column_describe(const BbfJob *job, Relation source)
{
	FormData_pg_attribute att;

	if (bbf_column_flag_attribute(job, RelationGetRelid(source), &att))
		return psprintf("column \"%s\" of table \"%s\" exists and would be adopted: default false%s",
						job->flag_column, RelationGetRelationName(source),
						att.attnotnull ? "" : ", NULLs filled, NOT NULL at the end");
	return psprintf("column \"%s\" boolean NOT NULL DEFAULT false would be added to table \"%s\" without a rewrite",
					job->flag_column, RelationGetRelationName(source));
}

BbfMissing
bbf_column_missing(const BbfJob *job, const BbfPair *pair, char **what)
{
	FormData_pg_attribute att;
	Relation	source = table_open(pair->source, AccessShareLock);

	check_source_can_be_updated(source);
	table_close(source, NoLock);
	if (!bbf_column_flag_attribute(job, pair->source, &att))
	{
		*what = psprintf("flag column \"%s\"", job->flag_column);
		return BBF_MISSING_OBJECT;
	}
	if (att.atttypid != BOOLOID)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("flag column \"%s\" of job \"%s\" is not boolean any more",
						job->flag_column, job->name),
				 errhint("Make it boolean again, or drop it and use bgw_backfill.resume('%s').", job->name)));
	if (!bbf_shape_default_is_false(pair->source, att.attnum))
	{
		*what = psprintf("default of flag column \"%s\"", job->flag_column);
		return BBF_MISSING_DEFAULT;
	}
	return BBF_MISSING_NOTHING;
}

List *
bbf_column_triggers(const BbfJob *job, const BbfPair *pair)
{
	const char *s = pair->source_sql;
	char	   *key_changed = bbf_trigger_changed(pair->source, bms_make_singleton(pair->source_key_att));
	List	   *list = bbf_trigger_target_defs(job, pair);

	/*
	 * A row that takes another key takes another answer, foreign key or not.
	 * Settled at once, row by row: the statement holds its rows already.  An
	 * UPDATE that does not name the key costs nothing, unless a BEFORE trigger
	 * might change it all the same.
	 */
	if (bbf_shape_has_before_update(pair->source))
		list = bbf_trigger_def(list, job, pair->source, "bbf_srcany", 'A',
						   psprintf("UPDATE ON %s FOR EACH ROW WHEN (%s)", s, key_changed),
						   "source_changed", ", 'row'");
	else
		list = bbf_trigger_def(list, job, pair->source, "bbf_srckey", 'A',
						   psprintf("UPDATE OF %s ON %s FOR EACH ROW WHEN (%s)",
									pair->source_key, s, key_changed),
						   "source_changed", ", 'row'");
	if (!pair->has_foreign_key)
	{
		list = bbf_trigger_def(list, job, pair->source, "bbf_srcpick", 'O',
						   psprintf("INSERT ON %s FOR EACH ROW", s), "source_changed", "");
		list = bbf_trigger_def(list, job, pair->source, "bbf_srcins", 'O',
						   psprintf("INSERT ON %s FOR EACH STATEMENT", s), "source_changed", "");
	}
	/* a replica enforces no foreign key */
	return bbf_trigger_def(list, job, pair->source, "bbf_srcrow", 'R',
					   psprintf("INSERT ON %s FOR EACH ROW", s),
					   "source_changed", ", 'row'");
}

LOCKMODE
bbf_column_source_lock(const BbfJob *job, const BbfPair *pair)
{
	char	   *what;

	return bbf_column_missing(job, pair, &what) != BBF_MISSING_NOTHING ? AccessExclusiveLock : ShareRowExclusiveLock;
}

#define MARK "maintained by bgw_backfill"

/* How the comment of a job's flag column begins. */
static char *
mark_of_job(const BbfJob *job)
{
	return psprintf(MARK " (job %s): ", bbf_job_display_name(job));
}

/* The flag column's comment. */
static char *
flag_comment(const BbfJob *job)
{
	return psprintf("%sis there a row of %s?", mark_of_job(job), job->target_name);
}

/* Does the column carry a comment that begins so? */
static bool
comment_begins(Oid source, AttrNumber attno, const char *begin)
{
	char	   *comment = GetComment(source, RelationRelationId, attno);

	return comment && strncmp(comment, begin, strlen(begin)) == 0;
}

/*
 * Both ALTERs touch the catalog only: old rows get their "true" from the
 * catalog, new ones start with "false".
 */
void
bbf_column_install(BbfJob *job, const BbfPair *pair)
{
	FormData_pg_attribute att;
	bool		exists = bbf_column_flag_attribute(job, pair->source, &att);

	if (!exists)
	{
		bbf_sql_ddl(psprintf("ALTER TABLE ONLY %s ADD COLUMN %s pg_catalog.bool NOT NULL DEFAULT true",
					 pair->source_sql, bbf_column_flag(job)));
		bbf_sql_ddl(psprintf("COMMENT ON COLUMN %s.%s IS %s", pair->source_sql, bbf_column_flag(job),
					 quote_literal_cstr(flag_comment(job))));
		/* a grant on the table holds for its new column, one on columns does not */
		bbf_readers_grant(psprintf("SELECT (%s) ON TABLE %s", bbf_column_flag(job), pair->source_sql), pair);
	}
	if (!exists || !bbf_shape_default_is_false(pair->source, att.attnum))
		bbf_sql_ddl(psprintf("ALTER TABLE ONLY %s ALTER COLUMN %s SET DEFAULT false",
					 pair->source_sql, bbf_column_flag(job)));
	/* a table that was made anew may have brought a column of its own */
	if (!exists || (job->flag_added && !comment_begins(pair->source, att.attnum, MARK)))
		bbf_job_set_flag_added(job, !exists);
}

/* The constraint by which an adopted column becomes NOT NULL. */
static char *
constraint_name(const BbfJob *job)
{
	return bbf_job_object(job, "bbf_notnull");
}

/* Drop it if it is there: it is never to stay. */
static void
drop_constraint(const BbfJob *job, const BbfPair *pair)
{
	if (!job->flag_added && bbf_shape_has_constraint(pair->source, constraint_name(job)))
		bbf_sql_ddl(psprintf("ALTER TABLE ONLY %s DROP CONSTRAINT %s", pair->source_sql,
					 quote_identifier(constraint_name(job))));
}

void
bbf_column_uninstall(const BbfJob *job, const BbfPair *pair)
{
	FormData_pg_attribute att;

	drop_constraint(job, pair);
	if (!job->drop_objects)
		return;
	/* one that an earlier job of this name has made and left is the job's as well */
	if (bbf_column_flag_attribute(job, pair->source, &att) &&
		(job->flag_added || comment_begins(pair->source, att.attnum, mark_of_job(job))))
		bbf_sql_ddl(psprintf("ALTER TABLE ONLY %s DROP COLUMN %s", pair->source_sql, bbf_column_flag(job)));
	else
		bbf_sql_ddl(psprintf("DROP INDEX IF EXISTS %s",
					 bbf_object_sql(job, BBF_PENDING_IDX)));
}

/* Begin a transaction for DDL, whose locks wait no longer than the job allows. */
static bool
begin_ddl(const BbfJob *job)
{
	if (!bbf_txn_begin())
		return false;
	bbf_txn_lock_timeout(bbf_job_setting(job, BBF_LOCK_TIMEOUT));
	return true;
}

/*
 * Validate the constraint.  False: there is a NULL that came between the fill and
 * the constraint.
 */
static bool
validate(const BbfJob *job, const BbfPair *pair)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool valid = true;

	PG_TRY();
	{
		if (begin_ddl(job))
		{
			bbf_sql_ddl(psprintf("ALTER TABLE ONLY %s VALIDATE CONSTRAINT %s", pair->source_sql,
						 quote_identifier(constraint_name(job))));
			bbf_txn_commit();
		}
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		if (edata->sqlerrcode != ERRCODE_CHECK_VIOLATION)
			PG_RE_THROW();
		FlushErrorState();
		bbf_txn_abort();
		MemoryContextSwitchTo(context);
		valid = false;
	}
	PG_END_TRY();
	return valid;
}

/*
 * An adopted column becomes NOT NULL without a long lock: a check constraint
 * that is not valid yet, its validation (readers and writers go on), and then
 * SET NOT NULL, which takes the constraint's word.  It does so only while the
 * constraint is there: it is dropped by a statement of its own.
 *
 * If a NULL is found, the constraint goes, so that it refuses nobody's update of
 * that row, and the fill is done again.
 */
bool
bbf_column_finish_fill(BbfJob *job)
{
	FormData_pg_attribute att;
	BbfPair    *pair;
	bool		valid;

	if (!begin_ddl(job))
		return true;
	pair = bbf_pair_load(job);
	if (!bbf_column_flag_attribute(job, pair->source, &att) || att.attnotnull)
	{
		drop_constraint(job, pair);
		bbf_txn_commit();
		return true;
	}
	if (!bbf_shape_has_constraint(pair->source, constraint_name(job)))
		bbf_sql_ddl(psprintf("ALTER TABLE ONLY %s ADD CONSTRAINT %s CHECK (%s IS NOT NULL) NOT VALID",
					 pair->source_sql, quote_identifier(constraint_name(job)), bbf_column_flag(job)));
	bbf_txn_commit();

	valid = validate(job, pair);
	if (!begin_ddl(job))
		return true;
	if (valid)
		bbf_sql_ddl(psprintf("ALTER TABLE ONLY %s ALTER COLUMN %s SET NOT NULL",
					 pair->source_sql, bbf_column_flag(job)));
	drop_constraint(job, pair);
	bbf_txn_commit();
	return valid;
}
