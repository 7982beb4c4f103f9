/*
 * attempt.h
 *		Rows that have been handed out and came back.
 */
#ifndef BBF_ATTEMPT_H
#define BBF_ATTEMPT_H

#include "lease.h"
#include "pair.h"

/* why a row is, or is not, to be handed out */
typedef enum BbfStanding
{
	BBF_FRESH,					/* never came back */
	BBF_DUE,
	BBF_NOT_YET,
	BBF_QUARANTINED
} BbfStanding;

extern bool bbf_attempt_any(const char *job);
extern BbfStanding *bbf_attempt_find(const char *job, char *const *keys, int n, int32 *attempts);
extern bool bbf_attempt_try_lock(const char *job, const BbfLeased *rows, int n);
extern void bbf_attempt_failed(const char *job, const BbfLeased *rows, int n, const char *error, int max_attempts);
extern void bbf_attempt_returned(const char *job, const BbfLeased *rows, int n);
extern int	bbf_attempt_due(const char *job, const char *group, const BbfLeases *leases, int limit, BbfLeased *rows);
extern void bbf_attempt_forget(const char *job, char *const *keys, int n);
extern void bbf_attempt_remember(const char *job, const BbfLeased *rows, int n);
extern int64 bbf_attempt_requeue(const char *job, Datum keys);

extern char *bbf_attempt_passed_upto(const char *job, const BbfPair *pair, const char *group, Datum *upto);
extern void bbf_attempt_pass(const char *job, const char *group, const char *key);
extern bool bbf_attempt_next_passed(const char *job, double seconds, char **group, char **looked_at);
extern void bbf_attempt_looked_below(const char *job, const char *group, const char *key, const char *looked_at);

#endif							/* BBF_ATTEMPT_H */
