/*
 * change.c
 *		Changing what a live job counts as pending, and its handler.
 *
 * configure(job, 'match_where', ..) writes down what is wanted.  The worker lets it
 * take effect in one short transaction that has both tables to itself: the new
 * condition, and triggers that follow it.  From there on every write is settled by
 * the new condition, and a sweep that begins at once settles the rows that were
 * there: those whose target row no longer counts become pending one batch after the
 * other, and can be worked on as they come.  The job stays live.  Until the sweep
 * has come to a row, its answer is the old one; should the new condition admit more
 * matches, such a row is found matched when it is claimed.  No target row is touched.
 *
 * The claims are settled by the old condition first: what was answered under it
 * leaves them, and can be handed out again.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "change.h"
#include "columns.h"
#include "expr.h"
#include "handoff.h"
#include "handout.h"
#include "install.h"
#include "mode.h"
#include "sql.h"
#include "utils/builtins.h"
#include "utils/regproc.h"
#include "wake.h"

#define CLAIMS_AT_ONCE 100000

static void
refuse_change(const BbfJob *job, const char *setting, bool anew)
{
	if (job->uninstall)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("job \"%s\" is being taken away", job->name),
				 errhint("Track its tables again when it is gone.")));
	if (bbf_job_successor(job->name))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("job \"%s\" is being moved to another mode", job->name),
				 errdetail("\"%s\" cannot change meanwhile.", setting),
				 errhint("Wait until bgw_backfill.progress shows no rebuilding, or give the move up with bgw_backfill.configure('%s', 'mode', '%s').",
						 job->name, job->mode)));
	if (!anew && strcmp(setting, "pending_where") == 0 && bbf_mode_lookup(job->mode)->pending_index)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("\"pending_where\" of a job in mode \"%s\" cannot be changed", job->mode),
				 errdetail("It is the condition of the index on pending rows."),
				 errhint("Use bgw_backfill.untrack('%s') and track() again, or move the job to mode \"sidecar\".",
						 job->name)));
}

/*
 * A condition is to change, to value (NULL: none), once a worker comes to it.  A job that
 * is not live, or has failed, begins anew with it: the condition that it has may name what is
 * gone.  The caller may change the job.
 */
void
bbf_change_request(BbfJob *job, const char *setting, const char *value)
{
	bool		match = strcmp(setting, "match_where") == 0;
	bool		anew = job->phase != BBF_PHASE_LIVE || job->health != BBF_HEALTH_OK;
	char	   *canonical = NULL;
	Oid			types[] = {TEXTOID, TEXTOID};
	Datum		values[2] = {CStringGetTextDatum(job->name)};

	refuse_change(job, setting, anew);
	if (!anew)
		(void) bbf_columns_follow(job);
	if (value)
		canonical = bbf_expr_canonical(value, match ? bbf_job_target(job) : bbf_job_source(job), setting,
									   match ? NULL : job->flag_column);
	values[1] = canonical ? CStringGetTextDatum(canonical) : (Datum) 0;
	bbf_sql_catalog(match ?
					"UPDATE bgw_backfill.job SET new_match_where = $2, changing = true,"
					" new_pending_where = CASE WHEN changing THEN new_pending_where ELSE pending_where END"
					" WHERE job OPERATOR(pg_catalog.=) $1" :
					"UPDATE bgw_backfill.job SET new_pending_where = $2, changing = true,"
					" new_match_where = CASE WHEN changing THEN new_match_where ELSE match_where END"
					" WHERE job OPERATOR(pg_catalog.=) $1",
					2, types, values, canonical ? NULL : " n", SPI_OK_UPDATE);
	if (anew)
	{
		bbf_job_begin_anew(job->name);
		bbf_wake_cancel_at_commit(job->name);
	}
}

/*
 * The same for a job that begins anew, in the transaction that is open: what held the old
 * conditions, which need not be readable, is taken away, and install is the next step.
 */
void
bbf_change_anew(BbfJob *job)
{
	bbf_install_forget_conditions(job);
	bbf_job_change_conditions(job);
	ereport(LOG,
			(errmsg("job \"%s\" has new conditions, beginning anew", job->name)));
}

/* Another handler, from its signature or name; NULL: none. */
void
bbf_change_handler(BbfJob *job, const char *value)
{
	Oid			types[] = {TEXTOID, TEXTOID};
	Datum		values[2] = {CStringGetTextDatum(job->name)};
	char	   *handler = NULL;

	if (value)
	{
		Oid			function = DatumGetObjectId(strchr(value, '(') ?
												DirectFunctionCall1(regprocedurein, CStringGetDatum(value)) :
												DirectFunctionCall1(regprocin, CStringGetDatum(value)));

		handler = bbf_handoff_check(function, bbf_pair_load(job));
	}
	values[1] = handler ? CStringGetTextDatum(handler) : (Datum) 0;
	bbf_sql_catalog("UPDATE bgw_backfill.job SET handler = $2 WHERE job OPERATOR(pg_catalog.=) $1",
					2, types, values, handler ? NULL : " n", SPI_OK_UPDATE);
}

/* Let new conditions take effect, in the transaction that is open. */
void
bbf_change_conditions(BbfJob *job)
{
	BbfPair    *before;
	BbfJob	   *after;
	int64	   *tokens;
	int			n;

	before = bbf_pair_load(job);
	(void) bbf_columns_follow(job);
	n = bbf_lease_open(job->name, NULL, CLAIMS_AT_ONCE, &tokens);
	for (int i = 0; i < n; i++)
		(void) bbf_handout_settle(job, before, bbf_lease_lock_claim(job->name, tokens[i], false));
	if (bbf_mode_lookup(job->mode)->source_lock(job, before) != NoLock)
		bbf_install_lock_alone(job);
	bbf_job_change_conditions(job);
	after = bbf_job_load(job->name);
	bbf_install_switch(job, job, after, bbf_pair_load(after));
	ereport(LOG,
			(errmsg("job \"%s\" has new conditions", job->name)));
}
