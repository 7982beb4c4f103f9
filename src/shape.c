/*
 * shape.c
 *		Questions to the catalogs about one table.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "catalog/catalog.h"
#include "catalog/heap.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_publication.h"
#include "commands/tablecmds.h"
#include "commands/trigger.h"
#include "compat.h"
#include "executor/executor.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/plancat.h"
#include "rewrite/rewriteHandler.h"
#include "storage/bufmgr.h"
#include "shape.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/rls.h"
#include "utils/syscache.h"
#include "utils/typcache.h"
#include "value.h"

/*
 * Refuse a relation that is not a plain, permanent, lone table.  what: "source"
 * or "target".
 */
void
bbf_shape_check_table(Relation rel, const char *what)
{
	const char *name = RelationGetRelationName(rel);
	const char *is = NULL;

	if (rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE || rel->rd_rel->relispartition)
		is = "part of a partitioned table";
	else if (rel->rd_rel->relkind == RELKIND_VIEW || rel->rd_rel->relkind == RELKIND_MATVIEW)
		is = "a view";
	else if (rel->rd_rel->relkind == RELKIND_FOREIGN_TABLE)
		is = "a foreign table";
	else if (rel->rd_rel->relkind != RELKIND_RELATION)
		is = "not a table";
	if (is)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("%s \"%s\" is %s", what, name, is),
				 errhint("Source and target must be plain tables.")));
	if (IsCatalogRelation(rel) || IsToastRelation(rel))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("%s \"%s\" is a system catalog", what, name),
				 errhint("Source and target must be plain tables.")));
	if (rel->rd_rel->relpersistence == RELPERSISTENCE_TEMP)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("%s \"%s\" is a temporary table", what, name),
				 errdetail("A worker cannot see another session's temporary tables."),
				 errhint("Source and target must be plain tables.")));
	if (OidIsValid(rel->rd_rel->reloftype))
		is = "a typed table";
	else if (find_inheritance_children(RelationGetRelid(rel), NoLock) != NIL || has_superclass(RelationGetRelid(rel)))
		is = "part of an inheritance tree";
	if (is)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("%s \"%s\" is %s", what, name, is),
				 errdetail("Partitioned, inherited and typed tables are not supported yet."),
				 errhint("Source and target must be plain tables.")));
	if (rel->rd_rel->relrowsecurity && rel->rd_rel->relforcerowsecurity &&
		!has_bypassrls_privilege(rel->rd_rel->relowner))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("row-level security of %s \"%s\" applies to its owner", what, name),
				 errdetail("A worker, which runs as the owner, would not see all rows."),
				 errhint("Use ALTER TABLE ... NO FORCE ROW LEVEL SECURITY.")));
}

/* Does row security decide who sees which row of a table? */
bool
bbf_shape_has_row_security(Oid relid)
{
	Relation	rel = table_open(relid, AccessShareLock);
	bool		result = rel->rd_rel->relrowsecurity;

	table_close(rel, AccessShareLock);
	return result;
}

/* Refuse two tables of which a crash empties only the target: no trigger would tell. */
void
bbf_shape_check_persistence(Relation source, Relation target)
{
	if (target->rd_rel->relpersistence == RELPERSISTENCE_UNLOGGED &&
		source->rd_rel->relpersistence != RELPERSISTENCE_UNLOGGED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("target \"%s\" is an unlogged table, and source \"%s\" is not",
						RelationGetRelationName(target), RelationGetRelationName(source)),
				 errdetail("A crash of the server would empty the target, and the source's rows would still count as done."),
				 errhint("Use ALTER TABLE %s SET LOGGED.",
						 quote_qualified_identifier(get_namespace_name(RelationGetNamespace(target)),
													RelationGetRelationName(target)))));
}

/* Refuse a table that takes no new column: where its row type is used. */
void
bbf_shape_check_column_can_be_added(Relation rel)
{
	find_composite_type_dependencies(rel->rd_rel->reltype, rel, NULL);
}

