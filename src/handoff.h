/*
 * handoff.h
 *		The handler of a job: what it must be, and calling it.
 */
#ifndef BBF_HANDOFF_H
#define BBF_HANDOFF_H

#include "pair.h"

extern char *bbf_handoff_check(Oid function, const BbfPair *pair);
extern TimestampTz bbf_handoff_run(const char *job_name);
extern void bbf_handoff_forget_waits(const char *job_name);

#endif							/* BBF_HANDOFF_H */
