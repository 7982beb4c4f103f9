/*
 * keyset.c
 *		Sets of keys: what a statement touched.
 *
 * The keys are collected row by row, by row triggers, and kept for the statement
 * trigger in memory of the subtransaction.  A transition table would hold the rows
 * whole, and these are wide.
 */
#include "postgres.h"

#include "access/xact.h"
#include "keyset.h"
#include "lib/qunique.h"
#include "utils/datum.h"
#include "utils/memutils.h"
#include "value.h"

/*
 * Keys collected by row triggers of statements under way: a set for each job, event and
 * subtransaction, in a context of its own that goes with that subtransaction.
 *
 * R18: a statement's row triggers and its statement trigger are fired in the
 * statement's own subtransaction.  A trigger of the user's that comes between them may
 * nest a statement on the same table.  In the same subtransaction that one works off
 * what the outer one has collected so far: those rows are written already, so that is
 * only early, and nothing can undo the one without the other.  In a subtransaction of
 * its own, as an exception block is, it finds and works off nothing but its own keys:
 * what it does may be undone, and the outer statement's keys must be settled then.
 */
static dlist_head collected = DLIST_STATIC_INIT(collected);

/*
 * What this transaction has done to a job's rows, in TopTransactionContext.  What a
 * subtransaction has done counts even if it is undone: the long ways, that are taken
 * after it, are right in any case.
 */
typedef struct Deeds
{
	struct Deeds *next;
	char		job[NAMEDATALEN];
	uint64		removals;		/* events that deleted or changed target rows */
	bool		source_updated;
} Deeds;

static Deeds *all_deeds = NULL;

static void
forget_deeds(void *arg)
{
	all_deeds = NULL;
}

static void
forget_set(void *arg)
{
	BbfKeySet  *set = arg;

	if (set->listed)
		dlist_delete(&set->node);
}

/* Add a key to a set, in the current memory context. */
static void
add_key(BbfKeySet *set, const BbfKeyColumn *column, Datum key)
{
	if (set->type != column->type)
		set->n = 0;				/* left by a statement whose own trigger was disabled */
	set->type = column->type;
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

/* What the transaction has done to a job's rows; NULL if nothing and not create. */
static Deeds *
deeds_of(const char *job, bool create)
{
	Deeds	   *deeds;
	MemoryContextCallback *callback;

	for (deeds = all_deeds; deeds; deeds = deeds->next)
	{
		if (strcmp(deeds->job, job) == 0)
			return deeds;
	}
	if (!create)
		return NULL;
	if (all_deeds == NULL)
	{
		callback = MemoryContextAllocZero(TopTransactionContext, sizeof(*callback));
		callback->func = forget_deeds;
		MemoryContextRegisterResetCallback(TopTransactionContext, callback);
	}
	deeds = MemoryContextAllocZero(TopTransactionContext, sizeof(Deeds));
	strlcpy(deeds->job, job, NAMEDATALEN);
	deeds->next = all_deeds;
	all_deeds = deeds;
	return deeds;
}

/* This transaction deletes or changes rows of the job's target. */
void
bbf_keyset_note_removal(const char *job)
{
	deeds_of(job, true)->removals++;
}

/* How often it has. */
uint64
bbf_keyset_removals(const char *job)
{
	Deeds	   *deeds = deeds_of(job, false);

	return deeds ? deeds->removals : 0;
}

/* Has it changed rows of the job's source in what counts? */
bool
bbf_keyset_source_updated(const char *job)
{
	Deeds	   *deeds = deeds_of(job, false);

	return deeds && deeds->source_updated;
}

/* What row triggers of a job have collected for an event in this subtransaction, or NULL. */
BbfKeySet *
bbf_keyset_collected(const char *job, BbfEvent event)
{
	SubTransactionId subid = GetCurrentSubTransactionId();
	dlist_iter	iter;

	dlist_foreach(iter, &collected)
	{
		BbfKeySet  *set = dlist_container(BbfKeySet, node, iter.cur);

		if (set->subid == subid && set->event == event && strcmp(set->job, job) == 0)
			return set;
	}
	return NULL;
}

static BbfKeySet *
begin_set(const char *job, BbfEvent event)
{
	/* a child, so that nothing is left of a subtransaction that has worked its keys off */
	MemoryContext context = AllocSetContextCreate(CurTransactionContext, "bgw_backfill keys",
												  ALLOCSET_DEFAULT_SIZES);
	BbfKeySet  *set = MemoryContextAllocZero(context, sizeof(BbfKeySet));

	set->context = context;
	set->subid = GetCurrentSubTransactionId();
	set->event = event;
	strlcpy(set->job, job, NAMEDATALEN);
	set->forget.func = forget_set;
	set->forget.arg = set;
	MemoryContextRegisterResetCallback(context, &set->forget);
	dlist_push_head(&collected, &set->node);
	set->listed = true;
	return set;
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
	const char *job = trigdata->tg_trigger->tgargs[0];
	BbfKeySet  *set = bbf_keyset_collected(job, event);
	MemoryContext old;

	if (set == NULL)
	{
		set = begin_set(job, event);
		if (event == BBF_SOURCE_UPDATE)
			deeds_of(job, true)->source_updated = true;
		else if (event == BBF_TARGET_CHANGE)
			bbf_keyset_note_removal(job);
	}
	old = MemoryContextSwitchTo(set->context);
	bbf_keyset_add_row(trigdata, column, set);
	MemoryContextSwitchTo(old);
}

/* Take over what has been collected: statements from now on collect anew. */
void
bbf_keyset_take(BbfKeySet *set)
{
	forget_set(set);
	set->listed = false;
}

/* What has been collected, or was taken over, is worked off. */
void
bbf_keyset_drop(BbfKeySet *set)
{
	MemoryContextDelete(set->context);
}

/* Sort a set and drop what it has twice, as the owner. */
void
bbf_keyset_sort(BbfKeySet *set, BbfKeyColumn *column)
{
	qsort_arg(set->keys, set->n, sizeof(Datum), compare_keys, column);
	set->n = (int) qunique_arg(set->keys, set->n, sizeof(Datum), compare_keys, column);
}
