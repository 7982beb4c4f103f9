/*
 * enqueue.h
 *		Adding the key of a new source row to the table of pending keys.
 */
#ifndef BBF_ENQUEUE_H
#define BBF_ENQUEUE_H

#include "executor/tuptable.h"
#include "served.h"

extern bool bbf_enqueue_is_possible(const BbfJob *job, const BbfPair *pair);
extern void bbf_enqueue_prepare(BbfServed *served, const BbfJob *job, const BbfPair *pair);
extern bool bbf_enqueue_row(BbfServed *served, TupleTableSlot *row);
extern void bbf_enqueue_note_change(BbfServed *served);

#endif							/* BBF_ENQUEUE_H */
