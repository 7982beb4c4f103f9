/*
 * expr.c
 *		pending_where and match_where: from a user's text to an expression.
 *
 * A condition is never pasted: it is parsed as one expression, checked as the
 * predicate of a partial index is, and written out again by the server with
 * every name qualified.  That text is what a job keeps, so it means the same
 * whatever the search path of a worker, a writer or a reader.
 *
 * Parsing and planning a condition can evaluate functions, casts and domain
 * checks.  They run as the table's owner, restricted, whoever is the caller
 * (usercontext.c).  A user's text is parsed under his own path; all else is done under
 * the pinned one.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_index.h"
#include "catalog/pg_type.h"
#include "columns.h"
#include "compat.h"
#include "expr.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parse_coerce.h"
#include "parser/parse_collate.h"
#include "parser/parse_expr.h"
#include "parser/parse_relation.h"
#include "parser/parser.h"
#include "session.h"
#include "shape.h"
#include "usercontext.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/ruleutils.h"
#include "utils/syscache.h"

/*
 * Parse a text as nothing but one expression.  The grammar's entry for an
 * expression takes what may follow one in a SELECT as well, so everything but
 * the expression has to be absent.
 */
static Node *
raw_expression(const char *text, const char *argument)
{
	List	   *parsed = raw_parser(text, RAW_PARSE_PLPGSQL_EXPR);
	SelectStmt *select = (SelectStmt *) linitial_node(RawStmt, parsed)->stmt;
	ResTarget  *target;
	ColumnRef  *column;

	if (list_length(parsed) != 1 || !IsA(select, SelectStmt) ||
		list_length(select->targetList) != 1 ||
		select->distinctClause || select->intoClause || select->fromClause ||
		select->whereClause || select->groupClause || select->havingClause ||
		select->windowClause || select->valuesLists || select->sortClause ||
		select->limitOffset || select->limitCount || select->lockingClause ||
		select->withClause || select->op != SETOP_NONE ||
		(target = linitial_node(ResTarget, select->targetList))->name != NULL ||
		target->indirection != NIL ||
		(IsA(target->val, ColumnRef) &&
		 (column = (ColumnRef *) target->val, IsA(llast(column->fields), A_Star))))
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("%s is not a single expression", argument),
				 errdetail("The text is \"%s\".", text),
				 errhint("Give one condition as it could stand in a WHERE clause.")));
	return target->val;
}

/* what an error while parsing a condition is about */
typedef struct ParseContext
{
	const char *text;
	const char *what;
} ParseContext;

/* An error's position is one in the condition, not in the caller's statement. */
static void
parse_error_callback(void *arg)
{
	ParseContext *context = arg;
	int			position = geterrposition();

	if (position > 0)
	{
		errposition(0);
		internalerrposition(position);
		internalerrquery(context->text);
	}
	errcontext("%s", context->what);
}

/* The columns of a relation, those that were renamed by the name that they had. */
static Alias *
names_then(Relation rel, const List *was)
{
	List	   *names = NIL;
	ListCell   *lc;

	for (int i = 0; i < RelationGetDescr(rel)->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel), i);
		const char *name = bbf_columns_was(was, att->attnum);

		if (att->attisdropped)
			continue;
		if (name == NULL)
		{
			name = NameStr(att->attname);
			foreach(lc, was)
			{
				/* it has come to this name since */
				if (strcmp(((const BbfColumn *) lfirst(lc))->name, name) == 0)
					name = "";
			}
		}
		names = lappend(names, makeString(pstrdup(name)));
	}
	return makeAlias(RelationGetRelationName(rel), names);
}

/* Parse a condition over the columns of one relation; was: those that were renamed since it was written. */
static Node *
analyze(const char *text, Relation rel, const char *argument, const List *was)
{
	ParseState *pstate = make_parsestate(NULL);
	ParseNamespaceItem *item;
	ErrorContextCallback errcallback;
	Node	   *expr;
	ParseContext context = {text,
	psprintf("%s of a job on table \"%s\"", argument, RelationGetRelationName(rel))};

	errcallback.callback = parse_error_callback;
	errcallback.arg = &context;
	errcallback.previous = error_context_stack;
	error_context_stack = &errcallback;

	pstate->p_sourcetext = text;
	item = addRangeTableEntryForRelation(pstate, rel, AccessShareLock, was ? names_then(rel, was) : NULL, false, true);
	addNSItemToQuery(pstate, item, true, true, true);
	expr = transformExpr(pstate, raw_expression(text, argument), EXPR_KIND_INDEX_PREDICATE);
	expr = coerce_to_boolean(pstate, expr, argument);
	assign_expr_collations(pstate, expr);
	free_parsestate(pstate);

	error_context_stack = errcallback.previous;
	return expr;
}

