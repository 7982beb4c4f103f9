/*
 * trigger.c
 *		The trigger functions on sources and targets.
 *
 * A trigger turns a statement into the set of keys that it touched, and settles
 * those keys with two saved statements of the job's mode: one that locks, one
 * that decides with a snapshot taken after the locks (GetLatestSnapshot, as
 * foreign-key checks do, so that a repeatable-read caller decides right: R8).
 * An insert has short ways, for rows whose answer it changes; see the mode, and
 * enqueue.c and dequeue.c, which take no statement at all.  (Not
 * after a statement of this transaction has deleted or changed target rows: that
 * may have been a trigger or a function that the insert itself called, before us.)
 * No row is left without a lock: a trigger that looked first and did nothing
 * because the flag was right already would hold none, and a batch that decides
 * at the same time with an older view would win (R1).
 *
 * Keys come from row triggers that only collect (an UPDATE's has a WHEN that lets
 * through the rows whose key or condition columns really change); they are sorted, so that two statements lock common rows in
 * the same order (R9), and given to the saved statements as one array.
 *
 * R11: inside one transaction the triggers run after each statement and see its
 * own work, savepoints or not; what is rolled back takes its flags and its locks
 * along, because a trigger locks and writes in the subtransaction of its
 * statement.  R18, what a trigger of the user's nests in a statement: see keyset.c.
 *
 * R7: TRUNCATE of the target puts the job back to phase fill, in the same
 * transaction.  It holds the target's exclusive lock, so no batch and no other
 * trigger is in between; the job's row comes last in its lock order as well.
 *
 * They run with the rights of the source's owner, restricted, search path pinned
 * (usercontext.c); only an update of a source whose owner has deferrable triggers on
 * it is not restricted, which would refuse those.  They serve no table but their own job's.  One that
 * cannot do its work lets the write pass with a WARNING: the application's data
 * goes first, and the next sweep mends the state.
 */
#include "postgres.h"

#include "access/xact.h"
#include "answered.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "dequeue.h"
#include "enqueue.h"
#include "fmgr.h"
#include "job.h"
#include "keyset.h"
#include "miscadmin.h"
#include "served.h"
#include "session.h"
#include "sql.h"
#include "usercontext.h"
#include "utils/array.h"
#include "utils/lsyscache.h"
#include "value.h"
#include "wake.h"

PG_FUNCTION_INFO_V1(bgw_backfill_target_changed);
PG_FUNCTION_INFO_V1(bgw_backfill_source_changed);
PG_FUNCTION_INFO_V1(bgw_backfill_target_truncated);
PG_FUNCTION_INFO_V1(bgw_backfill_source_truncated);

/* keys given to one execution of a saved statement */
#define KEYS_AT_ONCE 10000

/* how often to settle keys whose target rows our own writes take away */
#define MAX_LOOKS 3

/* what the statements of one event share */
typedef struct Settling
{
	const char *job;
	const BbfServed *served;
	const BbfUserContext *before;	/* who fired the trigger */
} Settling;

/*
 * Run one of the saved statements.  An update of the source is not restricted where
 * that would refuse a trigger of the owner's which may be deferred.
 */
static uint64
execute(const Settling *settling, SPIPlanPtr plan, Datum *values, int expected, bool pin_path)
{
	const BbfServed *served = settling->served;

	return bbf_sql_execute_saved(served->owner, plan, values, expected, pin_path,
								 served->deferrable && expected == SPI_OK_UPDATE ? settling->before : NULL);
}

/* The first column of what a statement returned, as an array. */
static Datum
returned_array(Oid type, int16 typlen, bool typbyval, char typalign)
{
	uint64		n = SPI_processed;
	Datum	   *values = palloc(sizeof(Datum) * Max(n, 1));

	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;

		values[i] = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull);
	}
	return PointerGetDatum(construct_array(values, (int) n, type, typlen, typbyval, typalign));
}

/* The column that the keys of an event are in. */
static const BbfKeyColumn *
key_column(const BbfServed *served, BbfEvent event)
{
	return bbf_event_of_source(event) ? &served->source_key : &served->target_key;
}

