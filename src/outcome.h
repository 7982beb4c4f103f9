/*
 * outcome.h
 *		What becomes of a job after a step that did not go well.
 */
#ifndef BBF_OUTCOME_H
#define BBF_OUTCOME_H

#include "job.h"

extern void bbf_outcome_cut_short(const BbfJob *before, BbfStage stage, const ErrorData *edata, bool timed_out);
extern void bbf_outcome_note_way(ErrorData *edata);
extern TimestampTz bbf_outcome_of_error(const char *job_name, ErrorData *edata, bool *recorded);
extern void bbf_outcome_wait(const char *job_name, const char *waiting_for, int64 delay_ms);

#endif							/* BBF_OUTCOME_H */