static bool
is_temporary_function(Oid function, void *context)
{
	return isAnyTempNamespace(get_func_namespace(function));
}

/* Does an expression use a type or a function of somebody's temporary schema? */
static bool
uses_temporary_objects(Node *node, void *context)
{
	HeapTuple	tuple;
	Oid			schema = InvalidOid;

	if (node == NULL)
		return false;
	if (!IsA(node, List))
	{
		tuple = SearchSysCache1(TYPEOID, ObjectIdGetDatum(exprType(node)));
		if (HeapTupleIsValid(tuple))
		{
			schema = ((Form_pg_type) GETSTRUCT(tuple))->typnamespace;
			ReleaseSysCache(tuple);
		}
		if (isAnyTempNamespace(schema) || check_functions_in_node(node, is_temporary_function, NULL))
			return true;
	}
	return expression_tree_walker(node, uses_temporary_objects, context);
}

/*
 * Check a user's condition on relid and return its canonical text.  argument:
 * its name, for messages; forbidden_column: a column that it may not use, or
 * NULL.
 */
char *
bbf_expr_canonical(const char *text, Oid relid, const char *argument,
				   const char *forbidden_column)
{
	Relation	rel = table_open(relid, AccessShareLock);
	BbfUserContext before;
	Node	   *expr;
	Bitmapset  *columns = NULL;
	int			column = -1;
	char	   *result;

	bbf_usercontext_begin(rel->rd_rel->relowner, false, &before);
	expr = analyze(text, rel, argument, NIL);
	bbf_session_pin_text();
	/* before the planner inlines a function's body, and after it sees defaults */
	if (contain_mutable_functions(expr) ||
		contain_mutable_functions((Node *) expression_planner((Expr *) copyObject(expr))))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_OBJECT_DEFINITION),
				 errmsg("functions in %s must be marked IMMUTABLE", argument),
				 errdetail("The condition becomes part of an index and must not change its value by itself."),
				 errhint("Use only columns of \"%s\", constants and immutable functions.",
						 RelationGetRelationName(rel))));

	if (uses_temporary_objects(expr, NULL))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_OBJECT_DEFINITION),
				 errmsg("%s must not use temporary objects", argument),
				 errdetail("They are another session's to the worker, the writers and the readers.")));

	pull_varattnos(expr, 1, &columns);
	while ((column = bms_next_member(columns, column)) >= 0)
	{
		AttrNumber	attno = column + FirstLowInvalidHeapAttributeNumber;

		if (attno <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("%s must not use system columns or whole rows", argument),
					 errhint("Name the columns that decide.")));
		if (forbidden_column &&
			strcmp(NameStr(*attnumAttName(rel, attno)), forbidden_column) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("%s must not use the flag column \"%s\"", argument, forbidden_column),
					 errdetail("The view of pending rows adds the flag itself.")));
	}

	bbf_session_pin_text();		/* once more: what was evaluated may have set anything */
	result = deparse_expression(expr, deparse_context_for(RelationGetRelationName(rel), relid),
								false, false);
	bbf_usercontext_end(&before);
	table_close(rel, AccessShareLock);
	return result;
}

/* Is a condition, with names of now, the predicate of a partial index, as it was written? */
bool
bbf_expr_is_predicate(Oid index, Oid relid, const char *condition)
{
	Relation	rel = table_open(relid, AccessShareLock);
	HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(index));
	BbfUserContext before;
	Datum		predicate;
	bool		isnull;
	bool		result;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for index %u", index);
	predicate = SysCacheGetAttr(INDEXRELID, tuple, Anum_pg_index_indpred, &isnull);
	bbf_usercontext_begin(rel->rd_rel->relowner, true, &before);
	bbf_session_pin_text();
	result = !isnull && equal(stringToNode(TextDatumGetCString(predicate)), analyze(condition, rel, "condition", NIL));
	bbf_usercontext_end(&before);
	ReleaseSysCache(tuple);
	table_close(rel, NoLock);
	return result;
}

