/*
 * index.h
 *		Phase index.
 */
#ifndef BBF_INDEX_H
#define BBF_INDEX_H

#include "job.h"

extern bool bbf_index_is_there(const BbfJob *job);
extern bool bbf_index_build(const char *job_name);

#endif							/* BBF_INDEX_H */
