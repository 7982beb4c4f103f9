/*
 * outcome.c
 *		What becomes of a job after a step that did not go well: again at once
 *		and smaller, again later, or never until somebody resumes it.
 *
 * Everything is recorded in a transaction of its own, after the failed one has
 * been undone.
 */
#include "postgres.h"

#include "job.h"
#include "outcome.h"
#include "scan.h"
#include "shmem.h"
#include "stored.h"
#include "throttle.h"
#include "txn.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "value.h"

/* failures in a row of an error that might go away, before the job is failed */
#define MAX_RETRIES 5

/* a lock that was not to be had is asked for again soon: a busy table has its moments */
#define MAX_WAIT_DOUBLINGS 3

typedef enum Verdict
{
	WAIT,						/* somebody holds a lock: not an error */
	HALVE,						/* statement_timeout */
	RETRY,						/* as long as it takes */
	RETRY_OR_FAIL,				/* a few times */
	FAIL						/* trying again changes nothing */
} Verdict;

static Verdict
judge(const ErrorData *edata, bool timed_out)
{
	switch (edata->sqlerrcode)
	{
		case ERRCODE_LOCK_NOT_AVAILABLE:
			return WAIT;
		case ERRCODE_QUERY_CANCELED:
			return timed_out ? HALVE : RETRY;
		case ERRCODE_UNDEFINED_TABLE:
		case ERRCODE_UNDEFINED_COLUMN:
		case ERRCODE_WRONG_OBJECT_TYPE:
		case ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE:
		case ERRCODE_FEATURE_NOT_SUPPORTED:
		case ERRCODE_DUPLICATE_OBJECT:
		case ERRCODE_DATATYPE_MISMATCH:
		case ERRCODE_COLLATION_MISMATCH:
		case ERRCODE_INSUFFICIENT_PRIVILEGE:
		case ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST:
			return FAIL;
	}
	switch (ERRCODE_TO_CATEGORY(edata->sqlerrcode))
	{
		case ERRCODE_TRANSACTION_ROLLBACK:
		case ERRCODE_INSUFFICIENT_RESOURCES:
		case ERRCODE_OPERATOR_INTERVENTION:
			return RETRY;
	}
	return RETRY_OR_FAIL;
}

/* An error as one text: message, detail, hint, context. */
static char *
describe(const ErrorData *edata)
{
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfoString(&text, edata->message);
	if (edata->detail)
		appendStringInfo(&text, " (%s)", edata->detail);
	if (edata->hint)
		appendStringInfo(&text, " Hint: %s", edata->hint);
	else if (edata->sqlerrcode == ERRCODE_UNDEFINED_COLUMN)
		appendStringInfoString(&text, " Hint: If a condition of the job names the column, change it with bgw_backfill.configure(), or end the job with bgw_backfill.untrack().");
	return text.data;
}

/* Record the verdict; returns when the job is due again. */
static TimestampTz
record(BbfJob *job, const ErrorData *edata, Verdict verdict)
{
	int64		delay = bbf_throttle_retry_delay(verdict == WAIT ? Min(job->waits, MAX_WAIT_DOUBLINGS) : job->retries);
	BbfHealth	health = BBF_HEALTH_OK;
	int32		size = bbf_throttle_batch_size(job);

	if (verdict == FAIL || (verdict == RETRY_OR_FAIL && job->retries + 1 >= MAX_RETRIES))
		health = BBF_HEALTH_FAILED;
	if (verdict == HALVE && job->phase != BBF_PHASE_INDEX)
	{
		bbf_job_set_batch_size(job, Max(size / 2, 1));
		if (size > 1)
			delay = 0;
	}
	if (verdict == WAIT)
		bbf_job_record_error(job->name, NULL, health, "a lock", delay);
	else
		bbf_job_record_error(job->name, describe(edata), health, NULL, delay);
	return health == BBF_HEALTH_OK ?
		TimestampTzPlusMilliseconds(GetCurrentTimestamp(), delay) : 0;
}

/* Tell the server log: once for a job that fails, quietly while it waits. */
static void
log_error(const char *job_name, const ErrorData *edata, Verdict verdict)
{
	ereport(verdict == WAIT ? DEBUG1 : LOG,
			(errcode(edata->sqlerrcode),
			 errmsg("job \"%s\": %s", job_name, edata->message),
			 edata->detail ? errdetail_internal("%s", edata->detail) : 0,
			 edata->hint ? errhint("%s", edata->hint) : 0,
			 edata->context ? errcontext_msg("%s", edata->context) : 0));
}

/* What an error means for the job that it happened to; when it is due again. */
static TimestampTz
record_for(BbfJob *job, const ErrorData *edata, Verdict verdict)
{
	if (job->phase == BBF_PHASE_INDEX)
		bbf_job_keep_percent(job, bbf_shmem_index_percent());
	/* pause(), untrack() or configure() meant it */
	if ((job->uninstall || job->changing) && edata->sqlerrcode == ERRCODE_QUERY_CANCELED)
		return GetCurrentTimestamp();
	if (job->paused && edata->sqlerrcode == ERRCODE_QUERY_CANCELED)
		return 0;
	/* renamed since the last check; the next step has one */
	if (edata->sqlerrcode == ERRCODE_UNDEFINED_COLUMN && (job->source_was || job->target_was))
		return GetCurrentTimestamp();
	log_error(bbf_job_display_name(job), edata, verdict);
	/* the condition that is about to change is what failed */
	if (job->changing && job->phase == BBF_PHASE_LIVE && verdict == FAIL)
	{
		bbf_job_begin_anew(job->name);
		return GetCurrentTimestamp();
	}
	return record(job, edata, verdict);
}

