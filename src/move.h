/*
 * move.h
 *		Moving a live job to another mode.
 */
#ifndef BBF_MOVE_H
#define BBF_MOVE_H

#include "job.h"

extern void bbf_move_request(BbfJob *job, const char *mode);
extern bool bbf_move_finish(BbfJob *successor);

#endif							/* BBF_MOVE_H */
