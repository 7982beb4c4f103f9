/*
 * answered.h
 *		Claimed rows whose target row has come, and is gone again.
 */
#ifndef BBF_ANSWERED_H
#define BBF_ANSWERED_H

#include "lease.h"

extern void bbf_answered_note(const char *job, char *const *keys, int n);
extern void bbf_answered_drop(const char *job, BbfClaim *claims, int nclaims);
extern void bbf_answered_forget(const char *job);

#endif							/* BBF_ANSWERED_H */
