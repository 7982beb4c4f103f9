/*
 * shape.h
 *		Questions to the catalogs about one table.
 */
#ifndef BBF_SHAPE_H
#define BBF_SHAPE_H

#include "nodes/nodes.h"
#include "utils/rel.h"
#include "utils/reltrigger.h"

extern void bbf_shape_check_table(Relation rel, const char *what);
extern bool bbf_shape_has_row_security(Oid relid);
extern void bbf_shape_check_persistence(Relation source, Relation target);
extern void bbf_shape_check_column_can_be_added(Relation rel);
extern bool bbf_shape_publishes_without_identity(Relation rel);
extern bool bbf_shape_default_is_false(Oid relid, AttrNumber attno);
extern bool bbf_shape_default_runs_users_code(Relation rel, AttrNumber attno);
extern bool bbf_shape_default_is_now(Relation rel, AttrNumber attno);
extern bool bbf_shape_has_constraint(Oid relid, const char *name);
extern bool bbf_shape_equal_is_identical(Oid relid, AttrNumber attno);
extern bool bbf_shape_has_before_update(Oid relid);
extern bool bbf_shape_is_plain(Node *expr);
extern bool bbf_shape_runs_users_code(Node *node, void *context);
extern bool bbf_shape_index_runs_users_code(Relation index);
extern bool bbf_shape_index_has_expressions(Relation index);
extern bool bbf_shape_index_has_predicate(Relation index);
extern bool bbf_shape_index_compares_plainly(Relation index);
extern TriggerDesc *bbf_shape_triggers(Relation rel);
extern bool bbf_shape_write_is_plain(Oid relid, int16 events);
extern bool bbf_shape_brings_search_path(Oid function);
extern void bbf_shape_report_triggers(Relation rel, int elevel);
extern double bbf_shape_estimate_rows(Oid relid);

#endif							/* BBF_SHAPE_H */
