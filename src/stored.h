/*
 * stored.h
 *		Keys and groups that a job's state holds as text, and what they rest on.
 */
#ifndef BBF_STORED_H
#define BBF_STORED_H

#include "pair.h"

extern bool bbf_stored_check(BbfJob *job, const BbfPair *pair);
extern bool bbf_stored_forget_unreadable(const char *job_name);

#endif							/* BBF_STORED_H */
