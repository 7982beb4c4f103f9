/*
 * mode_column.c
 *		Mode "column": the answer is a boolean on the source.
 *
 * The flag is true for every row that is there when the column is added, and
 * false for every row inserted from then on; it is never NULL.  The fill makes
 * it false where there is no match, which is the sparse side; from the moment
 * the triggers are there, each change of the target settles the flags of the
 * source rows that its keys point at.
 *
 * Who decides, and after which lock:
 *
 * Everybody who writes a flag first locks the source row, FOR NO KEY UPDATE,
 * and then, as a statement of its own with a snapshot taken after the lock,
 * looks whether a match exists.  Two deciders for one row thus come one after
 * the other, and the later one sees what the earlier one's transaction did.
 *
 * R1, a target insert against a batch.  The insert's trigger always locks the
 * source row, whatever the flag says.  If the batch has the lock first, the
 * trigger waits for the batch's commit, looks, and sets true.  If the trigger
 * has it first, the batch's SKIP LOCKED passes the row by and remembers it; it
 * is done later, in a transaction that waits for the inserter.  If the target
 * row is written and its trigger has not run yet, the batch may set false: the
 * trigger comes after.  If the insert committed between the batch's candidate
 * search and its lock, the search's answer is old, but the decision's is not.
 *
 * An insert's trigger has a short way, for rows whose flag it finds false: see
 * column_target_settle_new().
 *
 * R2, a target delete against a batch: the same with false.  The batch can only
 * see the match as long as the delete is not committed, and the delete's
 * trigger locks the row before that.
 *
 * R3, several matches for a row, one deleted and another inserted: both
 * triggers lock the same source row, so the later one's snapshot shows what the
 * earlier transaction left.
 *
 * Without a foreign key that is validated and immediate a target row may be
 * there before its source row.  The source's trigger then looks for matches of
 * its new rows and locks them FOR KEY SHARE, so that they cannot go before the
 * flag says true (FOR SHARE where an update could end the match); a match that is not committed yet is not seen, and its own
 * trigger finds no source row either: that is the wrong "false" that invariant
 * 1 allows until the next sweep.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_type.h"
#include "commands/comment.h"
#include "executor/executor.h"
#include "expr.h"
#include "mode.h"
#include "nodes/makefuncs.h"
#include "rewrite/prs2lock.h"
#include "shape.h"
#include "txn.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

/* The flag column's attributes; false if there is none. */
static bool
flag_attribute(const BbfJob *job, Oid source, FormData_pg_attribute *att)
{
	HeapTuple	tuple = SearchSysCacheAttName(source, job->flag_column);

	if (!HeapTupleIsValid(tuple))
		return false;
	*att = *(Form_pg_attribute) GETSTRUCT(tuple);
	ReleaseSysCache(tuple);
	return true;
}

static const char *
flag(const BbfJob *job)
{
	return quote_identifier(job->flag_column);
}

/* Run one utility or DDL statement. */
static void
run(const char *sql)
{
	bbf_txn_sql(sql, 0, NULL, NULL, NULL, SPI_OK_UTILITY);
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

static void
column_check(const BbfJob *job, Relation source, Relation target)
{
	FormData_pg_attribute att;

	if (job->flag_column == NULL || job->flag_column[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("mode \"column\" needs a flag_column")));
	check_source_can_be_updated(source);
	bbf_shape_report_triggers(source, WARNING);
	if (!flag_attribute(job, RelationGetRelid(source), &att))
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

static char *
column_describe(const BbfJob *job, Relation source)
{
	FormData_pg_attribute att;

	if (flag_attribute(job, RelationGetRelid(source), &att))
		return psprintf("column \"%s\" of table \"%s\" exists and would be adopted: default false%s",
						job->flag_column, RelationGetRelationName(source),
						att.attnotnull ? "" : ", NULLs filled, NOT NULL at the end");
	return psprintf("column \"%s\" boolean NOT NULL DEFAULT false would be added to table \"%s\" without a rewrite",
					job->flag_column, RelationGetRelationName(source));
}

static char *
column_missing(const BbfJob *job, const BbfPair *pair)
{
	FormData_pg_attribute att;
	Relation	source = table_open(pair->source, AccessShareLock);

	check_source_can_be_updated(source);
	table_close(source, NoLock);
	if (!flag_attribute(job, pair->source, &att))
		return psprintf("flag column \"%s\"", job->flag_column);
	if (att.atttypid != BOOLOID)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("flag column \"%s\" of job \"%s\" is not boolean any more",
						job->flag_column, job->name),
				 errhint("Make it boolean again, or drop it and use bgw_backfill.resume('%s').", job->name)));
	if (!bbf_shape_default_is_false(pair->source, att.attnum))
		return psprintf("default of flag column \"%s\"", job->flag_column);
	return NULL;
}

