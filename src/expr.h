/*
 * expr.h
 *		pending_where and match_where.
 */
#ifndef BBF_EXPR_H
#define BBF_EXPR_H

#include "nodes/bitmapset.h"
#include "nodes/pg_list.h"
#include "nodes/primnodes.h"

extern char *bbf_expr_canonical(const char *text, Oid relid, const char *argument,
								const char *forbidden_column);
extern char *bbf_expr_deparse(const char *canonical, Oid relid, const List *was, const char *alias);
extern bool bbf_expr_is_predicate(Oid index, Oid relid, const char *condition);
extern char *bbf_expr_renamed(const char *canonical, Oid relid, const List *was);
extern Bitmapset *bbf_expr_columns(const char *canonical, Oid relid, const List *was);
extern bool bbf_expr_runs_users_code(const char *canonical, Oid relid, const List *was);
extern Expr *bbf_expr_simple(const char *canonical, Oid relid, const List *was);

#endif							/* BBF_EXPR_H */
