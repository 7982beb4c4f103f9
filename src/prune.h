/*
 * prune.h
 *		Taking rows out of a table of pending keys that are not pending any more.
 */
#ifndef BBF_PRUNE_H
#define BBF_PRUNE_H

#include "pair.h"

extern int64 bbf_prune_range(BbfJob *job, const BbfPair *pair, const Datum *low, const Datum *high);
extern bool bbf_prune_batch(BbfJob *job, int rows);

#endif							/* BBF_PRUNE_H */
