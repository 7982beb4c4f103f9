/*
 * handoff.c
 *		The handler of a job: what it must be, and calling it.
 *
 * After a pending scan the worker, which is connected as the job's owner, calls the
 * handler for each group that has something to hand out: once, with the rows that it
 * has claimed for it in the same transaction.  What the handler does and the claim
 * commit together; an error in it, or at the commit, undoes both: the rows are as
 * if they had never been handed out.  Then that group waits, twice as long each time,
 * and no other does.  A handler that catches its being cancelled, and goes on, is ended
 * with its process; the job fails.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "handoff.h"
#include "handout.h"
#include "job.h"
#include "miscadmin.h"
#include "outcome.h"
#include "session.h"
#include "shape.h"
#include "shmem.h"
#include "sql.h"
#include "throttle.h"
#include "txn.h"
#include "upkeep.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#define ROUND_MS 10000			/* a round of calls, but for the last */
#define ROOM_ROWS 1000			/* looked at to make room under max_leased */

/* one round of calls */
typedef struct Handoff
{
	const char *job_name;
	List	   *called;			/* groups that have had their call, as text; NULL: of the nulls */
	bool		in_call;		/* what is raised now is the handler's */
	bool		no_room;		/* the last look found none under max_leased */
	MemoryContext context;		/* of the list above */
	char	   *group;			/* of the call under way */
	MemoryContext last_context; /* of the keys below */
	char	  **last;			/* what the last call that went well was given */
	int			nlast;
} Handoff;

/*
 * Check a function that is to be a job's handler; returns its signature, with its
 * schema, as it is kept.
 */
char *
bbf_handoff_check(Oid function, const BbfPair *pair)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Oid			wanted[] = {TEXTOID, TEXTOID, get_array_type(pair->key_type), INT8OID};
	Form_pg_proc proc;
	char	   *signature;
	bool		has_no_body;	/* whose names were bound when it was made */

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("handler function with OID %u does not exist", function)));
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	signature = format_procedure_qualified(function);
	if (proc->prokind != PROKIND_FUNCTION || proc->proretset || proc->pronargs != 4 ||
		memcmp(proc->proargtypes.values, wanted, sizeof(wanted)) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
				 errmsg("%s cannot be a handler", signature),
				 errdetail("A handler is a function (job text, group_key text, keys %s, token bigint) that returns no set.",
						   format_type_be(wanted[2])),
				 errhint("Name a function with these arguments.")));
	if (bbf_function_aclcheck(function, pair->owner, ACL_EXECUTE) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("role \"%s\" may not execute %s", GetUserNameFromId(pair->owner, false), signature),
				 errdetail("The handler is called as the owner of the tables."),
				 errhint("Use GRANT EXECUTE ON FUNCTION %s TO %s.", signature,
						 quote_identifier(GetUserNameFromId(pair->owner, false)))));
	(void) SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_prosqlbody, &has_no_body);
	if (has_no_body && !bbf_shape_brings_search_path(function))
		ereport(WARNING,
				(errmsg("handler %s runs with search_path \"pg_catalog, pg_temp\"", signature),
				 errdetail("What it names without a schema is not found."),
				 errhint("Use ALTER FUNCTION %s SET search_path = ...", signature)));
	ReleaseSysCache(tuple);
	return signature;
}

/* The handler's name for a call; an error if it is gone. */
static char *
handler_name(const BbfJob *job, const BbfPair *pair)
{
	LOCAL_FCINFO(fcinfo, 1);
	Oid			function;
	char	   *name;
	char	   *schema;

	InitFunctionCallInfoData(*fcinfo, NULL, 1, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = CStringGetTextDatum(job->handler);
	fcinfo->args[0].isnull = false;
	function = DatumGetObjectId(to_regprocedure(fcinfo));
	if (fcinfo->isnull || !OidIsValid(function) || (name = get_func_name(function)) == NULL ||
		(schema = get_namespace_name(get_func_namespace(function))) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("handler %s of job \"%s\" does not exist", job->handler, job->name),
				 errhint("Create it again, or use bgw_backfill.configure('%s', 'handler', ...).", job->name)));
	return quote_qualified_identifier(schema, name);
}

