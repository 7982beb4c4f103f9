/*
 * dequeue.h
 *		Removing the keys of new target rows without a statement.
 */
#ifndef BBF_DEQUEUE_H
#define BBF_DEQUEUE_H

#include "served.h"

extern void bbf_dequeue_prepare(BbfServed *served, const BbfPair *pair);
extern bool bbf_dequeue_keys(const BbfServed *served, const Datum *keys, int n);

#endif							/* BBF_DEQUEUE_H */
