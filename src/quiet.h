/*
 * quiet.h
 *		Is there anything for a live job to do?
 */
#ifndef BBF_QUIET_H
#define BBF_QUIET_H

#include "job.h"

extern char *bbf_quiet_mark(const BbfJob *job);
extern bool bbf_quiet_pass_by(const BbfJob *job, TimestampTz now);

#endif							/* BBF_QUIET_H */
