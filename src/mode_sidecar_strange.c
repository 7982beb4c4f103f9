/*
 * mode_sidecar_strange.c
 *		What stands on the table of pending keys and is not ours.
 *
 * The table belongs to the owner of the job's tables, and its triggers, rules,
 * policies, constraints and index expressions would be his code.  We write it in the
 * sessions of others: a constraint trigger that is deferred would run at their commit,
 * as them.  So nothing may stand on it but what install has made.  The triggers look
 * before they write, with the table locked; the worker takes away what it finds.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "catalog/dependency.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "mode_sidecar.h"
#include "objects.h"
#include "rewrite/prs2lock.h"
#include "shape.h"
#include "sql.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

/* What of a column of the owner's own would run code, or refuse a row; NULL: nothing. */
static char *
strange_column(const BbfJob *job, Relation table, AttrNumber attno)
{
	Form_pg_attribute column = TupleDescAttr(RelationGetDescr(table), attno - 1);
	const char *name = NameStr(column->attname);
	bool		ours = strcmp(name, BBF_ENQUEUED_AT) == 0 || strcmp(name, job->source_key) == 0 ||
		(job->group_by && strcmp(name, job->group_by) == 0);

	if (column->attisdropped)
		return NULL;
	if (bbf_shape_default_runs_users_code(table, attno))
		return psprintf("the default of column \"%s\"", name);
	if (!ours && ((column->attnotnull && !column->atthasdef) || get_typtype(column->atttypid) == TYPTYPE_DOMAIN))
		return psprintf("column \"%s\"", name);
	return NULL;
}

/* The names of indexes of the owner's own that would run code, or refuse a row. */
static List *
strange_indexes(const BbfJob *job, Relation table)
{
	List	   *names = NIL;
	ListCell   *lc;

	foreach(lc, RelationGetIndexList(table))
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);
		const char *name = RelationGetRelationName(index);

		if (bbf_shape_index_runs_users_code(index) ||
			((index->rd_index->indisunique || index->rd_index->indisexclusion) &&
			 RelationGetRelid(index) != bbf_object_find(job, BBF_SIDECAR_KEY)))
			names = lappend(names, pstrdup(name));
		index_close(index, AccessShareLock);
	}
	return names;
}

/*
 * What the table has that we have not made, and that could run somebody's code
 * when it is written, then or at the commit, or refuse a row: NULL if nothing.
 */
char *
bbf_sidecar_strange(const BbfJob *job, const BbfPair *pair)
{
	Oid			relid = bbf_object_find(job, BBF_SIDECAR);
	Relation	table = OidIsValid(relid) ? try_table_open(relid, AccessShareLock) : NULL;
	TupleConstr *constr;
	List	   *indexes;
	char	   *strange = NULL;

	if (table == NULL)
		return NULL;
	constr = RelationGetDescr(table)->constr;
	if (table->trigdesc && table->trigdesc->numtriggers > 0)
		strange = table->trigdesc->triggers[0].tgisinternal ? pstrdup("a foreign key") :
			psprintf("trigger \"%s\"", table->trigdesc->triggers[0].tgname);
	else if (table->rd_rules)
		strange = pstrdup("a rule");
	else if (table->rd_rel->relrowsecurity || table->rd_rel->relforcerowsecurity)
		strange = pstrdup("row security");
	else if (constr && constr->num_check > 0)
		strange = psprintf("constraint \"%s\"", constr->check[0].ccname);
	else if (table->rd_rel->relispartition || has_superclass(relid) || has_subclass(relid))
		strange = pstrdup("a place in an inheritance tree");
	else if ((indexes = strange_indexes(job, table)) != NIL)
		strange = psprintf("index \"%s\"", (char *) linitial(indexes));
	for (AttrNumber attno = 1; strange == NULL && attno <= RelationGetNumberOfAttributes(table); attno++)
		strange = strange_column(job, table, attno);
	table_close(table, AccessShareLock);
	return strange;
}

/* Take away what can be taken away alone. */
static void
drop_strange(const BbfJob *job, const BbfPair *pair)
{
	Oid			types[] = {OIDOID, TEXTOID};
	Datum		values[] = {ObjectIdGetDatum(bbf_object_find(job, BBF_SIDECAR)), CStringGetTextDatum(bbf_sidecar_table(job, pair))};
	Relation	table = table_open(bbf_object_find(job, BBF_SIDECAR), AccessShareLock);
	List	   *statements = NIL;
	ListCell   *lc;
	uint64		n;

	foreach(lc, strange_indexes(job, table))
	{
		Oid			constraint = get_index_constraint(get_relname_relid(lfirst(lc), RelationGetNamespace(table)));

		statements = lappend(statements, OidIsValid(constraint) ?
							 psprintf("ALTER TABLE ONLY %s DROP CONSTRAINT %s", bbf_sidecar_table(job, pair),
									  quote_identifier(get_constraint_name(constraint))) :
							 psprintf("DROP INDEX %s", quote_qualified_identifier(pair->schema, lfirst(lc))));
	}
	table_close(table, NoLock);
	n = bbf_sql_run("SELECT format('DROP TRIGGER %I ON %s', tgname, $2) FROM pg_trigger WHERE tgrelid = $1 AND NOT tgisinternal"
					" UNION ALL SELECT format('DROP RULE %I ON %s', rulename, $2) FROM pg_rewrite WHERE ev_class = $1"
					" UNION ALL SELECT format('DROP POLICY %I ON %s', polname, $2) FROM pg_policy WHERE polrelid = $1"
					" UNION ALL SELECT format('ALTER TABLE ONLY %s DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY', $2)"
					"  FROM pg_class WHERE oid = $1 AND (relrowsecurity OR relforcerowsecurity)"
					" UNION ALL SELECT format('ALTER TABLE ONLY %s DROP CONSTRAINT %I', $2, conname)"
					"  FROM pg_constraint WHERE conrelid = $1 AND contype IN ('c', 'f')",
					2, types, values, NULL, SPI_OK_SELECT);
	for (uint64 i = 0; i < n; i++)
		statements = lappend(statements, bbf_sql_text(i, 1));
	SPI_freetuptable(SPI_tuptable);
	foreach(lc, statements)
		bbf_sql_ddl(lfirst(lc));
}

/* Make the table ours alone again, in a worker; an error for what only its owner can take away. */
void
bbf_sidecar_remove_strange(const BbfJob *job, const BbfPair *pair)
{
	char	   *strange = bbf_sidecar_strange(job, pair);

	if (strange == NULL)
		return;
	drop_strange(job, pair);
	ereport(LOG,
			(errmsg("job \"%s\": removed %s from table \"%s\"", job->name, strange, bbf_object_name(job, BBF_SIDECAR))));
	strange = bbf_sidecar_strange(job, pair);
	if (strange)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" has what is not the job's: %s", bbf_object_name(job, BBF_SIDECAR), strange),
				 errdetail("The table is written in the sessions of others, and must run nobody's code there."),
				 errhint("Use DROP TABLE %s CASCADE and bgw_backfill.resume('%s'); the worker makes it, and the view, anew.",
						 bbf_sidecar_table(job, pair), job->name)));
}