/* Would the server refuse every UPDATE of the table for want of an identity? */
bool
bbf_shape_publishes_without_identity(Relation rel)
{
	PublicationDesc desc;

	if (rel->rd_rel->relreplident == REPLICA_IDENTITY_FULL ||
		OidIsValid(RelationGetReplicaIndex(rel)))
		return false;
	RelationBuildPublicationDesc(rel, &desc);
	return desc.pubactions.pubupdate;
}

/* Is a boolean column's default the constant false? */
bool
bbf_shape_default_is_false(Oid relid, AttrNumber attno)
{
	Relation	rel = table_open(relid, AccessShareLock);
	Node	   *expr = NULL;
	bool		result;

	if (TupleDescAttr(RelationGetDescr(rel), attno - 1)->atthasdef)
		expr = build_column_default(rel, attno);
	result = expr && IsA(expr, Const) && !((Const *) expr)->constisnull &&
		!DatumGetBool(((Const *) expr)->constvalue);
	table_close(rel, AccessShareLock);
	return result;
}

/* Does a column's default run a user's code?  A type's own default, where it has none, does not count. */
bool
bbf_shape_default_runs_users_code(Relation rel, AttrNumber attno)
{
	return TupleDescAttr(RelationGetDescr(rel), attno - 1)->atthasdef &&
		!bbf_shape_is_plain(build_column_default(rel, attno));
}

/* Is a column's default a call of now()? */
bool
bbf_shape_default_is_now(Relation rel, AttrNumber attno)
{
	Node	   *expr = build_column_default(rel, attno);

	return expr && IsA(expr, FuncExpr) && ((FuncExpr *) expr)->funcid == F_NOW;
}

/* Does the table have a constraint of that name? */
bool
bbf_shape_has_constraint(Oid relid, const char *name)
{
	return OidIsValid(get_relation_constraint_oid(relid, name, true));
}

/*
 * Are equal values of a column the same to every condition?  The default
 * btree operator class says so for its index; types without one, or with a
 * collation that takes different strings for equal, are not.
 */
bool
bbf_shape_equal_is_identical(Oid relid, AttrNumber attno)
{
	Oid			typid;
	int32		typmod;
	Oid			collation;
	TypeCacheEntry *type;

	get_atttypetypmodcoll(relid, attno, &typid, &typmod, &collation);
	type = lookup_type_cache(typid, TYPECACHE_BTREE_OPFAMILY | TYPECACHE_EQ_OPR);
	if (!OidIsValid(type->btree_opf) || type->eq_opr >= FirstGenbkiObjectId)
		return false;
	return bbf_value_equal_is_image(type->btree_opf, type->btree_opintype, collation);
}

/* Does the table have a row trigger that could change a row being updated? */
bool
bbf_shape_has_before_update(Oid relid)
{
	Relation	rel = table_open(relid, AccessShareLock);
	bool		result = rel->trigdesc && rel->trigdesc->trig_update_before_row;

	table_close(rel, AccessShareLock);
	return result;
}

/* Does a function set its own search path, or look nothing up by name? */
bool
bbf_shape_brings_search_path(Oid function)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Form_pg_proc form;
	Datum		config;
	bool		isnull;
	bool		result;

	if (!HeapTupleIsValid(tuple))
		return true;
	form = (Form_pg_proc) GETSTRUCT(tuple);
	config = SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_proconfig, &isnull);
	result = form->prolang == INTERNALlanguageId || form->prolang == ClanguageId;
	if (!result && !isnull)
	{
		Datum	   *settings;
		int			n;

		deconstruct_array(DatumGetArrayTypeP(config), TEXTOID, -1, false, TYPALIGN_INT,
						  &settings, NULL, &n);
		for (int i = 0; i < n; i++)
			result = result || strncmp(TextDatumGetCString(settings[i]), "search_path=", 12) == 0;
	}
	ReleaseSysCache(tuple);
	return result;
}

