/*
 * claim.c
 *		The SQL functions of those who do the work: claim, fail, release, extend,
 *		requeue.
 *
 * A claim is the caller's: it is there once he commits, and needs no open
 * transaction afterwards.  Success needs no call: a row that has got its target
 * row is not pending any more, and whoever meets it in a claim takes it for
 * answered.
 *
 * Who may: whoever may read the source and insert into the target, which is what
 * he needs to do the work; what becomes of a claim is for who made it to say; requeue
 * is the owner's.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xlog.h"
#include "api.h"
#include "attempt.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "handout.h"
#include "index.h"
#include "miscadmin.h"
#include "session.h"
#include "usercontext.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rls.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(bgw_backfill_claim);
PG_FUNCTION_INFO_V1(bgw_backfill_fail);
PG_FUNCTION_INFO_V1(bgw_backfill_release);
PG_FUNCTION_INFO_V1(bgw_backfill_extend);
PG_FUNCTION_INFO_V1(bgw_backfill_requeue);

#define MAX_LEASE_MS	((int64) 86400 * 1000)

/* May the caller do the work of this job? */
static void
check_rights(const BbfJob *job, Oid source, Oid target)
{
	Oid			user = GetUserId();

	if (has_privs_of_role(user, bbf_pair_owner(source)))
		return;
	if (pg_class_aclcheck(source, user, ACL_SELECT) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for job \"%s\"", job->name),
				 errdetail("Its rows are handed out to those who may SELECT from source \"%s\".", get_rel_name(source)),
				 errhint("The owner can use GRANT SELECT ON %s, and GRANT INSERT ON %s.",
						 get_rel_name(source), get_rel_name(target))));
	if (pg_class_aclcheck(target, user, ACL_INSERT) != ACLCHECK_OK &&
		pg_attribute_aclcheck_all(target, user, ACL_INSERT, ACLMASK_ANY) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for job \"%s\"", job->name),
				 errdetail("Its rows are handed out to those who may INSERT into target \"%s\".", get_rel_name(target)),
				 errhint("The owner can use GRANT INSERT ON %s.", get_rel_name(target))));
	if (check_enable_rls(source, user, true) == RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for job \"%s\"", job->name),
				 errdetail("Row security decides which rows of source \"%s\" the role may see, and a claim would show the keys of all.",
						   get_rel_name(source)),
				 errhint("Claim as the owner, or as a role with BYPASSRLS.")));
}

/* The job of that name, for a caller who does its work. */
static BbfJob *
working_job(const char *name)
{
	BbfJob	   *job = bbf_job_load(name);
	Oid			source;
	Oid			target;

	if (job == NULL || job->successor_of)
		bbf_api_no_such_job(name);
	source = bbf_job_source(job);
	target = bbf_job_target(job);
	if (!OidIsValid(source) || !OidIsValid(target))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("%s table of job \"%s\" does not exist", OidIsValid(source) ? "target" : "source", name),
				 errhint("Use bgw_backfill.untrack('%s') to end the job.", name)));
	check_rights(job, source, target);
	if (job->health == BBF_HEALTH_HELD || !bbf_job_same_place(job) || !bbf_job_belongs_to(job, bbf_pair_owner(source)))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("job \"%s\" is held", name),
				 errdetail("It was tracked in another database or server, or its tables have a new owner; what is pending here may be worked on there."),
				 errhint("The owner can use bgw_backfill.resume('%s').", name)));
	if (job->uninstall)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("job \"%s\" is being untracked", name)));
	return job;
}

/* Is there something to hand out from? */
static void
check_is_served(const BbfJob *job, const BbfPair *pair)
{
	const BbfMode *mode = bbf_mode_lookup(job->mode);
	char	   *missing = NULL;

	if (job->phase != BBF_PHASE_INSTALL)
		(void) mode->missing(job, pair, &missing);
	if (job->phase == BBF_PHASE_INSTALL || missing || !bbf_index_is_there(job))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("job \"%s\" is not ready to hand out rows", job->name),
				 errdetail("Its phase is %s, and %s.", bbf_job_phase_name(job->phase),
						   missing ? psprintf("%s is missing", missing) : "its index is not built"),
				 errhint("Use CALL bgw_backfill.wait('%s'), or see bgw_backfill.progress.", job->name)));
}

