/*
 * watermark.h
 *		How far the newest keys have been examined.
 */
#ifndef BBF_WATERMARK_H
#define BBF_WATERMARK_H

#include "job.h"
#include "pair.h"

extern void bbf_watermark_begin_walk(BbfJob *job);
extern char *bbf_watermark_highest(const BbfPair *pair);
extern void bbf_watermark_take_over(BbfJob *job, const char *mark);
extern void bbf_watermark_end_walk(BbfJob *job);
extern bool bbf_watermark_is_due(const BbfJob *job);
extern void bbf_watermark_step(BbfJob *job);

#endif							/* BBF_WATERMARK_H */