static Datum
key_array(const BbfKeyColumn *column, Datum *keys, int n)
{
	return PointerGetDatum(construct_array(keys, n, column->type, column->typlen,
										   column->typbyval, column->typalign));
}

/*
 * The short ways of an insert; see the mode.  False: nothing is settled yet.
 *
 * The statement of one key does without the pinned search path where no user's
 * code can run in it: it names no function, and its only operator with its
 * schema, so it means the same under any path.
 */
static bool
settle_inserted(const Settling *settling, Datum *keys, int n)
{
	const BbfServed *served = settling->served;
	Datum		values[1] = {keys[0]};
	bool		isnull;
	int64		count;

	if (served->target_settle_one == NULL)
		return false;
	if (bbf_dequeue_keys(served, keys, n))
		return true;
	if (n == 1)
		return execute(settling, served->target_settle_one, values, served->one_code, !served->plain_update) == 1 ||
			!served->one_must_write;
	if (served->target_count_new == NULL)
		return false;

	values[0] = key_array(&served->target_key, keys, n);
	execute(settling, served->target_count_new, values, SPI_OK_SELECT, true);
	count = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	SPI_freetuptable(SPI_tuptable);
	if (count != n)
		return false;
	execute(settling, served->target_settle_new, values, SPI_OK_UPDATE, true);
	return true;
}

/* Run the steps that settle some keys of an event. */
static void
settle_keys(const Settling *settling, BbfEvent event, Datum *keys, int n)
{
	const BbfServed *served = settling->served;
	const BbfKeyColumn *column = key_column(served, event);
	const BbfKeyColumn *held = &served->target_key;
	Datum		values[2] = {key_array(column, keys, n)};
	Datum		rows[1];

	for (int i = 0; i < served->nsteps[event]; i++)
	{
		const BbfStep *step = &served->steps[event][i];
		uint64		processed = execute(settling, served->plans[event][i],
										step->takes == BBF_TAKES_ROWS ? rows : values,
										step->expected, true);

		if (step->gives == BBF_GIVES_ROWS)
		{
			if (processed == 0)
				return;
			rows[0] = returned_array(TIDOID, sizeof(ItemPointerData), false, TYPALIGN_SHORT);
		}
		else if (step->gives == BBF_GIVES_HELD)
			values[1] = returned_array(held->type, held->typlen, held->typbyval, held->typalign);
		if (step->expected == SPI_OK_SELECT)
			SPI_freetuptable(SPI_tuptable);
	}
}

/*
 * Settle some keys.  A trigger of the user's that our own write fires may delete
 * target rows, after we have looked: then look again, the long way.  (A trigger
 * that does so every time is left to the sweep.)
 */
static void
settle_some(const Settling *settling, BbfEvent event, Datum *keys, int n)
{
	const BbfServed *served = settling->served;
	const char *job = settling->job;

	for (int i = 0; i < MAX_LOOKS; i++)
	{
		uint64		removals = bbf_keyset_removals(job);

		/* what an insert's own triggers have changed again is no insert */
		if (event == BBF_SOURCE_INSERT && n == 1 && served->source_settle_one &&
			!bbf_keyset_source_updated(job))
			execute(settling, served->source_settle_one, keys, SPI_OK_INSERT, !served->plain_update);
		else if (event == BBF_TARGET_INSERT && removals > 0)
			settle_keys(settling, BBF_TARGET_CHANGE, keys, n);
		else if (!(event == BBF_TARGET_INSERT && settle_inserted(settling, keys, n)))
			settle_keys(settling, event, keys, n);
		if (bbf_keyset_removals(job) == removals)
			break;
	}
}

static void
fail_to_serialize(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("could not serialize access due to concurrent update")));
}