/* Is a function not the server's own?  As check_functions_in_node() wants it. */
static bool
is_users_function(Oid function, void *context)
{
	return function >= FirstNormalObjectId;
}

/*
 * Does an expression run nobody's code but the server's?  A function of the server's
 * may run a user's for a value of a user's type.
 */
bool
bbf_shape_is_plain(Node *expr)
{
	return !bbf_shape_runs_users_code(expr, NULL);
}

/* The same, as expression_tree_walker() wants it. */
bool
bbf_shape_runs_users_code(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (check_functions_in_node(node, is_users_function, NULL) ||
		(!IsA(node, List) && !bbf_value_type_is_plain(exprType(node))))
		return true;
	return expression_tree_walker(node, bbf_shape_runs_users_code, context);
}

/* Has an index expressions?  Not as the server gives them, which it evaluates as far as it can. */
bool
bbf_shape_index_has_expressions(Relation index)
{
	return !heap_attisnull(index->rd_indextuple, Anum_pg_index_indexprs, NULL);
}

/* Has it a condition? */
bool
bbf_shape_index_has_predicate(Relation index)
{
	return !heap_attisnull(index->rd_indextuple, Anum_pg_index_indpred, NULL);
}

/* An index's expressions or condition as they are stored, for the same reason; NULL: none. */
static Node *
index_tree(Relation index, AttrNumber attno)
{
	HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(RelationGetRelid(index)));
	Node	   *tree = NULL;
	bool		isnull;
	Datum		stored;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for index %u", RelationGetRelid(index));
	stored = SysCacheGetAttr(INDEXRELID, tuple, attno, &isnull);
	if (!isnull)
		tree = stringToNode(TextDatumGetCString(stored));
	ReleaseSysCache(tuple);
	return tree;
}

/* Do an index's expressions or its condition run a user's code? */
bool
bbf_shape_index_runs_users_code(Relation index)
{
	return !bbf_shape_is_plain(index_tree(index, Anum_pg_index_indexprs)) ||
		!bbf_shape_is_plain(index_tree(index, Anum_pg_index_indpred));
}

/* Does an index compare nothing but values of the server's own, by operators of its own? */
bool
bbf_shape_index_compares_plainly(Relation index)
{
	for (int i = 0; i < IndexRelationGetNumberOfKeyAttributes(index); i++)
	{
		if (index->rd_opfamily[i] >= FirstNormalObjectId || !bbf_value_type_is_plain(index->rd_opcintype[i]))
			return false;
	}
	/* of an array, a range or a row, the class is the server's, and the elements are not */
	for (int i = 0; i < RelationGetDescr(index)->natts; i++)
	{
		if (!bbf_value_type_is_plain(getBaseType(TupleDescAttr(RelationGetDescr(index), i)->atttypid)))
			return false;
	}
	return true;
}

/* Does an index run nothing but the server's own code? */
static bool
index_is_plain(Oid indexid)
{
	Relation	index = index_open(indexid, AccessShareLock);
	bool		plain = !bbf_shape_index_has_expressions(index) && !bbf_shape_index_runs_users_code(index) &&
	bbf_shape_index_compares_plainly(index);

	index_close(index, AccessShareLock);
	return plain;
}

/* Are all columns of the server's types? */
static bool
columns_are_plain(Relation rel)
{
	for (int i = 0; i < RelationGetNumberOfAttributes(rel); i++)
	{
		Form_pg_attribute column = TupleDescAttr(RelationGetDescr(rel), i);

		if (!column->attisdropped && !bbf_value_type_is_plain(column->atttypid))
			return false;
	}
	return true;
}

/*
 * A table's triggers, a copy; NULL if there are none.  A look-up in a catalog may
 * read what others have changed, and then frees the triggers that the relation
 * cache has, while the table is open and locked: a trigger can be made or dropped
 * under our lock.
 */
