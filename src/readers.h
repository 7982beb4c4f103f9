/*
 * readers.h
 *		Other roles that read the pending rows.
 */
#ifndef BBF_READERS_H
#define BBF_READERS_H

#include "job.h"
#include "pair.h"

extern void bbf_readers_grant(const char *what, const BbfPair *pair);
extern void bbf_readers_sync(const BbfPair *pair, Oid table, const char *table_sql);
extern void bbf_readers_tell(const BbfJob *job, const BbfPair *pair);
extern void bbf_readers_warn(const BbfJob *job, const char *mode);

#endif							/* BBF_READERS_H */
