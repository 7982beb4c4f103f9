/*
 * readers.h
 *		Other roles that read the pending rows.
 */
#ifndef BBF_READERS_H
#define BBF_READERS_H

#include "job.h"
#include "pair.h"

extern void bbf_readers_grant(const char *what, const BbfPair *pair, bool of_table);
extern void bbf_readers_warn(const BbfJob *job, const char *mode);

#endif							/* BBF_READERS_H */
