/*
 * throttle.h
 *		May a job go on, and how long should it wait?
 */
#ifndef BBF_THROTTLE_H
#define BBF_THROTTLE_H

#include "job.h"

extern int64 bbf_throttle_batch_delay(const BbfJob *job);
extern int64 bbf_throttle_retry_delay(int retries);
extern int32 bbf_throttle_batch_size(const BbfJob *job);
extern int64 bbf_throttle_rest(double took_ms);
extern int	bbf_throttle_share(const BbfJob *job, int rows);
extern int32 bbf_throttle_grown_size(const BbfJob *job, int32 size);

#endif							/* BBF_THROTTLE_H */