/* A lease in milliseconds. */
static int64
lease_argument(FunctionCallInfo fcinfo, int n)
{
	Interval   *lease = PG_GETARG_INTERVAL_P(n);
	int64		ms = lease->day * (int64) 86400 * 1000 + lease->time / 1000;

	if (lease->month != 0 || abs(lease->day) > 1000 || ms < 1 || ms > MAX_LEASE_MS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("lease %s is outside the valid range",
						DatumGetCString(DirectFunctionCall1(interval_out, PG_GETARG_DATUM(n)))),
				 errdetail("The range is 1 millisecond .. 1 day."),
				 errhint("A lease is how long a row stays yours if nothing is heard of you; bgw_backfill.extend() makes it longer.")));
	return ms;
}

static void
refuse_nulls(FunctionCallInfo fcinfo, int upto, const char *names)
{
	for (int i = 0; i < upto; i++)
	{
		if (PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("%s must not be null", names)));
	}
}

/* claim(job, max_rows, lease, group_key) returns (key, group_key, attempt, token) */
Datum
bgw_backfill_claim(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	BbfHandout	handout = {0};
	BbfUserContext before;
	int64		lease_ms;

	bbf_api_refuse_in_recovery("claim");
	refuse_nulls(fcinfo, 3, "job, max_rows and lease");
	handout.claimed_by = GetUserId();
	handout.max_rows = PG_GETARG_INT32(1);
	if (handout.max_rows < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_rows must be at least 1"),
				 errdetail("It is %d.", handout.max_rows)));
	lease_ms = lease_argument(fcinfo, 2);
	InitMaterializedSRF(fcinfo, 0);

	SPI_connect();
	handout.job = working_job(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	handout.pair = bbf_pair_load(handout.job);
	bbf_usercontext_begin(handout.pair->owner, true, &before);
	check_is_served(handout.job, handout.pair);
	if (!PG_ARGISNULL(3))
	{
		if (handout.pair->group_by == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("job \"%s\" has no groups", handout.job->name),
					 errhint("Leave group_key out, or track with group_by.")));
		handout.only_group = handout.out_of_turn = true;
		handout.group = text_to_cstring(PG_GETARG_TEXT_PP(3));
	}
	bbf_session_pin_keys();		/* how keys are written */
	bbf_handout_claim(&handout, lease_ms);
	bbf_usercontext_end(&before);
	for (int i = 0; i < handout.n; i++)
	{
		const BbfLeased *row = &handout.rows[i];
		Datum		values[] = {CStringGetTextDatum(row->key), row->group ? CStringGetTextDatum(row->group) : (Datum) 0,
		Int32GetDatum(row->attempt), Int64GetDatum(handout.token)};
		bool		nulls[] = {false, row->group == NULL, false, false};

		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	SPI_finish();
	return (Datum) 0;
}

/* The given keys, as the job writes them. */
static char **
keys_argument(const BbfPair *pair, ArrayType *array, Datum **keys, int *n)
{
	Datum	   *texts;
	bool	   *nulls;
	char	  **result;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &texts, &nulls, n);
	result = palloc(sizeof(char *) * Max(*n, 1));
	*keys = palloc(sizeof(Datum) * Max(*n, 1));
	for (int i = 0; i < *n; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("keys must not contain nulls")));
		(*keys)[i] = bbf_pair_key_in(pair, TextDatumGetCString(texts[i]));
		result[i] = bbf_pair_key_out(pair, (*keys)[i]);
	}
	return result;
}

/*
 * A token is its claimer's, and the owner's of the tables: theirs who have the rights
 * of either.  That there is such a token is no secret: they are numbered, and whoever
 * may ask can claim one himself.
 *
 * The claimer is stored as an OID: a role stays itself when it is renamed, and one that
 * is made anew is another.  In another server it would mean somebody else: so claims
 * are not dumped, and a job that has come elsewhere is held until resume() has
 * forgotten them.
 */
