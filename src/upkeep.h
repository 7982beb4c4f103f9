/*
 * upkeep.h
 *		Keeping what was handed out from growing, and from being forgotten.
 */
#ifndef BBF_UPKEEP_H
#define BBF_UPKEEP_H

#include "job.h"

extern bool bbf_upkeep_claims(BbfJob *job, int rows);
extern bool bbf_upkeep_attempts(BbfJob *job, int rows);
extern bool bbf_upkeep_passed(BbfJob *job, int rows);

#endif							/* BBF_UPKEEP_H */
