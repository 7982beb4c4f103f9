/*
 * walk.h
 *		Walking a source in key order, a batch at a time.
 */
#ifndef BBF_WALK_H
#define BBF_WALK_H

#include "job.h"

typedef enum BbfWalkStep
{
	BBF_WALK_MORE,				/* the walk goes on */
	BBF_WALK_SKIPPED,			/* at the end, but rows are left that were locked */
	BBF_WALK_DONE
} BbfWalkStep;

extern BbfWalkStep bbf_walk_batch(BbfJob *job, bool sweep);
extern char *bbf_walk_pass_batch(BbfJob *job, const char *cursor, const char *end);
extern bool bbf_walk_skipped(BbfJob *job, bool sweep, bool wait);

#endif							/* BBF_WALK_H */