/* A canonical condition with the names that its columns have now, each prefixed with the alias, if there is one. */
static char *
write_out(const char *canonical, Oid relid, const List *was, const char *alias)
{
	Relation	rel = table_open(relid, AccessShareLock);
	BbfUserContext before;
	Node	   *expr;
	char	   *result;

	bbf_usercontext_begin(rel->rd_rel->relowner, true, &before);
	bbf_session_pin_text();
	expr = analyze(canonical, rel, "condition", was);
	bbf_session_pin_text();		/* once more: what was evaluated may have set anything */
	result = deparse_expression(expr, deparse_context_for(alias ? alias : RelationGetRelationName(rel), relid),
								alias != NULL, false);
	bbf_usercontext_end(&before);
	table_close(rel, AccessShareLock);
	return result;
}

/* A canonical condition with the names that its columns have now.  NULL gives NULL. */
char *
bbf_expr_renamed(const char *canonical, Oid relid, const List *was)
{
	if (canonical == NULL || was == NIL)
		return unconstify(char *, canonical);
	return write_out(canonical, relid, was, NULL);
}

/*
 * A canonical condition for use in a query: in parentheses, each column
 * prefixed with the alias.  NULL gives NULL.
 */
char *
bbf_expr_deparse(const char *canonical, Oid relid, const List *was, const char *alias)
{
	return canonical ? psprintf("(%s)", write_out(canonical, relid, was, alias)) : NULL;
}

/* The columns that a canonical condition uses, by attribute number; none if it is NULL. */
Bitmapset *
bbf_expr_columns(const char *canonical, Oid relid, const List *was)
{
	Relation	rel;
	BbfUserContext before;
	Bitmapset  *offset_columns = NULL;
	Bitmapset  *result = NULL;
	int			column = -1;

	if (canonical == NULL)
		return NULL;
	rel = table_open(relid, AccessShareLock);
	bbf_usercontext_begin(rel->rd_rel->relowner, true, &before);
	bbf_session_pin_text();
	pull_varattnos(analyze(canonical, rel, "condition", was), 1, &offset_columns);
	bbf_usercontext_end(&before);
	while ((column = bms_next_member(offset_columns, column)) >= 0)
		result = bms_add_member(result, column + FirstLowInvalidHeapAttributeNumber);
	table_close(rel, AccessShareLock);
	return result;
}

/* Does a canonical condition run a user's code when it is evaluated? */
bool
bbf_expr_runs_users_code(const char *canonical, Oid relid, const List *was)
{
	Relation	rel;
	BbfUserContext before;
	bool		result;

	if (canonical == NULL)
		return false;
	rel = table_open(relid, AccessShareLock);
	bbf_usercontext_begin(rel->rd_rel->relowner, true, &before);
	bbf_session_pin_text();
	result = !bbf_shape_is_plain(analyze(canonical, rel, "condition", was));
	bbf_usercontext_end(&before);
	table_close(rel, AccessShareLock);
	return result;
}

/* Has an expression more than stored columns, constants and the server's own functions of them? */
static bool
is_not_simple(Node *node, void *context)
{
	Relation	rel = context;

	if (node == NULL)
		return false;
	switch (nodeTag(node))
	{
		case T_Var:
			if (((Var *) node)->varattno <= 0 ||
				bbf_is_virtual(TupleDescAttr(RelationGetDescr(rel), ((Var *) node)->varattno - 1)))
				return true;
			break;
		case T_NullTest:
			if (((NullTest *) node)->argisrow)
				return true;
			break;
		case T_List:
		case T_Const:
		case T_FuncExpr:
		case T_OpExpr:
		case T_DistinctExpr:
		case T_ScalarArrayOpExpr:
		case T_BoolExpr:
		case T_BooleanTest:
		case T_RelabelType:
		case T_CoalesceExpr:
			break;
		default:
			return true;
	}
	return expression_tree_walker(node, is_not_simple, context);
}

/*
 * A canonical condition, planned, if it can be kept and evaluated from one
 * transaction to the next with a row at hand, whoever is the user and whatever
 * are his settings; NULL if not.
 */
Expr *
bbf_expr_simple(const char *canonical, Oid relid, const List *was)
{
	Relation	rel = table_open(relid, AccessShareLock);
	BbfUserContext before;
	Expr	   *expr;

	bbf_usercontext_begin(rel->rd_rel->relowner, true, &before);
	bbf_session_pin_text();
	expr = expression_planner((Expr *) analyze(canonical, rel, "condition", was));
	bbf_usercontext_end(&before);
	if (is_not_simple((Node *) expr, rel) || !bbf_shape_is_plain((Node *) expr))
		expr = NULL;
	table_close(rel, AccessShareLock);
	return expr;
}
