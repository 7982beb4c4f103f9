/*
 * throttle.c
 *		May a job go on, and how long should it wait?  All pacing is decided
 *		here; nothing here waits.
 */
#include "postgres.h"

#include "common/pg_prng.h"
#include "throttle.h"

#define MAX_RETRY_DELAY_MS	(300 * 1000)
#define MIN_REST_MS			50

/* Milliseconds to sleep after a batch. */
int64
bbf_throttle_batch_delay(const BbfJob *job)
{
	return bbf_job_setting(job, BBF_BATCH_SLEEP);
}

/*
 * Milliseconds before another try after so many failures in a row: doubling,
 * with up to a quarter of jitter either way, so that two jobs that fail for the
 * same reason do not come back together.
 */
int64
bbf_throttle_retry_delay(int retries)
{
	double		delay = bbf_guc_server_value(BBF_RETRY_DELAY);

	for (int i = 0; i < retries && delay < MAX_RETRY_DELAY_MS; i++)
		delay *= 2;
	delay = Min(delay, MAX_RETRY_DELAY_MS);
	return (int64) (delay * (0.75 + 0.5 * pg_prng_double(&pg_global_prng_state)));
}

/*
 * Milliseconds to rest after work that goes on before its interval is over, and took
 * so long: it takes a fifth of the time.
 */
int64
bbf_throttle_rest(double took_ms)
{
	return (int64) Max(4 * took_ms, MIN_REST_MS);
}

/* Rows of the next batch: the setting, or less after a statement timeout. */
int32
bbf_throttle_batch_size(const BbfJob *job)
{
	int32		wanted = bbf_job_setting(job, BBF_BATCH_SIZE);

	return job->batch_size > 0 ? Min(job->batch_size, wanted) : wanted;
}

/* So much of the usual number of rows as a batch of this job has of its own. */
int
bbf_throttle_share(const BbfJob *job, int rows)
{
	return Max(1, (int) ((int64) rows * bbf_throttle_batch_size(job) / Max(bbf_job_setting(job, BBF_BATCH_SIZE), 1)));
}

/* The size after a batch that went well: back to the setting step by step. */
int32
bbf_throttle_grown_size(const BbfJob *job, int32 size)
{
	int32		wanted = bbf_job_setting(job, BBF_BATCH_SIZE);

	return Min(wanted, size + size / 8 + 1);
}