static Datum
key_array(const BbfHandout *handout)
{
	int16		typlen;
	bool		typbyval;
	char		typalign;
	Oid			type = handout->pair->key_type;

	get_typlenbyvalalign(type, &typlen, &typbyval, &typalign);
	return PointerGetDatum(construct_array(handout->keys, handout->n, type, typlen, typbyval, typalign));
}

static void
call(const BbfHandout *handout)
{
	const BbfJob *job = handout->job;
	Oid			types[] = {TEXTOID, TEXTOID, get_array_type(handout->pair->key_type), INT8OID};
	Datum		values[] = {CStringGetTextDatum(job->name),
		handout->group ? CStringGetTextDatum(handout->group) : (Datum) 0,
	key_array(handout), Int64GetDatum(handout->token)};

	bbf_sql_run(psprintf("SELECT %s($1, $2, $3, $4)", handler_name(job, handout->pair)),
				4, types, values, handout->group ? NULL : " n  ", SPI_OK_SELECT);
	SPI_freetuptable(SPI_tuptable);
	bbf_session_harden();		/* it may have changed it; what the commit runs is as unaware of that */
}

/* Groups that wait after an error, and those that have had their call. */
static List *
groups_to_avoid(const Handoff *handoff)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(handoff->job_name)};
	List	   *avoid = list_copy(handoff->called);
	uint64		n = bbf_sql_catalog("SELECT group_key FROM bgw_backfill.group_wait WHERE job OPERATOR(pg_catalog.=) $1"
									" AND next_at OPERATOR(pg_catalog.>) pg_catalog.clock_timestamp()",
									1, types, values, NULL, SPI_OK_SELECT);

	for (uint64 i = 0; i < n; i++)
		avoid = lappend(avoid, bbf_sql_text(i, 1));
	SPI_freetuptable(SPI_tuptable);
	return avoid;
}

/* A group's call went well: it does not wait any more. */
static void
forget_wait(const char *job, const char *group)
{
	Oid			types[] = {TEXTOID, TEXTOID};
	Datum		values[] = {CStringGetTextDatum(job), group ? CStringGetTextDatum(group) : (Datum) 0};

	bbf_sql_catalog(psprintf("DELETE FROM bgw_backfill.group_wait WHERE job OPERATOR(pg_catalog.=) $1 AND group_key %s",
							 group ? "OPERATOR(pg_catalog.=) $2" : "IS NULL AND $2 IS NULL"),
					2, types, values, group ? NULL : " n", SPI_OK_DELETE);
}

/* Forget groups that have had no failing call for an hour. */
void
bbf_handoff_forget_waits(const char *job_name)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(job_name)};

	bbf_sql_catalog("DELETE FROM bgw_backfill.group_wait WHERE job OPERATOR(pg_catalog.=) $1 AND next_at"
					" OPERATOR(pg_catalog.<) (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) '1 hour'::pg_catalog.interval)",
					1, types, values, NULL, SPI_OK_DELETE);
}

/* A group has its call, in memory that outlives it. */
static void
remember_call(Handoff *handoff, const char *group)
{
	MemoryContext old = MemoryContextSwitchTo(handoff->context);

	handoff->group = group ? pstrdup(group) : NULL;
	handoff->called = lappend(handoff->called, handoff->group);
	MemoryContextSwitchTo(old);
}

/* A call went well: remember what it was given. */
static void
remember_given(Handoff *handoff, const BbfHandout *handout)
{
	MemoryContext old;

	MemoryContextReset(handoff->last_context);
	old = MemoryContextSwitchTo(handoff->last_context);
	handoff->nlast = handout->n;
	handoff->last = palloc(sizeof(char *) * handout->n);
	for (int i = 0; i < handout->n; i++)
		handoff->last[i] = pstrdup(handout->rows[i].key);
	MemoryContextSwitchTo(old);
}

/*
 * The call for the group whose turn is next, in a transaction of its own.  False:
 * there is none.
 */
