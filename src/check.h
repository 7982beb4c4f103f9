/*
 * check.h
 *		What track() checks before it writes a job.
 */
#ifndef BBF_CHECK_H
#define BBF_CHECK_H

#include "job.h"

extern void bbf_check_job(BbfJob *job);
extern void bbf_check_successor(BbfJob *job, bool shares_table);
extern void bbf_check_report(const BbfJob *job);

#endif							/* BBF_CHECK_H */
