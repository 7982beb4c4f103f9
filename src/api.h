/*
 * api.h
 *		What the SQL functions have in common.
 */
#ifndef BBF_API_H
#define BBF_API_H

#include "compat.h"
#include "job.h"

extern void bbf_api_refuse_in_recovery(const char *function);
BBF_NORETURN extern void bbf_api_no_such_job(const char *name);
extern BbfJob *bbf_api_own_job(const char *name);

#endif							/* BBF_API_H */