/*
 * R8: a transaction that keeps its snapshot must see the rows that the settled keys
 * have now, and no others.  What others have committed since may have been written,
 * locked or found right above, and an upsert knows no such check: it would see a row
 * twice, with the old group and the new, or one that is gone, or none.
 *
 * New target rows only take keys out of a table of pending keys.  One that is shown all
 * the same is stale, which a key may be there; so they are spared that.
 */
static void
check_seen(const BbfServed *served, BbfEvent event, Datum *keys, int n)
{
	bool		of_source = bbf_event_of_source(event);
	const BbfKeyColumn *column = of_source ? &served->source_key : &served->target_key;
	const char *sql = of_source ? served->places_by_source_key : served->places_by_target_key;
	Oid			types[] = {column->array_type};
	Datum		values[] = {key_array(column, keys, n)};
	int			nestlevel = bbf_session_pin_plan(true);
	uint64		there = bbf_sql_run_latest(served->owner, sql, 1, types, values, NULL, SPI_OK_SELECT, true);
	SPITupleTable *now = SPI_tuptable;
	uint64		seen = bbf_sql_run_as_seen(served->owner, sql, 1, types, values, NULL, SPI_OK_SELECT);

	if (there != seen)
		fail_to_serialize();
	for (uint64 i = 0; i < seen; i++)
	{
		bool		isnull;
		Datum		a = SPI_getbinval(now->vals[i], now->tupdesc, 1, &isnull);
		Datum		b = SPI_getbinval(SPI_tuptable->vals[i], now->tupdesc, 1, &isnull);

		if (!ItemPointerEquals((ItemPointer) DatumGetPointer(a), (ItemPointer) DatumGetPointer(b)))
			fail_to_serialize();
	}
	SPI_freetuptable(SPI_tuptable);
	SPI_freetuptable(now);
	bbf_session_unpin(nestlevel);
}

/*
 * Claims on these rows may have been answered, by what is gone now: see answered.c.
 * Claims have a key as the source row writes it, which may not be how the target does.
 */
static void
note_answered(const char *job, const BbfServed *served, const BbfKeySet *set)
{
	const BbfKeyColumn *column = &served->target_key;
	SPITupleTable *own = NULL;
	uint64		n = set->n;
	int			nestlevel;
	char	  **texts;

	if (!bbf_lease_any(job))
		return;
	nestlevel = bbf_session_pin_plan(true);
	bbf_session_pin_keys();
	if (served->own_keys)
	{
		Oid			types[] = {column->array_type};
		Datum		values[] = {key_array(column, set->keys, set->n)};

		n = bbf_sql_run_latest(served->owner, served->own_keys, 1, types, values, NULL, SPI_OK_SELECT, true);
		own = SPI_tuptable;
		column = &served->source_key;
	}
	texts = palloc(sizeof(char *) * Max(n, 1));
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		Datum		key = own ? SPI_getbinval(own->vals[i], own->tupdesc, 1, &isnull) : set->keys[i];

		texts[i] = bbf_value_out(column->owner, column->type, key);
	}
	bbf_answered_note(job, texts, (int) n);
	SPI_freetuptable(own);
	bbf_session_unpin(nestlevel);
}

/*
 * Settle a set of keys, in key order, as the owner.  Where nobody's code but the
 * server's handles keys, the path is pinned for the statements that need it alone.
 */
static void
settle(const char *job, BbfServed *served, BbfEvent event, BbfKeySet *set)
{
	BbfKeyColumn *column = bbf_event_of_source(event) ? &served->source_key : &served->target_key;
	BbfUserContext before;
	Settling	settling = {.job = job, .served = served, .before = &before};

	if (set->n == 0 || set->type != column->type)
		return;
	bbf_usercontext_begin(served->owner, !served->plain_keys, &before);
	bbf_keyset_sort(set, column);
	SPI_connect();
	if (event == BBF_TARGET_CHANGE)
		note_answered(job, served, set);
	for (int i = 0; i < set->n; i += KEYS_AT_ONCE)
	{
		int			n = Min(KEYS_AT_ONCE, set->n - i);

		settle_some(&settling, event, set->keys + i, n);
		/* an insert only takes keys out: what a snapshot still shows of them is stale at worst */
		if (IsolationUsesXactSnapshot() &&
			!(event == BBF_TARGET_INSERT && served->table && bbf_keyset_removals(job) == 0))
			check_seen(served, event, set->keys + i, n);
	}
	SPI_finish();
	bbf_usercontext_end(&before);
}

