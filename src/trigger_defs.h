/*
 * trigger_defs.h
 *		What the modes' triggers have in common.
 */
#ifndef BBF_TRIGGER_DEFS_H
#define BBF_TRIGGER_DEFS_H

#include "mode.h"
#include "nodes/bitmapset.h"

extern char *bbf_trigger_changed(Oid relid, Bitmapset *columns);
extern List *bbf_trigger_def(List *list, const BbfJob *job, Oid relid, const char *suffix, char enabled,
							 const char *event, const char *function, const char *more);
extern List *bbf_trigger_target_defs(const BbfJob *job, const BbfPair *pair);

#endif							/* BBF_TRIGGER_DEFS_H */