static void
check_token(const BbfJob *job, const BbfClaim *claim, Oid caller)
{
	if (has_privs_of_role(caller, claim->claimed_by) || has_privs_of_role(caller, bbf_pair_owner(bbf_job_source(job))))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied for token " INT64_FORMAT " of job \"%s\"", claim->token, job->name),
			 errdetail("It was given to another role."),
			 errhint("Use the token that claim() gave you. The claimer's role, its members and the owner of the tables can use it.")));
}

BBF_NORETURN static void
out_of_date(const BbfJob *job, int64 token, const char *key)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("token " INT64_FORMAT " of job \"%s\" is out of date", token, job->name),
			 key ? errdetail("It does not hold the row with key %s: its lease has expired, or it never had it.", key) :
			 errdetail("Its lease has expired and its rows are handed out again, or it never was one."),
			 errhint("Nothing was changed. Extend a lease in time with bgw_backfill.extend().")));
}

/* a row of a claim, to be found by its key: equal keys need not be written alike */
typedef struct HeldRow
{
	Datum		key;
	int			row;
} HeldRow;

/* The rows of a claim whose keys can still be read; returns how many. */
static int
readable_rows(const BbfPair *pair, const BbfClaim *claim, HeldRow *held)
{
	Datum	   *keys = palloc(sizeof(Datum) * Max(claim->n, 1));
	int		   *which = palloc(sizeof(int) * Max(claim->n, 1));
	int			n = bbf_pair_keys_in(pair, bbf_lease_keys(claim), claim->n, keys, which);

	for (int i = 0; i < n; i++)
		held[i] = (HeldRow) {keys[i], which[i]};
	return n;
}

static int
compare_held(const void *a, const void *b, void *arg)
{
	return bbf_pair_compare_keys(arg, ((const HeldRow *) a)->key, ((const HeldRow *) b)->key);
}

/* The row of a claim that has this key, or -1. */
static int
find_held(const BbfPair *pair, const HeldRow *held, int n, Datum key)
{
	int			low = 0;

	while (n > low)
	{
		int			middle = low + (n - low) / 2;
		int			order = bbf_pair_compare_keys(pair, key, held[middle].key);

		if (order == 0)
			return held[middle].row;
		if (order < 0)
			n = middle;
		else
			low = middle + 1;
	}
	return -1;
}

/*
 * The claim that a token stands for, locked, and which of its rows are meant.  A
 * key that it does not hold is passed by if its row is not pending: that is how
 * success looks.  Otherwise the whole call is refused.
 */
static BbfClaim *
meant(const BbfJob *job, const BbfPair *pair, int64 token, Oid caller, ArrayType *array, bool **rows)
{
	BbfClaim   *claim = bbf_lease_lock_claim(job->name, token, false);
	int			n = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));
	HeldRow    *held;
	Datum	   *keys;
	Datum	   *elsewhere;
	char	  **texts;
	char	  **missing;
	bool	   *pending;
	int			nheld;
	int			nmissing = 0;

	if (claim == NULL)
		out_of_date(job, token, NULL);
	check_token(job, claim, caller);
	if (n > claim->granted)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("too many keys: %d", n),
				 errdetail("Token " INT64_FORMAT " was given for %d rows.", token, claim->granted)));
	texts = keys_argument(pair, array, &keys, &n);
	held = palloc(sizeof(HeldRow) * Max(claim->n, 1));
	nheld = readable_rows(pair, claim, held);
	qsort_arg(held, nheld, sizeof(HeldRow), compare_held, unconstify(BbfPair *, pair));
	*rows = palloc0(sizeof(bool) * Max(claim->n, 1));
	elsewhere = palloc(sizeof(Datum) * Max(n, 1));
	missing = palloc(sizeof(char *) * Max(n, 1));
	for (int k = 0; k < n; k++)
	{
		int			row = find_held(pair, held, nheld, keys[k]);

		if (row >= 0)
			(*rows)[row] = true;
		else
		{
			elsewhere[nmissing] = keys[k];
			missing[nmissing++] = texts[k];
		}
	}
	pending = bbf_handout_pending(job, pair, elsewhere, nmissing, false);
	for (int k = 0; k < nmissing; k++)
	{
		if (pending[k])
			out_of_date(job, token, missing[k]);
	}
	return claim;
}

/*
 * fail and release: take rows off a claim and write down what became of them.  A row
 * that has got its target row meanwhile is answered, whatever its holder says.
 */