/* What a trigger was fired by. */
static BbfEvent
event_of(const TriggerData *trigdata, bool of_source)
{
	bool		inserted = TRIGGER_FIRED_BY_INSERT(trigdata->tg_event);

	if (!of_source)
		return inserted ? BBF_TARGET_INSERT : BBF_TARGET_CHANGE;
	if (TRIGGER_FIRED_BY_DELETE(trigdata->tg_event))
		return BBF_SOURCE_DELETE;
	return inserted ? BBF_SOURCE_INSERT : BBF_SOURCE_UPDATE;
}

/*
 * Is this the trigger that adds new source rows one by one?  Not the one that
 * logical apply fires, which foreign keys do not guard.
 */
static bool
is_added_alone(const TriggerData *trigdata)
{
	return TRIGGER_FIRED_FOR_ROW(trigdata->tg_event) && trigdata->tg_trigger->tgnargs > 1 &&
		trigdata->tg_trigger->tgenabled == TRIGGER_FIRES_ON_ORIGIN;
}

/* Is this a row trigger that leaves it to a statement trigger to settle? */
static bool
collects(const TriggerData *trigdata)
{
	return TRIGGER_FIRED_FOR_ROW(trigdata->tg_event) && trigdata->tg_trigger->tgnargs == 1;
}

/*
 * Collect the keys of the event, or settle them.  row_keys: what row triggers
 * have collected for a statement trigger.  tried: the quickest way of a new source
 * row, in vain.
 */
static void
work_off(TriggerData *trigdata, BbfServed *served, BbfKeySet *row_keys, BbfEvent event, bool tried)
{
	const char *name = trigdata->tg_trigger->tgargs[0];
	BbfKeySet	set = {0};

	if (collects(trigdata))
	{
		bbf_keyset_collect_row(trigdata, key_column(served, event), event);
		return;
	}
	if (event == BBF_TARGET_CHANGE)
		bbf_keyset_note_removal(name);
	if (event != BBF_SOURCE_INSERT)
		bbf_enqueue_note_change(served);
	else if (is_added_alone(trigdata))
	{
		if (!tried && bbf_enqueue_row(served, trigdata->tg_trigslot))
			return;
		if (served->enqueue == NULL)
			event = BBF_SOURCE_UPDATE;	/* it may not even be eligible */
	}

	if (row_keys)
	{
		bbf_keyset_take(row_keys);
		settle(name, served, event, row_keys);
		bbf_keyset_drop(row_keys);
		return;
	}
	bbf_keyset_add_row(trigdata, key_column(served, event), &set);
	settle(name, served, event, &set);
}

/* The common part of both trigger functions. */
static Datum
follow(FunctionCallInfo fcinfo, bool of_source)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	const char *name;
	BbfServed  *served;
	BbfKeySet  *volatile row_keys = NULL;
	volatile bool tried = false;
	BbfEvent	event;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_AFTER(trigdata->tg_event) ||
		trigdata->tg_trigger->tgnargs < 1)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be called by an AFTER trigger of a job",
						of_source ? "source_changed" : "target_changed")));
	name = trigdata->tg_trigger->tgargs[0];
	event = event_of(trigdata, of_source);

	/* the quickest way of a new source row */
	if (event == BBF_SOURCE_INSERT && is_added_alone(trigdata) &&
		(served = bbf_served_peek(name, trigdata->tg_relation, true)) != NULL)
	{
		if (bbf_enqueue_row(served, trigdata->tg_trigslot))
			return PointerGetDatum(NULL);
		tried = !served->stale;
	}

	/* and of what is collected: the statement trigger looks at all there is to look at */
	if (collects(trigdata) && (served = bbf_served_peek(name, trigdata->tg_relation, of_source)) != NULL)
	{
		bbf_keyset_collect_row(trigdata, key_column(served, event), event);
		return PointerGetDatum(NULL);
	}

	/* a statement that collected nothing costs nothing */
	if (!TRIGGER_FIRED_FOR_ROW(trigdata->tg_event) &&
		(row_keys = bbf_keyset_collected(name, event)) == NULL)
		return PointerGetDatum(NULL);

	served = bbf_served_get(name, trigdata->tg_relation, of_source, true);
	if (served == NULL)
	{
		if (row_keys)
			bbf_keyset_drop(row_keys);
		return PointerGetDatum(NULL);
	}
	PG_TRY();
	{
		work_off(trigdata, served, row_keys, event, tried);
	}
	PG_FINALLY();
	{
		bbf_served_release(served);
	}
	PG_END_TRY();
	return PointerGetDatum(NULL);
}

