/*
 * expr.c
 *		pending_where and match_where: from a user's text to an expression.
 *
 * A condition is never pasted: it is parsed as one expression, checked as the
 * predicate of a partial index is, and written out again by the server with
 * every name qualified.  That text is what a job keeps, so it means the same
 * whatever the search path of a worker, a writer or a reader.
 */
#include "postgres.h"

#include "access/sysattr.h"
#include "access/table.h"
#include "expr.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parse_coerce.h"
#include "parser/parse_collate.h"
#include "parser/parse_expr.h"
#include "parser/parse_relation.h"
#include "parser/parser.h"
#include "txn.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/ruleutils.h"

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

/* Parse a condition over the columns of one relation. */
static Node *
analyze(const char *text, Relation rel, const char *argument)
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
	item = addRangeTableEntryForRelation(pstate, rel, AccessShareLock, NULL, false, true);
	addNSItemToQuery(pstate, item, true, true, true);
	expr = transformExpr(pstate, raw_expression(text, argument), EXPR_KIND_INDEX_PREDICATE);
	expr = coerce_to_boolean(pstate, expr, argument);
	assign_expr_collations(pstate, expr);
	free_parsestate(pstate);

	error_context_stack = errcallback.previous;
	return expr;
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
	Node	   *expr = analyze(text, rel, argument);
	Bitmapset  *columns = NULL;
	int			column = -1;
	int			nestlevel;
	char	   *result;

	/* before the planner inlines a function's body, and after it sees defaults */
	if (contain_mutable_functions(expr) ||
		contain_mutable_functions((Node *) expression_planner((Expr *) copyObject(expr))))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_OBJECT_DEFINITION),
				 errmsg("functions in %s must be marked IMMUTABLE", argument),
				 errdetail("The condition becomes part of an index and must not change its value by itself."),
				 errhint("Use only columns of \"%s\", constants and immutable functions.",
						 RelationGetRelationName(rel))));

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

	nestlevel = bbf_txn_pin();
	result = deparse_expression(expr, deparse_context_for(RelationGetRelationName(rel), relid),
								false, false);
	bbf_txn_unpin(nestlevel);
	table_close(rel, AccessShareLock);
	return result;
}

/* Parse a canonical text again. */
static Node *
reparse(const char *canonical, Relation rel)
{
	int			nestlevel = bbf_txn_pin();
	Node	   *expr = analyze(canonical, rel, "condition");

	bbf_txn_unpin(nestlevel);
	return expr;
}

/*
 * A canonical condition for use in a query: in parentheses, each column
 * prefixed with the alias.  NULL gives NULL.
 */
char *
bbf_expr_deparse(const char *canonical, Oid relid, const char *alias)
{
	Relation	rel;
	Node	   *expr;
	char	   *result;
	int			nestlevel;

	if (canonical == NULL)
		return NULL;
	rel = table_open(relid, AccessShareLock);
	expr = reparse(canonical, rel);
	nestlevel = bbf_txn_pin();
	result = psprintf("(%s)", deparse_expression(expr, deparse_context_for(alias, relid), true, false));
	bbf_txn_unpin(nestlevel);
	table_close(rel, AccessShareLock);
	return result;
}

/* The columns that a canonical condition uses, by attribute number. */
Bitmapset *
bbf_expr_columns(const char *canonical, Oid relid)
{
	Relation	rel;
	Bitmapset  *offset_columns = NULL;
	Bitmapset  *result = NULL;
	int			column = -1;

	if (canonical == NULL)
		return NULL;
	rel = table_open(relid, AccessShareLock);
	pull_varattnos(reparse(canonical, rel), 1, &offset_columns);
	while ((column = bms_next_member(offset_columns, column)) >= 0)
		result = bms_add_member(result, column + FirstLowInvalidHeapAttributeNumber);
	table_close(rel, AccessShareLock);
	return result;
}