static int
give_back(FunctionCallInfo fcinfo, const char *function, bool failed)
{
	BbfJob	   *job;
	BbfPair    *pair;
	BbfClaim   *claim;
	BbfLeased  *rows;
	Datum	   *keys;
	bool	   *keep;
	bool	   *pending;
	int			n = 0;
	int			given = 0;
	BbfUserContext before;

	bbf_api_refuse_in_recovery(function);
	refuse_nulls(fcinfo, 3, "job, keys and token");
	SPI_connect();
	job = working_job(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	pair = bbf_pair_load(job);
	bbf_usercontext_begin(pair->owner, true, &before);
	bbf_session_pin_keys();
	claim = meant(job, pair, PG_GETARG_INT64(2), before.userid, PG_GETARG_ARRAYTYPE_P(1), &keep);
	rows = palloc(sizeof(BbfLeased) * Max(claim->n, 1));
	keys = palloc(sizeof(Datum) * Max(claim->n, 1));
	for (int i = 0; i < claim->n; i++)
	{
		if (keep[i])
		{
			rows[given] = claim->rows[i];
			keys[given++] = bbf_pair_key_in(pair, claim->rows[i].key);
		}
		keep[i] = !keep[i];
	}
	pending = bbf_handout_pending(job, pair, keys, given, false);
	for (int i = 0; i < given; i++)
	{
		if (pending[i])
			rows[n++] = rows[i];
	}
	if (failed)
		bbf_attempt_failed(job->name, rows, n,
						   PG_ARGISNULL(3) ? "no error was given" : text_to_cstring(PG_GETARG_TEXT_PP(3)),
						   bbf_job_setting(job, BBF_MAX_ATTEMPTS));
	else
		bbf_attempt_returned(job->name, rows, n);
	if (given > 0)
		bbf_lease_keep(claim, keep);
	bbf_usercontext_end(&before);
	SPI_finish();
	return n;
}

/* fail(job, keys, token, error) returns how many rows */
Datum
bgw_backfill_fail(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT32(give_back(fcinfo, "fail", true));
}

/* release(job, keys, token) returns how many rows */
Datum
bgw_backfill_release(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT32(give_back(fcinfo, "release", false));
}

/* extend(job, token, lease) returns when the lease ends now */
Datum
bgw_backfill_extend(PG_FUNCTION_ARGS)
{
	BbfJob	   *job;
	BbfClaim   *claim;
	TimestampTz result;
	int64		lease_ms;

	bbf_api_refuse_in_recovery("extend");
	refuse_nulls(fcinfo, 3, "job, token and lease");
	lease_ms = lease_argument(fcinfo, 2);
	SPI_connect();
	job = working_job(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	claim = bbf_lease_lock_claim(job->name, PG_GETARG_INT64(1), false);
	if (claim == NULL || (claim->n == 0 && claim->expires_at <= GetCurrentTimestamp()))
		out_of_date(job, PG_GETARG_INT64(1), NULL);
	check_token(job, claim, GetUserId());
	result = bbf_lease_extend(claim->token, lease_ms);
	SPI_finish();
	PG_RETURN_TIMESTAMPTZ(result);
}

/* requeue(job, keys) returns how many rows; keys NULL: all */
Datum
bgw_backfill_requeue(PG_FUNCTION_ARGS)
{
	BbfJob	   *job;
	Datum		keys = (Datum) 0;
	int64		result;

	bbf_api_refuse_in_recovery("requeue");
	refuse_nulls(fcinfo, 1, "job");
	SPI_connect();
	job = bbf_api_own_job(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	if (!PG_ARGISNULL(1))
	{
		BbfPair    *pair = bbf_pair_load(job);
		BbfUserContext before;
		Datum	   *typed;
		char	  **texts;
		int			n;

		bbf_usercontext_begin(pair->owner, true, &before);
		bbf_session_pin_keys();
		texts = keys_argument(pair, PG_GETARG_ARRAYTYPE_P(1), &typed, &n);
		keys = bbf_lease_text_array(texts, n);
		bbf_usercontext_end(&before);
	}
	result = bbf_attempt_requeue(job->name, keys);
	SPI_finish();
	PG_RETURN_INT64(result);
}