/*
 * On a target, AFTER INSERT, DELETE, UPDATE; arguments: the job's name, and
 * 'row' for a row trigger that settles at once.
 */
Datum
bgw_backfill_target_changed(PG_FUNCTION_ARGS)
{
	return follow(fcinfo, false);
}

/* On a source, AFTER INSERT, UPDATE, DELETE; arguments as above. */
Datum
bgw_backfill_source_changed(PG_FUNCTION_ARGS)
{
	return follow(fcinfo, true);
}

/* The job that a TRUNCATE trigger serves; NULL if it cannot be served. */
static BbfServed *
truncated(FunctionCallInfo fcinfo, bool of_source)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_BY_TRUNCATE(trigdata->tg_event) ||
		trigdata->tg_trigger->tgnargs < 1)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be called by a TRUNCATE trigger of a job",
						of_source ? "source_truncated" : "target_truncated")));
	return bbf_served_get(trigdata->tg_trigger->tgargs[0], trigdata->tg_relation, of_source, of_source);
}

/* On a target, AFTER TRUNCATE; argument: the job's name. */
Datum
bgw_backfill_target_truncated(PG_FUNCTION_ARGS)
{
	BbfServed  *served = truncated(fcinfo, false);

	if (served == NULL)
		return PointerGetDatum(NULL);
	bbf_served_release(served);
	SPI_connect();
	bbf_job_restart_fill(((TriggerData *) fcinfo->context)->tg_trigger->tgargs[0]);
	SPI_finish();
	bbf_wake_at_commit();
	return PointerGetDatum(NULL);
}

/*
 * On a source, AFTER TRUNCATE; argument: the job's name.  Nothing is pending any
 * more.  The source is locked against everybody, and so no batch is between, nor
 * anybody who may add a key and does not look at the source again.  The keys are
 * deleted: to truncate their table would wait for who reads it.  All that are there
 * now, not those of the caller's snapshot (R8); what that still shows then, because
 * others have changed it since, is a serialization failure.
 */
Datum
bgw_backfill_source_truncated(PG_FUNCTION_ARGS)
{
	BbfServed  *served = truncated(fcinfo, true);
	BbfUserContext before;
	Oid			owner;
	char	   *table;

	if (served == NULL)
		return PointerGetDatum(NULL);
	owner = served->owner;
	table = served->table ? pstrdup(served->table) : NULL;
	bbf_served_release(served);
	if (table == NULL)
		return PointerGetDatum(NULL);
	bbf_usercontext_begin(owner, true, &before);
	SPI_connect();
	(void) bbf_sql_run_latest(owner, psprintf("DELETE FROM ONLY %s", table), 0, NULL, NULL, NULL, SPI_OK_DELETE, false);
	if (IsolationUsesXactSnapshot() &&
		bbf_sql_run_as_seen(owner, psprintf("SELECT FROM ONLY %s LIMIT 1", table), 0, NULL, NULL, NULL, SPI_OK_SELECT) > 0)
		fail_to_serialize();
	SPI_finish();
	bbf_usercontext_end(&before);
	return PointerGetDatum(NULL);
}
