/*
 * live.h
 *		Phase live.
 */
#ifndef BBF_LIVE_H
#define BBF_LIVE_H

#include "job.h"

extern bool bbf_live_step(BbfJob *job, TimestampTz *due);

#endif							/* BBF_LIVE_H */
