/*
 * keyset.c
 *		Sets of keys: what a statement touched.
 *
 * An INSERT's or a DELETE's keys are read from its transition table when its
 * statement trigger runs.  An UPDATE's, and those of an INSERT of which only some
 * rows count, are collected row by row before that, and kept for the statement
 * trigger in memory of the transaction.
 */
#include "postgres.h"

#include "executor/executor.h"
#include "keyset.h"
#include "lib/qunique.h"
#include "miscadmin.h"
#include "utils/datum.h"
#include "utils/memutils.h"
#include "utils/tuplestore.h"
#include "value.h"

/*
 * Keys collected by row triggers of statements under way in this transaction;
 * in collect_context, a child of TopTransactionContext.  A nested statement on
 * the same table works off what the outer one has collected so far: its rows
 * are written already, so that is only early.
 */
static MemoryContext collect_context = NULL;
static MemoryContext keys_context = NULL;	/* a child of it, for the keys */
static List *collected = NIL;
static int	users = 0;			/* statements that use keys taken from it */

static void
forget_collected(void *arg)
{
	collect_context = NULL;
	keys_context = NULL;
	collected = NIL;
	users = 0;
}

/* Add a key to a set, in the current memory context. */
static void
add_key(BbfKeySet *set, const BbfKeyColumn *column, Datum key)
{
	if (set->n == set->size)
	{
		set->size = set->size ? set->size * 2 : 16;
		set->keys = set->keys ?
			repalloc_huge(set->keys, sizeof(Datum) * set->size) :
			palloc(sizeof(Datum) * set->size);
	}
	set->keys[set->n++] = datumCopy(key, column->typbyval, column->typlen);
}

static int
compare_keys(const void *a, const void *b, void *arg)
{
	BbfKeyColumn *column = arg;

	return DatumGetInt32(bbf_value_call(column->owner, &column->cmp, column->collation,
										*(const Datum *) a, *(const Datum *) b));
}

/* Read the keys of a transition table. */
void
bbf_keyset_read_table(Tuplestorestate *rows, Relation rel, const BbfKeyColumn *column, BbfKeySet *set)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(rel), &TTSOpsMinimalTuple);
	int			pointer = tuplestore_alloc_read_pointer(rows, EXEC_FLAG_REWIND);

	tuplestore_select_read_pointer(rows, pointer);
	tuplestore_rescan(rows);
	while (tuplestore_gettupleslot(rows, true, false, slot))
	{
		bool		isnull;
		Datum		key = slot_getattr(slot, column->attno, &isnull);

		CHECK_FOR_INTERRUPTS();
		if (!isnull)
			add_key(set, column, key);
	}
	ExecDropSingleTupleTableSlot(slot);
}

/* The set that row triggers of a job collect in for an event; NULL if none and not create. */
BbfKeySet *
bbf_keyset_collecting(const char *job, BbfEvent event, bool create)
{
	MemoryContext old;
	BbfKeySet  *set;
	ListCell   *lc;

	foreach(lc, collected)
	{
		set = lfirst(lc);
		if (set->event == event && strcmp(set->job, job) == 0)
			return set;
	}
	if (!create)
		return NULL;
	if (collect_context == NULL)
	{
		MemoryContextCallback *callback;

		collect_context = AllocSetContextCreate(TopTransactionContext, "bgw_backfill keys",
												ALLOCSET_DEFAULT_SIZES);
		keys_context = AllocSetContextCreate(collect_context, "bgw_backfill key arrays",
											 ALLOCSET_DEFAULT_SIZES);
		callback = MemoryContextAllocZero(collect_context, sizeof(*callback));
		callback->func = forget_collected;
		MemoryContextRegisterResetCallback(collect_context, callback);
	}
	old = MemoryContextSwitchTo(collect_context);
	set = palloc0(sizeof(BbfKeySet));
	strlcpy(set->job, job, NAMEDATALEN);
	set->event = event;
	collected = lappend(collected, set);
	MemoryContextSwitchTo(old);
	return set;
}

/* Free the keys of statements that are worked off, unless one is in use. */
static void
free_collected(void)
{
	ListCell   *lc;

	if (users > 0)
		return;
	foreach(lc, collected)
	{
		if (((BbfKeySet *) lfirst(lc))->n > 0)
			return;
	}
	foreach(lc, collected)
	{
		((BbfKeySet *) lfirst(lc))->keys = NULL;
		((BbfKeySet *) lfirst(lc))->size = 0;
	}
	MemoryContextReset(keys_context);
}

/* How often this transaction has deleted or changed rows of the job's target. */
uint64
bbf_keyset_removals(const char *job)
{
	BbfKeySet  *set = bbf_keyset_collecting(job, BBF_TARGET_CHANGE, false);

	return set ? set->removals : 0;
}

/* Add the keys of one row of an event: of an update the new one, and the old one where it counts. */
void
bbf_keyset_add_row(TriggerData *trigdata, const BbfKeyColumn *column, BbfKeySet *set)
{
	TupleTableSlot *slots[] = {trigdata->tg_trigslot,
		TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event) ? trigdata->tg_newslot : NULL};

	for (int i = 0; i < (int) lengthof(slots); i++)
	{
		bool		isnull;
		Datum		key;

		if (slots[i] == NULL || (i == 0 && slots[1] != NULL && !column->old_too))
			continue;
		key = slot_getattr(slots[i], column->attno, &isnull);
		if (!isnull)
			add_key(set, column, key);
	}
}

/* Add a row's keys to what its statement has collected. */
void
bbf_keyset_collect_row(TriggerData *trigdata, const BbfKeyColumn *column, BbfEvent event)
{
	BbfKeySet  *set = bbf_keyset_collecting(trigdata->tg_trigger->tgargs[0], event, true);
	MemoryContext old = MemoryContextSwitchTo(keys_context);

	bbf_keyset_add_row(trigdata, column, set);
	MemoryContextSwitchTo(old);
}

/* Take over what has been collected; give it back with bbf_keyset_done(). */
BbfKeySet
bbf_keyset_take(BbfKeySet *collected_set)
{
	BbfKeySet	set = *collected_set;

	collected_set->keys = NULL;
	collected_set->n = collected_set->size = 0;
	users++;
	return set;
}

/* What was taken over is worked off. */
void
bbf_keyset_done(void)
{
	users--;
	free_collected();
}

/* Sort a set and drop what it has twice, as the owner. */
void
bbf_keyset_sort(BbfKeySet *set, BbfKeyColumn *column)
{
	qsort_arg(set->keys, set->n, sizeof(Datum), compare_keys, column);
	set->n = (int) qunique_arg(set->keys, set->n, sizeof(Datum), compare_keys, column);
}