static bool
call_next(Handoff *handoff)
{
	BbfHandout	handout = {.max_rows = 1};
	BbfJob	   *job;

	/* a pause() that commits after the look below finds us cancellable */
	bbf_shmem_set_statement(BBF_STATEMENT_CANCELLABLE);
	if ((job = bbf_job_begin(handoff->job_name)) == NULL)
		return false;
	handout.job = job;
	handout.claimed_by = GetUserId();
	if (job->phase == BBF_PHASE_LIVE && !job->uninstall && !job->paused && job->handler)
	{
		bbf_txn_arm(bbf_job_setting(job, BBF_STATEMENT_TIMEOUT));
		handout.pair = bbf_pair_load(job);
		handout.avoid = groups_to_avoid(handoff);
		if (bbf_handout_possible(&handout))
		{
			handout.only_group = true;
			handout.group = handout.rows[0].group;
			remember_call(handoff, handout.group);
			handout.max_rows = bbf_job_setting(job, BBF_HANDOFF_ROWS);
			handout.prunes_nothing = true;
			bbf_handout_claim(&handout, 1000 * (int64) bbf_job_setting(job, BBF_HANDOFF_LEASE));
		}
		else
		{
			handoff->no_room = handout.no_room;
			handout.n = 0;
		}
		if (handout.n > 0)
		{
			handoff->in_call = true;
			call(&handout);
			forget_wait(job->name, handoff->group);
		}
		bbf_txn_disarm();
	}
	else
		handout.n = 0;
	bbf_txn_commit();
	bbf_shmem_set_statement(BBF_STATEMENT_PLAIN);
	handoff->in_call = false;
	if (handout.n > 0)
		remember_given(handoff, &handout);
	return handout.n > 0;
}

/*
 * The handler has raised an error: its group waits.  Shown with the job, which goes
 * on.  False: the job does not.
 */
static bool
record_failure(const Handoff *handoff, const ErrorData *edata)
{
	Oid			types[] = {TEXTOID, TEXTOID, TEXTOID, FLOAT8OID};
	Datum		values[4] = {CStringGetTextDatum(handoff->job_name),
		handoff->group ? CStringGetTextDatum(handoff->group) : (Datum) 0};
	char		nulls[] = {' ', handoff->group ? ' ' : 'n', ' ', ' ', '\0'};
	BbfJob	   *job = bbf_job_begin(handoff->job_name);
	char	   *message = psprintf("handler, group %s: %s", handoff->group ? handoff->group : "(null)", edata->message);

	if (job == NULL)
		return false;
	/* pause() or untrack() meant it */
	if (edata->sqlerrcode == ERRCODE_QUERY_CANCELED && (job->paused || job->uninstall))
	{
		bbf_txn_commit();
		return false;
	}
	ereport(LOG,
			(errmsg("job \"%s\": %s", job->name, message),
			 edata->detail ? errdetail_internal("%s", edata->detail) : 0,
			 edata->context ? errcontext_msg("%s", edata->context) : 0));
	values[2] = CStringGetTextDatum(bbf_job_cut_error(message));
	bbf_sql_catalog(psprintf("SELECT failures FROM bgw_backfill.group_wait WHERE job OPERATOR(pg_catalog.=) $1 AND group_key %s",
							 handoff->group ? "OPERATOR(pg_catalog.=) $2" : "IS NULL AND $2 IS NULL"),
					2, types, values, nulls, SPI_OK_SELECT);
	values[3] = Float8GetDatum(bbf_throttle_retry_delay(SPI_processed > 0 ?
														atoi(bbf_sql_text(0, 1)) : 0) / 1000.0);
	SPI_freetuptable(SPI_tuptable);
	bbf_sql_catalog("INSERT INTO bgw_backfill.group_wait AS g (job, group_key, failures, next_at, last_error)"
					" VALUES ($1, $2, 1, pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) pg_catalog.make_interval(secs => $4), $3)"
					" ON CONFLICT (job, group_key) DO UPDATE SET failures = g.failures OPERATOR(pg_catalog.+) 1,"
					"  next_at = excluded.next_at, last_error = excluded.last_error",
					4, types, values, nulls, SPI_OK_INSERT);
	bbf_job_note_error(job->name, message);
	bbf_txn_commit();
	return true;
}