/*
 * The trigger's WHEN: has one of these columns changed?  Types whose equality
 * may hide a difference, or that have none, are compared by their image.
 */
static char *
changed(Oid relid, Bitmapset *columns)
{
	StringInfoData sql;
	int			attno = -1;

	initStringInfo(&sql);
	while ((attno = bms_next_member(columns, attno)) >= 0)
	{
		const char *name = quote_identifier(get_attname(relid, attno, false));

		appendStringInfo(&sql, bbf_shape_equal_is_identical(relid, attno) ?
						 "%sOLD.%s IS DISTINCT FROM NEW.%s" :
						 "%sROW(OLD.%s)::pg_catalog.record OPERATOR(pg_catalog.*<>) ROW(NEW.%s)::pg_catalog.record",
						 sql.len ? " OR " : "", name, name);
	}
	return sql.data;
}

/* One more trigger for a mode's list. */
static List *
add_trigger(List *list, const BbfJob *job, Oid relid, const char *suffix, char enabled,
			const char *event, const char *function, const char *more)
{
	BbfTriggerDef *def = palloc(sizeof(BbfTriggerDef));

	def->name = bbf_job_object(job, suffix);
	def->relid = relid;
	def->enabled = enabled;
	def->sql = psprintf("CREATE TRIGGER %s AFTER %s EXECUTE FUNCTION bgw_backfill.%s(%s%s)",
						quote_identifier(def->name), event, function,
						quote_literal_cstr(job->name), more);
	return lappend(list, def);
}

static List *
column_triggers(const BbfJob *job, const BbfPair *pair)
{
	const char *s = pair->source_sql;
	const char *m = pair->target_sql;
	Bitmapset  *target_columns = bbf_expr_columns(job->match_where, pair->target);
	char	   *target_changed;
	char	   *key_changed;
	List	   *list = NIL;

	target_columns = bms_add_member(target_columns, pair->target_key_att);
	target_changed = changed(pair->target, target_columns);
	key_changed = changed(pair->source, bms_make_singleton(pair->source_key_att));

	list = add_trigger(list, job, pair->target, "bbf_insert", 'O',
					   psprintf("INSERT ON %s REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT", m),
					   "target_changed", "");
	list = add_trigger(list, job, pair->target, "bbf_delete", 'O',
					   psprintf("DELETE ON %s REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT", m),
					   "target_changed", "");
	list = add_trigger(list, job, pair->target, "bbf_collect", 'O',
					   psprintf("UPDATE ON %s FOR EACH ROW WHEN (%s)", m, target_changed),
					   "target_changed", "");
	list = add_trigger(list, job, pair->target, "bbf_update", 'O',
					   psprintf("UPDATE ON %s FOR EACH STATEMENT", m),
					   "target_changed", "");
	list = add_trigger(list, job, pair->target, "bbf_trunc", 'A',
					   psprintf("TRUNCATE ON %s FOR EACH STATEMENT", m),
					   "target_truncated", "");
	/* logical apply fires no statement triggers but TRUNCATE's */
	list = add_trigger(list, job, pair->target, "bbf_row", 'R',
					   psprintf("INSERT OR DELETE ON %s FOR EACH ROW", m),
					   "target_changed", ", 'row'");
	list = add_trigger(list, job, pair->target, "bbf_rowupd", 'R',
					   psprintf("UPDATE ON %s FOR EACH ROW WHEN (%s)", m, target_changed),
					   "target_changed", ", 'row'");

	/*
	 * A row that takes another key takes another answer, foreign key or not.
	 * Settled at once, row by row: the statement holds its rows already.  An
	 * UPDATE that does not name the key costs nothing, unless a BEFORE trigger
	 * might change it all the same.
	 */
	if (bbf_shape_has_before_update(pair->source))
		list = add_trigger(list, job, pair->source, "bbf_srcany", 'A',
						   psprintf("UPDATE ON %s FOR EACH ROW WHEN (%s)", s, key_changed),
						   "source_changed", ", 'row'");
	else
		list = add_trigger(list, job, pair->source, "bbf_srckey", 'A',
						   psprintf("UPDATE OF %s ON %s FOR EACH ROW WHEN (%s)",
									pair->source_key, s, key_changed),
						   "source_changed", ", 'row'");
	if (!pair->has_foreign_key)
		list = add_trigger(list, job, pair->source, "bbf_srcins", 'O',
						   psprintf("INSERT ON %s REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT", s),
						   "source_changed", "");
	/* a replica enforces no foreign key */
	return add_trigger(list, job, pair->source, "bbf_srcrow", 'R',
					   psprintf("INSERT ON %s FOR EACH ROW", s),
					   "source_changed", ", 'row'");
}

