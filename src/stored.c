/*
 * stored.c
 *		Keys and groups that a job's state holds as text, and what they rest on.
 *
 * A cursor, a mark and the group that a scan goes on after are texts.  They mean
 * something as long as their type, its order and its collation stay as they are.  Two
 * things can happen:
 *
 *	- The type, the collation, its version or the operator class is another one.  The
 *	  text may be readable and stand somewhere else in the order.  So what the order
 *	  rests on is written down, and compared each time the installation is checked.
 *
 *	- The text can no longer be read, although the type is the same: an enum's label has
 *	  another name, a domain a new check.  Reading it is an error then, after which all of
 *	  them are tried.
 *
 * Either way all of them are dropped, with one line in the log: walks, prunes, passes and
 * rounds begin anew, and a live job has a sweep.  What is handed out or came back is not
 * touched: each of its keys is tried where it is used.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "sql.h"
#include "stored.h"
#include "txn.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "value.h"

/* Drop all of it.  What it rests on from now on; NULL: the same. */
static void
forget(const BbfJob *job, const char *order)
{
	Oid			types[] = {TEXTOID, TEXTOID};
	Datum		values[] = {CStringGetTextDatum(job->name), order ? CStringGetTextDatum(order) : (Datum) 0};

	bbf_sql_catalog("UPDATE bgw_backfill.job_state SET generation = generation OPERATOR(pg_catalog.+) 1,"
					" walk_cursor = NULL, high_mark = NULL, rows_done = 0, batches = 0, sweep_started_at = NULL,"
					" prune_cursor = NULL, attempt_cursor = NULL, scan_group = NULL,"
					" round_groups = 0, round_pending = 0, round_capped = false,"
					" watermark = NULL, next_mark = NULL, next_mark_xid = NULL, pass_mark = NULL, pass_cursor = NULL,"
					" pass_end = NULL, key_order = coalesce($2, key_order) WHERE job OPERATOR(pg_catalog.=) $1",
					2, types, values, order ? NULL : " n", SPI_OK_UPDATE);
	bbf_sql_catalog("DELETE FROM bgw_backfill.job_skipped WHERE job OPERATOR(pg_catalog.=) $1",
					1, types, values, NULL, SPI_OK_DELETE);
	if (order)
		bbf_sql_catalog("DELETE FROM bgw_backfill.passed WHERE job OPERATOR(pg_catalog.=) $1",
						1, types, values, NULL, SPI_OK_DELETE);
	if (job->phase == BBF_PHASE_LIVE)
		bbf_job_ask_sweep(job->name);
	ereport(LOG,
			(errmsg("job \"%s\": keys or groups that were stored have lost their meaning, beginning anew", job->name),
			 order ? errdetail("The type, the collation or the order of the key or the group has changed.") :
			 errdetail("They cannot be read any more.")));
}

/* What the order of keys and groups rests on, as a text to compare. */
static char *
key_order(const BbfPair *pair)
{
	Oid			types[] = {OIDOID, OIDOID, OIDOID, OIDOID, OIDOID};
	Datum		values[] = {ObjectIdGetDatum(pair->key_type), ObjectIdGetDatum(pair->key_opfamily),
		ObjectIdGetDatum(pair->key_collation), ObjectIdGetDatum(pair->group_type),
	ObjectIdGetDatum(pair->group_collation)};
	char	   *order;

	bbf_sql_catalog("SELECT pg_catalog.concat_ws(' ', $1, $2, $3, $4, $5,"
					" CASE WHEN $3 OPERATOR(pg_catalog.<>) 0 THEN pg_catalog.pg_collation_actual_version($3) END,"
					" CASE WHEN $5 OPERATOR(pg_catalog.<>) 0 THEN pg_catalog.pg_collation_actual_version($5) END,"
					" pg_catalog.pg_database_collation_actual_version(d.oid))"
					" FROM pg_catalog.pg_database d WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()",
					5, types, values, NULL, SPI_OK_SELECT);
	order = bbf_sql_text(0, 1);
	SPI_freetuptable(SPI_tuptable);
	return order;
}

/*
 * Does all of it still mean what it did when it was stored?  If not, it is dropped, false
 * is returned, and the job is to be read anew.
 */
bool
bbf_stored_check(BbfJob *job, const BbfPair *pair)
{
	char	   *order = key_order(pair);
	Oid			types[] = {TEXTOID, TEXTOID};
	Datum		values[] = {CStringGetTextDatum(job->name), CStringGetTextDatum(order)};

	if (job->key_order && strcmp(job->key_order, order) == 0)
		return true;
	if (job->key_order)
	{
		forget(job, order);
		return false;
	}
	bbf_sql_catalog("UPDATE bgw_backfill.job_state SET key_order = $2 WHERE job OPERATOR(pg_catalog.=) $1",
					2, types, values, NULL, SPI_OK_UPDATE);
	job->key_order = order;
	return true;
}

/* Can all of it be read? */
static bool
is_readable(const BbfJob *job, const BbfPair *pair)
{
	char	   *keys[] = {job->cursor, job->high_mark, job->prune_cursor, job->watermark, job->next_mark,
	job->pass_mark, job->pass_cursor, job->pass_end, bbf_job_next_skipped(job)};

	for (int i = 0; i < (int) lengthof(keys); i++)
	{
		if (keys[i] && !bbf_value_is_readable(pair->owner, pair->key_type, keys[i]))
			return false;
	}
	return job->scan_group == NULL || pair->group_by == NULL ||
		bbf_value_is_readable(pair->owner, pair->group_type, job->scan_group);
}

/*
 * A step has ended with an error that a text is no value of its type: see whether it was one
 * that was stored, in a transaction of its own, and drop all of it if so.  False: it
 * was not, as far as can be told.
 */
bool
bbf_stored_forget_unreadable(const char *job_name)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool forgotten = false;

	PG_TRY();
	{
		BbfJob	   *job = bbf_job_begin(job_name);

		if (job)
		{
			BbfPair    *pair = bbf_pair_load(job);

			if (!is_readable(job, pair) && bbf_job_try_lock(job_name))
			{
				forget(job, NULL);
				forgotten = true;
			}
			bbf_txn_commit();
		}
	}
	PG_CATCH();
	{
		/* the error that brought us here is the one that counts */
		MemoryContextSwitchTo(context);
		FlushErrorState();
		bbf_txn_abort();
		forgotten = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	return forgotten;
}