/* call_next(), and what to do about an error in the handler. */
static bool
guarded_call(Handoff *handoff)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool more = true;

	PG_TRY();
	{
		more = call_next(handoff);
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		if (!handoff->in_call)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		FlushErrorState();
		bbf_outcome_note_way(edata);
		(void) bbf_txn_timed_out();
		handoff->in_call = false;
		bbf_txn_abort();
		MemoryContextSwitchTo(context);
		more = record_failure(handoff, edata);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	return more;
}

/* What is answered by now makes room, in a transaction of its own. */
static void
make_room(const char *job_name)
{
	BbfJob	   *job = bbf_job_begin(job_name);

	if (job == NULL)
		return;
	(void) bbf_upkeep_claims(job, bbf_throttle_share(job, ROOM_ROWS));
	bbf_txn_commit();
}

/* Is all that the last call was given answered by now? */
static bool
is_answered(const Handoff *handoff, const BbfJob *job)
{
	bool	   *pending = bbf_handout_pending_texts(job, bbf_pair_load(job), handoff->last, handoff->nlast, false);

	for (int i = 0; i < handoff->nlast; i++)
	{
		if (pending[i])
			return false;
	}
	return handoff->nlast > 0;
}

/*
 * When is the next round of calls due, if this one took so long?  Soon, if its last call
 * has been answered by now: there may be more to do, and somebody who does it.  Else after
 * the next scan, 0.
 */
static TimestampTz
next_round(const Handoff *handoff, TimestampTz began)
{
	BbfJob	   *job = bbf_job_begin(handoff->job_name);
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz due = 0;
	Oid			types[] = {TEXTOID, TIMESTAMPTZOID};
	Datum		values[2] = {CStringGetTextDatum(handoff->job_name)};

	if (job == NULL)
		return 0;
	bbf_txn_arm(bbf_job_setting(job, BBF_STATEMENT_TIMEOUT));
	if (job->phase == BBF_PHASE_LIVE && !job->uninstall && is_answered(handoff, job))
		due = TimestampTzPlusMilliseconds(now, bbf_throttle_rest(TimestampDifferenceMilliseconds(began, now)));
	bbf_txn_disarm();
	values[1] = TimestampTzGetDatum(due);
	if (due != job->handoff_at)
		bbf_sql_catalog("UPDATE bgw_backfill.job_state SET handoff_at = $2 WHERE job OPERATOR(pg_catalog.=) $1",
						2, types, values, due == 0 ? " n" : NULL, SPI_OK_UPDATE);
	bbf_txn_commit();
	return due;
}

/*
 * A round of calls: at most handoff_groups, each group once, and for so long that other
 * jobs have their turn as well.  Returns when the next round is due; 0: after the next scan.
 */
TimestampTz
bbf_handoff_run(const char *job_name)
{
	Handoff		handoff = {.job_name = job_name, .context = CurrentMemoryContext,
	.last_context = AllocSetContextCreate(CurrentMemoryContext, "bgw_backfill given", ALLOCSET_SMALL_SIZES)};
	MemoryContext call_context = AllocSetContextCreate(CurrentMemoryContext, "bgw_backfill call", ALLOCSET_DEFAULT_SIZES);
	TimestampTz began = GetCurrentTimestamp();
	bool		made_room = false;
	BbfJob	   *job = bbf_job_begin(job_name);
	int			calls;

	if (job == NULL)
		return 0;
	calls = bbf_job_setting(job, BBF_HANDOFF_GROUPS);
	bbf_txn_commit();
	while (calls > 0 && !TimestampDifferenceExceeds(began, GetCurrentTimestamp(), ROUND_MS))
	{
		bool		more;

		CHECK_FOR_INTERRUPTS();
		MemoryContextReset(call_context);
		MemoryContextSwitchTo(call_context);
		handoff.no_room = false;
		more = guarded_call(&handoff);
		if (!more && handoff.no_room && !made_room)
			make_room(job_name);
		MemoryContextSwitchTo(handoff.context);
		if (!more && (made_room || !handoff.no_room))
			break;
		made_room = !more;
		calls -= more ? 1 : 0;
	}
	MemoryContextDelete(call_context);
	return next_round(&handoff, began);
}