static LOCKMODE
column_source_lock(const BbfJob *job, const BbfPair *pair)
{
	return column_missing(job, pair) ? AccessExclusiveLock : ShareRowExclusiveLock;
}

/* The flag column's comment. */
static char *
flag_comment(const BbfJob *job)
{
	return psprintf("maintained by bgw_backfill (job %s): is there a row of %s?",
					job->name, job->target_name);
}

/* Does the column carry the comment that we gave it? */
static bool
has_our_comment(const BbfJob *job, Oid source, AttrNumber attno)
{
	char	   *comment = GetComment(source, RelationRelationId, attno);

	return comment && strncmp(comment, "maintained by bgw_backfill", 26) == 0;
}

/*
 * Both ALTERs touch the catalog only: old rows get their "true" from the
 * catalog, new ones start with "false".
 */
static void
column_install(BbfJob *job, const BbfPair *pair)
{
	FormData_pg_attribute att;
	bool		exists = flag_attribute(job, pair->source, &att);

	if (!exists)
	{
		run(psprintf("ALTER TABLE ONLY %s ADD COLUMN %s pg_catalog.bool NOT NULL DEFAULT true",
					 pair->source_sql, flag(job)));
		run(psprintf("COMMENT ON COLUMN %s.%s IS %s", pair->source_sql, flag(job),
					 quote_literal_cstr(flag_comment(job))));
	}
	if (!exists || !bbf_shape_default_is_false(pair->source, att.attnum))
		run(psprintf("ALTER TABLE ONLY %s ALTER COLUMN %s SET DEFAULT false",
					 pair->source_sql, flag(job)));
	/* a table that was made anew may have brought a column of its own */
	if (!exists || (job->flag_added && !has_our_comment(job, pair->source, att.attnum)))
		bbf_job_set_flag_added(job, !exists);
}

static void
column_uninstall(const BbfJob *job, const BbfPair *pair)
{
	FormData_pg_attribute att;

	if (job->flag_added && flag_attribute(job, pair->source, &att))
		run(psprintf("ALTER TABLE ONLY %s DROP COLUMN %s", pair->source_sql, flag(job)));
	else
		run(psprintf("DROP INDEX IF EXISTS %s",
					 quote_qualified_identifier(pair->schema, bbf_job_object(job, "pending_idx"))));
}

/* Run DDL in a transaction of its own; false if the extension is gone. */
static bool
run_alone(const char *sql)
{
	if (!bbf_txn_begin())
		return false;
	run(sql);
	bbf_txn_commit();
	return true;
}

/*
 * An adopted column becomes NOT NULL without a long lock: a check constraint
 * that is not valid yet, its validation (readers and writers go on), and then
 * SET NOT NULL, which takes the constraint's word.
 */
static bool
column_finish_fill(BbfJob *job)
{
	MemoryContext context = CurrentMemoryContext;
	FormData_pg_attribute att;
	BbfPair    *pair;
	char	   *constraint = bbf_job_object(job, "bbf_notnull");
	bool		have_constraint;
	volatile bool valid = true;

	if (!bbf_txn_begin())
		return true;
	pair = bbf_pair_load(job);
	if (!flag_attribute(job, pair->source, &att) || att.attnotnull)
	{
		bbf_txn_commit();
		return true;
	}
	have_constraint = bbf_shape_has_constraint(pair->source, constraint);
	bbf_txn_commit();

	if (!have_constraint &&
		!run_alone(psprintf("ALTER TABLE ONLY %s ADD CONSTRAINT %s CHECK (%s IS NOT NULL) NOT VALID",
							pair->source_sql, quote_identifier(constraint), flag(job))))
		return true;

	PG_TRY();
	{
		valid = run_alone(psprintf("ALTER TABLE ONLY %s VALIDATE CONSTRAINT %s",
								   pair->source_sql, quote_identifier(constraint)));
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		if (edata->sqlerrcode != ERRCODE_CHECK_VIOLATION)
			PG_RE_THROW();
		/* a NULL came between the fill and the constraint: no more can come */
		FlushErrorState();
		bbf_txn_abort();
		MemoryContextSwitchTo(context);
		return false;
	}
	PG_END_TRY();

	if (valid)
		run_alone(psprintf("ALTER TABLE ONLY %s ALTER COLUMN %s SET NOT NULL, DROP CONSTRAINT %s",
						   pair->source_sql, flag(job), quote_identifier(constraint)));
	return true;
}

