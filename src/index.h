/*
 * index.h
 *		Phase index.
 */
#ifndef BBF_INDEX_H
#define BBF_INDEX_H

#include "job.h"
#include "pair.h"

extern bool bbf_index_is_there(const BbfJob *job);
extern void bbf_index_drop(const BbfJob *job);
extern bool bbf_index_build(const char *job_name);
extern int64 bbf_index_estimate(const BbfJob *job, const BbfPair *pair);

#endif							/* BBF_INDEX_H */
