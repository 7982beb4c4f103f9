/*
 * change.h
 *		Changing what a live job counts as pending, and its handler.
 */
#ifndef BBF_CHANGE_H
#define BBF_CHANGE_H

#include "job.h"

extern void bbf_change_request(BbfJob *job, const char *setting, const char *value);
extern void bbf_change_handler(BbfJob *job, const char *value);
extern void bbf_change_anew(BbfJob *job);
extern void bbf_change_conditions(BbfJob *job);

#endif							/* BBF_CHANGE_H */