/* A key range as a condition: column OP $1 AND column OP $2. */
static char *
range(const char *column, char *const *op, bool bounded)
{
	char	   *high = psprintf("%s %s $2", column, op[BTLessEqualStrategyNumber]);

	return bounded ?
		psprintf("%s %s $1 AND %s", column, op[BTGreaterStrategyNumber], high) : high;
}

/*
 * The candidates of a key range.  The range stands on both sides of the join,
 * so a batch costs the same however large the tables are.  The fill of a column
 * of our own writes only where there is no match; a sweep, and the fill of an
 * adopted column, look in both directions in one pass.
 */
static char *
column_candidates(const BbfJob *job, const BbfPair *pair, bool sweep, bool bounded)
{
	char	   *skey = psprintf("s.%s", pair->source_key);
	char	   *mkey = psprintf("m.%s", pair->target_key);
	const char *eq = pair->target_key_op[BTEqualStrategyNumber];
	char	   *srange = range(skey, pair->key_op, bounded);
	char	   *matches = psprintf("FROM ONLY %s m WHERE %s%s%s", pair->target_sql,
								   range(mkey, pair->target_key_op, bounded),
								   pair->match_where ? " AND " : "",
								   pair->match_where ? pair->match_where : "");

	if (!sweep && job->flag_added)
		return psprintf("SELECT s.ctid, %s FROM ONLY %s s WHERE %s AND s.%s"
						" AND NOT EXISTS (SELECT %s AND %s %s %s)"
						" ORDER BY %s USING %s",
						skey, pair->source_sql, srange, flag(job),
						matches, mkey, eq, skey,
						skey, pair->key_op[BTLessStrategyNumber]);
	return psprintf("SELECT s.ctid, %s FROM ONLY %s s"
					" LEFT JOIN (SELECT %s%s AS k %s) t ON t.k %s %s"
					" WHERE %s AND s.%s IS DISTINCT FROM (t.k IS NOT NULL)"
					" ORDER BY %s USING %s",
					skey, pair->source_sql,
					pair->target_key_unique ? "" : "DISTINCT ", mkey, matches, eq, skey,
					srange, flag(job),
					skey, pair->key_op[BTLessStrategyNumber]);
}

/* Lock candidates by place, passing by what others hold; or one row by key. */
static char *
column_lock(const BbfJob *job, const BbfPair *pair, bool by_key)
{
	if (by_key)
		return psprintf("SELECT s.ctid, s.%s FROM ONLY %s s WHERE s.%s %s $1 FOR NO KEY UPDATE",
						pair->source_key, pair->source_sql, pair->source_key,
						pair->key_op[BTEqualStrategyNumber]);
	return psprintf("SELECT s.ctid, s.%s FROM ONLY %s s WHERE s.ctid OPERATOR(pg_catalog.=) ANY ($1)"
					" ORDER BY s.%s USING %s FOR NO KEY UPDATE SKIP LOCKED",
					pair->source_key, pair->source_sql,
					pair->source_key, pair->key_op[BTLessStrategyNumber]);
}

/* Settle locked rows by place. */
static char *
column_decide(const BbfJob *job, const BbfPair *pair)
{
	char	   *match = bbf_pair_match(pair, "s");
	FormData_pg_attribute att;
	bool		never_null = flag_attribute(job, pair->source, &att) && att.attnotnull;

	return psprintf("UPDATE ONLY %s s SET %s = %s"
					" WHERE s.ctid OPERATOR(pg_catalog.=) ANY ($1) AND s.%s IS DISTINCT FROM %s",
					pair->source_sql, flag(job),
					never_null ? psprintf("NOT s.%s", flag(job)) : match,
					flag(job), match);
}

