/*
 * trigger_defs.c
 *		What the modes' triggers have in common: how one is defined, and those on
 *		a target.
 */
#include "postgres.h"

#include "catalog/pg_trigger.h"
#include "expr.h"
#include "shape.h"
#include "trigger_defs.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

/*
 * The trigger's WHEN: has one of these columns changed?  Types whose equality
 * may hide a difference, or that have none, are compared by their image.
 */
char *
bbf_trigger_changed(Oid relid, Bitmapset *columns)
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

/*
 * One more trigger for a mode's list.  enabled: as pg_trigger.tgenabled; event:
 * from INSERT to WHEN (..); more: arguments after the job's name.
 */
List *
bbf_trigger_def(List *list, const BbfJob *job, Oid relid, const char *suffix, char enabled,
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

/*
 * The triggers on a target: of everything that may make or end a match.  Row triggers
 * collect the keys, and a statement trigger settles them.  (A transition table would be
 * a copy of every row, with its embedding, that spills to disk.)  An UPDATE's rows are
 * collected where the key or a column of match_where changes.
 */
List *
bbf_trigger_target_defs(const BbfJob *job, const BbfPair *pair)
{
	const char *m = pair->target_sql;
	Bitmapset  *columns = bbf_expr_columns(job->match_where, pair->target, job->target_was);
	char	   *changed;
	List	   *list = NIL;

	columns = bms_add_member(columns, pair->target_key_att);
	changed = bbf_trigger_changed(pair->target, columns);

	list = bbf_trigger_def(list, job, pair->target, "bbf_rows", 'O',
					   psprintf("INSERT OR DELETE ON %s FOR EACH ROW", m),
					   "target_changed", "");
	list = bbf_trigger_def(list, job, pair->target, "bbf_insert", 'O',
					   psprintf("INSERT ON %s FOR EACH STATEMENT", m),
					   "target_changed", "");
	list = bbf_trigger_def(list, job, pair->target, "bbf_delete", 'O',
					   psprintf("DELETE ON %s FOR EACH STATEMENT", m),
					   "target_changed", "");
	list = bbf_trigger_def(list, job, pair->target, "bbf_collect", 'O',
					   psprintf("UPDATE ON %s FOR EACH ROW WHEN (%s)", m, changed),
					   "target_changed", "");
	list = bbf_trigger_def(list, job, pair->target, "bbf_update", 'O',
					   psprintf("UPDATE ON %s FOR EACH STATEMENT", m),
					   "target_changed", "");
	list = bbf_trigger_def(list, job, pair->target, "bbf_trunc", 'A',
					   psprintf("TRUNCATE ON %s FOR EACH STATEMENT", m),
					   "target_truncated", "");
	/* logical apply fires no statement triggers but TRUNCATE's */
	list = bbf_trigger_def(list, job, pair->target, "bbf_row", 'R',
					   psprintf("INSERT OR DELETE ON %s FOR EACH ROW", m),
					   "target_changed", ", 'row'");
	list = bbf_trigger_def(list, job, pair->target, "bbf_rowupd", 'R',
					   psprintf("UPDATE ON %s FOR EACH ROW WHEN (%s)", m, changed),
					   "target_changed", ", 'row'");
	return list;
}
