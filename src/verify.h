/*
 * verify.h
 *		Phase verify, and the parity sweeps of phase live.
 */
#ifndef BBF_VERIFY_H
#define BBF_VERIFY_H

#include "job.h"
#include "walk.h"

extern BbfWalkStep bbf_verify_step(BbfJob *job);

#endif							/* BBF_VERIFY_H */
