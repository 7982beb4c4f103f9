/*
 * verify.c
 *		Phase verify, and the parity sweeps of phase live: the same walk as the
 *		fill, comparing with the truth in both directions, under the same locks,
 *		repairing what it finds and counting it.
 *
 * Only a completed sweep makes a job live.  What it says is true of its
 * beginning, so that is what verified_at shows.
 */
#include "postgres.h"

#include "verify.h"
#include "watermark.h"

/* One batch of a sweep. */
BbfWalkStep
bbf_verify_step(BbfJob *job)
{
	BbfWalkStep step = bbf_walk_batch(job, true);

	if (step == BBF_WALK_DONE)
	{
		bbf_watermark_end_walk(job);
		bbf_job_end_sweep(job);
		if (job->phase == BBF_PHASE_VERIFY)
			bbf_job_enter_phase(job, BBF_PHASE_LIVE);
	}
	return step;
}
