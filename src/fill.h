/*
 * fill.h
 *		Phase fill.
 */
#ifndef BBF_FILL_H
#define BBF_FILL_H

#include "job.h"
#include "walk.h"

extern BbfWalkStep bbf_fill_step(BbfJob *job);
extern bool bbf_fill_finish(BbfJob *job);

#endif							/* BBF_FILL_H */