/* Rows that the update above should have written, and that are still there. */
static char *
column_undecided(const BbfJob *job, const BbfPair *pair)
{
	return psprintf("SELECT s.%s FROM ONLY %s s WHERE s.ctid OPERATOR(pg_catalog.=) ANY ($1)"
					" AND s.%s IS DISTINCT FROM %s LIMIT 1",
					pair->source_key, pair->source_sql, flag(job), bbf_pair_match(pair, "s"));
}

/*
 * The short way for an insert into the target: write true where the flag is not.
 * It locks what it writes, and needs no look for a match, before or after: the
 * match is the row just inserted, which nobody else can take away before we
 * commit, and trigger.c takes this way only while this transaction has removed
 * none.  A row that it does not write (the flag was true already, in the
 * statement's snapshot or after a wait) is not settled: if there is one, the
 * trigger goes the long way.
 */
static char *
column_target_settle_new(const BbfJob *job, const BbfPair *pair)
{
	if (pair->match_where)
		return NULL;			/* the row may be no match */
	return psprintf("UPDATE ONLY %s s SET %s = true WHERE s.%s %s ANY ($1) AND s.%s IS NOT TRUE",
					pair->source_sql, flag(job), pair->source_key, pair->source_eq_target,
					flag(job));
}

static char *
column_target_lock(const BbfJob *job, const BbfPair *pair)
{
	return psprintf("SELECT s.ctid FROM ONLY %s s WHERE s.%s %s ANY ($1)"
					" ORDER BY s.%s USING %s FOR NO KEY UPDATE",
					pair->source_sql, pair->source_key, pair->source_eq_target,
					pair->source_key, pair->key_op[BTLessStrategyNumber]);
}

/*
 * The matches of new source rows, held until the flag is committed.  Where an
 * update that is no key update can end a match (of a column of match_where, or
 * of a key that no unique index covers), the lock has to keep it out as well.
 */
static char *
column_source_lock_matches(const BbfJob *job, const BbfPair *pair)
{
	return psprintf("SELECT m.%s FROM ONLY %s m WHERE m.%s %s ANY ($1)%s%s"
					" ORDER BY m.%s %s",
					pair->target_key, pair->target_sql, pair->target_key,
					pair->target_key_op[BTEqualStrategyNumber],
					pair->match_where ? " AND " : "", pair->match_where ? pair->match_where : "",
					pair->target_key,
					pair->match_where || !pair->target_key_unique ? "FOR SHARE" : "FOR KEY SHARE");
}

/* $1: the source keys; $2: the target keys among them that are held. */
static char *
column_source_settle(const BbfJob *job, const BbfPair *pair)
{
	const char *op = pair->target_key_op[BTEqualStrategyNumber];
	char	   *held = psprintf("EXISTS (SELECT FROM pg_catalog.unnest($2) h (k) WHERE h.k %s s.%s)",
								op, pair->source_key);

	return psprintf("UPDATE ONLY %s s SET %s = %s WHERE s.%s %s ANY ($1) AND s.%s IS DISTINCT FROM %s",
					pair->source_sql, flag(job), held, pair->source_key,
					pair->key_op[BTEqualStrategyNumber], flag(job), held);
}

static char *
column_pending_from(const BbfJob *job, const BbfPair *pair)
{
	return psprintf("FROM ONLY %s s WHERE NOT s.%s%s%s", pair->source_sql, flag(job),
					pair->pending_where ? " AND " : "", pair->pending_where ? pair->pending_where : "");
}

static char *
column_pending_index(const BbfJob *job, const BbfPair *pair)
{
	return psprintf("ON ONLY %s (%s%s%s) WHERE NOT %s%s%s", pair->source_sql,
					pair->group_by ? pair->group_by : "", pair->group_by ? ", " : "",
					pair->source_key, flag(job),
					job->pending_where ? " AND " : "",
					job->pending_where ? psprintf("(%s)", job->pending_where) : "");
}

const BbfMode bbf_mode_column = {
	.name = "column",
	.check = column_check,
	.describe = column_describe,
	.missing = column_missing,
	.triggers = column_triggers,
	.source_lock = column_source_lock,
	.install = column_install,
	.uninstall = column_uninstall,
	.finish_fill = column_finish_fill,
	.candidates = column_candidates,
	.lock = column_lock,
	.decide = column_decide,
	.undecided = column_undecided,
	.target_settle_new = column_target_settle_new,
	.target_lock = column_target_lock,
	.target_settle = column_decide,
	.source_lock_matches = column_source_lock_matches,
	.source_settle = column_source_settle,
	.pending_from = column_pending_from,
	.pending_index = column_pending_index,
};
