/*
 * mode_column.h
 *		Mode "column": between its two files.
 */
#ifndef BBF_MODE_COLUMN_H
#define BBF_MODE_COLUMN_H

#include "catalog/pg_attribute.h"
#include "mode.h"

extern bool bbf_column_flag_attribute(const BbfJob *job, Oid source, FormData_pg_attribute *att);
extern const char *bbf_column_flag(const BbfJob *job);

extern void bbf_column_check(const BbfJob *job, Relation source, Relation target);
extern char *bbf_column_describe(const BbfJob *job, Relation source);
extern BbfMissing bbf_column_missing(const BbfJob *job, const BbfPair *pair, char **what);
extern List *bbf_column_triggers(const BbfJob *job, const BbfPair *pair);
extern LOCKMODE bbf_column_source_lock(const BbfJob *job, const BbfPair *pair);
extern void bbf_column_install(BbfJob *job, const BbfPair *pair);
extern void bbf_column_uninstall(const BbfJob *job, const BbfPair *pair);
extern bool bbf_column_finish_fill(BbfJob *job);

#endif							/* BBF_MODE_COLUMN_H */
