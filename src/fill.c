/*
 * fill.c
 *		Phase fill: from wherever the source's rows are to where the mode's
 *		triggers keep them.
 */
#include "postgres.h"

#include "fill.h"

/* One batch of the fill; after the last one the job goes on to its index. */
BbfWalkStep
bbf_fill_step(BbfJob *job)
{
	BbfWalkStep step = bbf_walk_batch(job, false);

	if (step == BBF_WALK_DONE)
	{
		bbf_job_end_fill(job);
		bbf_job_enter_phase(job, BBF_PHASE_INDEX);
	}
	return step;
}
