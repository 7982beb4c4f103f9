/*
 * leftovers.h
 *		What an earlier job of the same name has left beside the same source.
 */
#ifndef BBF_LEFTOVERS_H
#define BBF_LEFTOVERS_H

#include "objects.h"
#include "pair.h"

extern char *bbf_leftover_mark(const BbfJob *job, BbfObject object);
extern bool bbf_leftover_is(const BbfJob *job, BbfObject object, Oid owner);
extern void bbf_leftovers_tell(const BbfJob *job, Oid owner);
extern void bbf_leftovers_drop_misfits(const BbfJob *job, const BbfPair *pair);
extern void bbf_leftovers_drop_unused(const BbfJob *job);

#endif							/* BBF_LEFTOVERS_H */
