/*
 * listed.h
 *		Reading the rows that can be handed out, in order, as their owner.
 */
#ifndef BBF_LISTED_H
#define BBF_LISTED_H

#include "executor/spi.h"
#include "mode.h"
#include "usercontext.h"

/* where a look at the pending rows begins */
typedef enum BbfListedFrom
{
	BBF_LISTED_FIRST_GROUP,		/* with the first group there is */
	BBF_LISTED_NEXT_GROUP,		/* with the group after the given one */
	BBF_LISTED_GROUP,			/* in the given group */
	BBF_LISTED_GROUP_AFTER,		/* in it, after the given key */
	BBF_LISTED_NULLS,			/* in the group of the nulls, or where there are no groups */
	BBF_LISTED_NULLS_AFTER,
	BBF_LISTED_KINDS
} BbfListedFrom;

/* what the statements of one call share */
typedef struct BbfListed
{
	const BbfJob *job;
	const BbfPair *pair;
	const BbfMode *mode;
	char	   *looks[BBF_LISTED_KINDS];	/* SQL, written when first needed */
	BbfUserContext before;
} BbfListed;

extern void bbf_listed_begin(BbfListed *listed, const BbfJob *job, const BbfPair *pair);
extern void bbf_listed_end(BbfListed *listed);
extern uint64 bbf_listed_read(BbfListed *listed, BbfListedFrom from, Datum group, Datum key, int64 limit);
extern bool *bbf_listed_among(BbfListed *listed, const Datum *keys, int n, bool only_matches);
extern int64 bbf_listed_prune(BbfListed *listed, const Datum *keys, int n);

#endif							/* BBF_LISTED_H */
