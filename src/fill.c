/*
 * fill.c
 *		Phase fill: from wherever the source's rows are to where the mode's
 *		triggers keep them.
 */
#include "postgres.h"

#include "fill.h"
#include "mode.h"
#include "shmem.h"
#include "txn.h"

/* One batch of the fill; after the last one the job goes on to its index. */
BbfWalkStep
bbf_fill_step(BbfJob *job)
{
	BbfWalkStep step = bbf_walk_batch(job, false);

	if (step == BBF_WALK_DONE)
		bbf_job_enter_phase(job, BBF_PHASE_INDEX);
	return step;
}

/*
 * What the mode has to do once after the fill, in transactions of its own,
 * called outside any; may be called again.  False: the fill has to be done once
 * more, and the job is back in it.
 */
bool
bbf_fill_finish(BbfJob *job)
{
	const BbfMode *mode = bbf_mode_lookup(job->mode);
	BbfJob	   *now;
	bool		done;

	if (mode->finish_fill == NULL)
		return true;
	/* it may read the whole source: pause() may cancel it */
	bbf_shmem_set_statement(BBF_STATEMENT_LONG);
	if (!bbf_txn_begin())
		return true;
	now = bbf_job_load(job->name);
	bbf_txn_commit();
	if (now == NULL || now->paused || now->uninstall)
		return true;			/* nothing more is done now */
	done = mode->finish_fill(job);
	bbf_shmem_set_statement(BBF_STATEMENT_PLAIN);
	if (!done && bbf_txn_begin())
	{
		bbf_job_restart_fill(job->name);
		bbf_txn_commit();
	}
	return done;
}