TriggerDesc *
bbf_shape_triggers(Relation rel)
{
	return CopyTriggerDesc(rel->trigdesc);
}

/* Is it one of our triggers, whose WHEN runs nothing but the server's code? */
static bool
is_our_plain_trigger(const Trigger *trigger)
{
	return get_func_namespace(trigger->tgfoid) == get_namespace_oid("bgw_backfill", true) &&
		(trigger->tgqual == NULL || bbf_shape_is_plain(stringToNode(trigger->tgqual)));
}

/*
 * Does a write to the table run nobody's code but the server's?  events: which
 * writes, as TRIGGER_TYPE_*.  It is no partition, whose bounds are looked at; it has
 * no rule, no trigger but foreign keys' (which compare columns) and our own, no
 * check, no generated column, no expression or operator class of a user's in an
 * index.
 */
bool
bbf_shape_write_is_plain(Oid relid, int16 events)
{
	Relation	rel = table_open(relid, AccessShareLock);
	TupleConstr *constr = RelationGetDescr(rel)->constr;
	TriggerDesc *triggers = bbf_shape_triggers(rel);
	bool		plain = !rel->rd_rel->relispartition && rel->rd_rules == NULL &&
	(constr == NULL || (constr->num_check == 0 && !constr->has_generated_stored));
	ListCell   *lc;

	for (int i = 0; triggers && i < triggers->numtriggers; i++)
	{
		Trigger    *trigger = &triggers->triggers[i];

		plain = plain && ((trigger->tgtype & events) == 0 ||
						  (trigger->tgisinternal ? columns_are_plain(rel) : is_our_plain_trigger(trigger)));
	}
	foreach(lc, RelationGetIndexList(rel))
		plain = plain && index_is_plain(lfirst_oid(lc));
	table_close(rel, AccessShareLock);
	return plain;
}

/*
 * Tell of the user's triggers that each row we write would fire.  They run with
 * our search path, "pg_catalog, pg_temp": what they name without a schema is not
 * found, unless their function sets a path of its own.
 */
void
bbf_shape_report_triggers(Relation rel, int elevel)
{
	TriggerDesc *triggers = bbf_shape_triggers(rel);

	for (int i = 0; triggers && i < triggers->numtriggers; i++)
	{
		Trigger    *trigger = &triggers->triggers[i];

		if (trigger->tgisinternal || !TRIGGER_FOR_UPDATE(trigger->tgtype) ||
			trigger->tgenabled == TRIGGER_DISABLED)
			continue;
		if (elevel == NOTICE && TRIGGER_FOR_ROW(trigger->tgtype))
			ereport(NOTICE,
					(errmsg("hazard: trigger \"%s\" of table \"%s\" fires for each row that is written",
							trigger->tgname, RelationGetRelationName(rel)),
					 errhint("If it raises an error on UPDATE, inserts into the target fail; use mode => 'sidecar' then.")));
		if (!bbf_shape_brings_search_path(trigger->tgfoid))
			ereport(elevel,
					(errmsg("trigger \"%s\" of table \"%s\" runs with search_path \"pg_catalog, pg_temp\" when bgw_backfill updates a row",
							trigger->tgname, RelationGetRelationName(rel)),
					 errdetail("If its function names anything without a schema, inserts into the target fail."),
					 errhint("Use ALTER FUNCTION %s SET search_path = ...",
							 format_procedure_qualified(trigger->tgfoid))));
	}
}

/* The number of rows, without counting them. */
double
bbf_shape_estimate_rows(Oid relid)
{
	Relation	rel = table_open(relid, AccessShareLock);
	BlockNumber pages;
	double		tuples;
	double		allvisfrac;

	estimate_rel_size(rel, NULL, &pages, &tuples, &allvisfrac);
	if (RelationGetNumberOfBlocks(rel) == 0)
		tuples = 0;				/* the planner takes no table for empty */
	table_close(rel, AccessShareLock);
	return tuples;
}