/*
 * Something is not there that the installation was seen to have: somebody has
 * dropped it since.  The next step checks, and repairs what can be; an error of
 * that is the one that counts.
 */
static bool
is_worth_a_check(const BbfJob *job, const ErrorData *edata)
{
	return job->phase != BBF_PHASE_INSTALL && job->retries == 0 &&
		(edata->sqlerrcode == ERRCODE_UNDEFINED_TABLE || edata->sqlerrcode == ERRCODE_UNDEFINED_COLUMN);
}

/* Say it if it was the launcher that cancelled us. */
void
bbf_outcome_note_way(ErrorData *edata)
{
	if (edata->sqlerrcode == ERRCODE_QUERY_CANCELED && bbf_shmem_gave_way())
		edata->message = pstrdup("the job gave its place up to another owner's, who had waited for one");
}

/* Record an error, in a transaction of its own, that waits for nobody.  False: somebody holds the job's rows. */
static bool
record_alone(const char *job_name, const ErrorData *edata, Verdict verdict, TimestampTz *due)
{
	bool		recorded = true;
	BbfJob	   *job;

	*due = 0;
	if (!bbf_txn_begin())
		return true;
	job = bbf_job_load(job_name);
	if (job && (recorded = bbf_job_try_lock(job_name)))	/* else it is untracked meanwhile */
		*due = record_for(job, edata, is_worth_a_check(job, edata) ? RETRY : verdict);
	bbf_txn_commit();
	return recorded;
}

/*
 * A step ended in an error, which has been copied and flushed.  Undoes its
 * transaction, records what becomes of the job, and returns when it is due
 * again; 0: not until somebody resumes it.
 *
 * Somebody may hold the very row that the record goes to (an open transaction
 * that has resumed the job, or truncated its target): then there is no record
 * (recorded), and it is up to the worker to leave the job alone for a while.
 */
TimestampTz
bbf_outcome_of_error(const char *job_name, ErrorData *edata, bool *recorded)
{
	MemoryContext context = CurrentMemoryContext;
	bool		timed_out = bbf_txn_timed_out();
	TimestampTz due = 0;

	*recorded = true;
	bbf_outcome_note_way(edata);
	bbf_txn_abort();
	MemoryContextSwitchTo(context);
	if (bbf_value_error_is_of_text(edata->sqlerrcode) && bbf_stored_forget_unreadable(job_name))
		return GetCurrentTimestamp();
	PG_TRY();
	{
		*recorded = record_alone(job_name, edata, judge(edata, timed_out), &due);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		FlushErrorState();
		bbf_txn_abort();
		MemoryContextSwitchTo(context);
		log_error(job_name, edata, judge(edata, false));
		*recorded = false;
	}
	PG_END_TRY();
	return due;
}

/*
 * A stage of phase live, whose transaction has been undone, ran out of time (its batches
 * are to be smaller) or was kept waiting for a lock: shown with the job, as it was before
 * the scan, and logged unless that was so the last time.
 */
void
bbf_outcome_cut_short(const BbfJob *before, BbfStage stage, const ErrorData *edata, bool timed_out)
{
	static const char *const names[] = {
		[BBF_STAGE_SCAN] = "the pending scan was",
		[BBF_STAGE_PRUNE] = "pruning was",
		[BBF_STAGE_CLAIMS] = "the upkeep of claims was",
		[BBF_STAGE_ATTEMPTS] = "the upkeep of rows that came back was",
		[BBF_STAGE_PASSED] = "the upkeep of passed groups was",
		[BBF_STAGE_NOTIFY] = "the look for rows to hand out was",
		[BBF_STAGE_HANDLER] = "the calls of the handler were"
	};
	BbfJob	   *job = bbf_job_begin(before->name);

	if (job == NULL)
		return;
	ereport(before->cut_short & (1 << stage) ? DEBUG1 : LOG,
			(errcode(edata->sqlerrcode),
			 errmsg("job \"%s\": %s cut short: %s", bbf_job_display_name(job), names[stage], edata->message),
			 edata->context ? errcontext_msg("%s", edata->context) : 0));
	if (bbf_job_try_lock(job->name))
	{
		if (stage == BBF_STAGE_SCAN)
			bbf_scan_record_skip(job);
		else if (timed_out)
			bbf_job_set_batch_size(job, Max(bbf_throttle_batch_size(job) / 2, 1));
		bbf_job_note_cut(job->name, stage);
	}
	bbf_txn_commit();
}

/* The job waits for something that is nobody's error. */
void
bbf_outcome_wait(const char *job_name, const char *waiting_for, int64 delay_ms)
{
	if (!bbf_txn_begin())
		return;
	bbf_job_wait(job_name, waiting_for, delay_ms);
	bbf_txn_commit();
}
