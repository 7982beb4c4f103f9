/*
 * trigger.c
 *		The trigger functions on sources and targets.
 *
 * A trigger turns a statement into the set of keys that it touched, and settles
 * those keys with two saved statements of the job's mode: one that locks, one
 * that decides with a snapshot taken after the locks (GetLatestSnapshot, as
 * foreign-key checks do, so that a repeatable-read caller decides right: R8).
 * An insert first tries a statement that does both for rows whose answer it
 * changes; unless that was all of them, it goes on with the two.  (Not after a
 * statement of this transaction has deleted or changed target rows: that may
 * have been a trigger or a function that the insert itself called, before us.)
 * No row is left
 * without a lock: a trigger that looked first and did nothing because the
 * flag was right already would hold no lock, and a batch that decides at the
 * same time with an older view would win (R1).
 *
 * Keys come from the transition table, or for UPDATE from a row trigger that
 * only collects (its WHEN lets through the rows whose key or condition columns
 * really change); they are sorted, so that two statements lock common rows in
 * the same order (R9), and given to the saved statements as one array: a plan
 * over a transition table would be kept as it was first made, for a bulk load.
 *
 * R11: inside one transaction the triggers run after each statement and see its
 * own work, savepoints or not; what is rolled back takes its flags and its locks
 * along, because a trigger locks and writes in the subtransaction of its
 * statement.
 *
 * R7: TRUNCATE of the target puts the job back to phase fill, in the same
 * transaction.  It holds the target's exclusive lock, so no batch and no other
 * trigger is in between; the job's row comes last in its lock order as well.
 *
 * They run with the rights of the source's owner, as foreign-key checks do, not
 * restricted (a deferred trigger of the owner's must be possible), search path
 * and row security pinned.  They serve no table but their own job's.  One that
 * cannot do its work lets the write pass with a WARNING: the application's data
 * goes first, and the next sweep mends the state.
 *
 * What is known about a job is cached per backend and dropped by relcache
 * invalidation of its tables and of the table of jobs.  A trigger's own UPDATE
 * can fire another of our triggers, so an entry may be replaced while it is in
 * use further up: whoever uses one holds a reference.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "compat.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "lib/qunique.h"
#include "mode.h"
#include "trigger.h"
#include "txn.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/snapmgr.h"
#include "utils/typcache.h"
#include "wake.h"

PG_FUNCTION_INFO_V1(bgw_backfill_target_changed);
PG_FUNCTION_INFO_V1(bgw_backfill_source_changed);
PG_FUNCTION_INFO_V1(bgw_backfill_target_truncated);

/* keys given to one execution of a saved statement */
#define KEYS_AT_ONCE 10000

/* a key column and how to handle arrays of its type */
typedef struct KeyColumn
{
	AttrNumber	attno;
	Oid			type;
	Oid			array_type;
	Oid			collation;
	int16		typlen;
	bool		typbyval;
	char		typalign;
	FmgrInfo	cmp;
} KeyColumn;

/* what a trigger knows about its job */
typedef struct ServedJob
{
	MemoryContext context;		/* all of it lives here */
	int			references;
	bool		stale;
	Oid			job_table;
	Oid			source;
	Oid			target;
	Oid			source_schema;
	Oid			target_schema;
	Oid			owner;
	KeyColumn	source_key;
	KeyColumn	target_key;
	SPIPlanPtr	target_settle_new;
	SPIPlanPtr	target_lock;
	SPIPlanPtr	target_settle;
	SPIPlanPtr	source_lock_matches;
	SPIPlanPtr	source_settle;
} ServedJob;

typedef struct CacheEntry
{
	char		name[NAMEDATALEN];
	ServedJob  *served;
} CacheEntry;

/* a set of keys */
typedef struct KeySet
{
	char		job[NAMEDATALEN];
	bool		of_source;
	bool		removed;		/* target rows were deleted or changed */
	Datum	   *keys;
	int			n;
	int			size;
} KeySet;

static HTAB *cache = NULL;

/*
 * Keys collected by row triggers of statements under way in this transaction;
 * in collect_context, a child of TopTransactionContext.  A nested statement on
 * the same table works off what the outer one has collected so far: its rows
 * are written already, so that is only early.
 */
static MemoryContext collect_context = NULL;
static MemoryContext keys_context = NULL;	/* a child of it, for the keys */
static List *collected = NIL;
static int	settling = 0;		/* depth of statements that use keys_context */

static void
relcache_callback(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS status;
	CacheEntry *entry;

	if (cache == NULL)
		return;
	hash_seq_init(&status, cache);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		ServedJob  *served = entry->served;

		if (served && (relid == InvalidOid || relid == served->job_table ||
					   relid == served->source || relid == served->target))
			served->stale = true;
	}
}

/* Once per process that has the library. */
void
bbf_trigger_init(void)
{
	CacheRegisterRelcacheCallback(relcache_callback, (Datum) 0);
}

static void
forget_collected(void *arg)
{
	collect_context = NULL;
	keys_context = NULL;
	collected = NIL;
	settling = 0;
}

/* Describe a key column. */
static void
init_key(KeyColumn *key, AttrNumber attno, Oid type, Oid collation, MemoryContext context)
{
	TypeCacheEntry *cached = lookup_type_cache(type, TYPECACHE_CMP_PROC_FINFO);

	key->attno = attno;
	key->type = type;
	key->array_type = get_array_type(type);
	key->collation = collation;
	get_typlenbyvalalign(type, &key->typlen, &key->typbyval, &key->typalign);
	if (!OidIsValid(cached->cmp_proc) || !OidIsValid(key->array_type))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("type %s cannot be a key", format_type_be(type))));
	fmgr_info_cxt(cached->cmp_proc, &key->cmp, context);
}

/*
 * Save a statement for good, planned here and now, once for all keys: by the
 * index on the key or by place, never by reading a table or in the heap's order
 * (which would lock rows in that order), however small the table is today.
 */
static SPIPlanPtr
save_plan(const char *sql, int nargs, Oid *types)
{
	SPIPlanPtr	plan = SPI_prepare_cursor(sql, nargs, types, CURSOR_OPT_GENERIC_PLAN);
	CachedPlan *cplan;

	if (plan == NULL)
		elog(ERROR, "SPI_prepare_cursor returned %s for \"%s\"",
			 SPI_result_code_string(SPI_result), sql);
	SPI_keepplan(plan);
	cplan = SPI_plan_get_cached_plan(plan);
	if (cplan)
		ReleaseCachedPlan(cplan, CurrentResourceOwner);
	return plan;
}

/* Run by the rules of foreign-key checks; returns what to restore. */
static void
become(Oid owner, Oid *save_userid, int *save_context)
{
	GetUserIdAndSecContext(save_userid, save_context);
	SetUserIdAndSecContext(owner, *save_context | SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_NOFORCE_RLS);
}

/* Read a job and prepare its statements.  An error if that can't be done. */
static void
build(ServedJob *served, const char *name)
{
	BbfJob	   *job = bbf_job_load(name);
	const BbfMode *mode;
	BbfPair    *pair;
	char	   *missing;
	char	   *short_way;
	Oid			types[2];
	Oid			save_userid;
	int			save_context;
	int			nestlevel;

	if (job == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("job \"%s\" does not exist", name)));
	served->job_table = get_relname_relid("job", get_namespace_oid("bgw_backfill", false));
	served->source = bbf_job_source(job);
	served->target = bbf_job_target(job);
	mode = bbf_mode_lookup(job->mode);
	pair = bbf_pair_load(job);
	missing = mode->missing(job, pair);
	if (missing && strstr(missing, "default") == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("%s is missing", missing)));
	served->owner = pair->owner;
	if (!bbf_job_belongs_to(job, pair->owner))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the source does not belong to role \"%s\" any more", job->owner)));
	served->source_schema = get_rel_namespace(pair->source);
	served->target_schema = get_rel_namespace(pair->target);
	init_key(&served->source_key, pair->source_key_att, pair->key_type,
			 pair->key_collation, served->context);
	init_key(&served->target_key, pair->target_key_att, pair->target_key_type,
			 pair->key_collation, served->context);

	become(served->owner, &save_userid, &save_context);
	nestlevel = NewGUCNestLevel();
	bbf_txn_pin_text();
	(void) set_config_option("enable_seqscan", "off", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("enable_bitmapscan", "off", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	types[0] = served->target_key.array_type;
	if ((short_way = mode->target_settle_new(job, pair)) != NULL)
		served->target_settle_new = save_plan(short_way, 1, types);
	served->target_lock = save_plan(mode->target_lock(job, pair), 1, types);
	types[0] = TIDARRAYOID;
	served->target_settle = save_plan(mode->target_settle(job, pair), 1, types);
	types[0] = served->source_key.array_type;
	types[1] = served->target_key.array_type;
	served->source_lock_matches = save_plan(mode->source_lock_matches(job, pair), 1, types);
	served->source_settle = save_plan(mode->source_settle(job, pair), 2, types);
	bbf_txn_unpin(nestlevel);
	SetUserIdAndSecContext(save_userid, save_context);
}

/* The entry's saved statements. */
#define SERVED_PLANS(served) \
	{(served)->target_settle_new, (served)->target_lock, (served)->target_settle, \
	 (served)->source_lock_matches, (served)->source_settle}

/* Free an entry's memory and plans, once nobody uses it. */
static void
release(ServedJob *served)
{
	SPIPlanPtr	plans[] = SERVED_PLANS(served);

	if (--served->references > 0)
		return;
	for (int i = 0; i < (int) lengthof(plans); i++)
	{
		if (plans[i])
			SPI_freeplan(plans[i]);
	}
	MemoryContextDelete(served->context);
}

/* Can the entry be used as it is?  A plan's own dependencies count as well. */
static bool
is_current(const ServedJob *served)
{
	SPIPlanPtr	plans[] = SERVED_PLANS(served);

	for (int i = 0; i < (int) lengthof(plans); i++)
	{
		if (plans[i] && !SPI_plan_is_valid(plans[i]))
			return false;
	}
	return !served->stale;
}

/* What lets a write pass rather than fail it. */
static void
warn(const char *name, Relation rel, const char *why)
{
	ereport(WARNING,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("job \"%s\" cannot follow changes of table \"%s\"",
					name, RelationGetRelationName(rel)),
			 errdetail_internal("%s", why),
			 errhint("The change goes through. See bgw_backfill.progress; the next verify mends the job's state.")));
}

/*
 * Build an entry under a subtransaction, so that what is wrong with the job
 * becomes a WARNING.  Being cancelled or out of resources is passed on.
 */
static ServedJob *
try_build(const char *name, Relation rel)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "bgw_backfill trigger",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old_context = CurrentMemoryContext;
	ResourceOwner old_owner = CurrentResourceOwner;
	ServedJob  *volatile served = MemoryContextAllocZero(context, sizeof(ServedJob));

	served->context = context;
	served->references = 1;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(old_context);
	PG_TRY();
	{
		SPI_connect();
		build(served, name);
		SPI_finish();
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *edata;
		int			category;

		MemoryContextSwitchTo(old_context);
		edata = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		CurrentResourceOwner = old_owner;
		MemoryContextSwitchTo(old_context);
		release(served);
		served = NULL;
		category = ERRCODE_TO_CATEGORY(edata->sqlerrcode);
		if (category == ERRCODE_INSUFFICIENT_RESOURCES ||
			category == ERRCODE_OPERATOR_INTERVENTION ||
			category == ERRCODE_TRANSACTION_ROLLBACK ||
			edata->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE)
			ReThrowError(edata);
		warn(name, rel, edata->message);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old_context);
	CurrentResourceOwner = old_owner;
	return served;
}

/* Has the owner still got what settling takes?  Rights may go at any time. */
static const char *
rights_lost(const ServedJob *served)
{
	if (bbf_relation_aclcheck(served->source, served->owner, ACL_SELECT) != ACLCHECK_OK ||
		bbf_relation_aclcheck(served->source, served->owner, ACL_UPDATE) != ACLCHECK_OK)
		return "The source's owner has no right to read and update it.";
	if (bbf_relation_aclcheck(served->target, served->owner, ACL_SELECT) != ACLCHECK_OK)
		return "The source's owner has no right to read the target.";
	if (bbf_schema_aclcheck(served->source_schema, served->owner, ACL_USAGE) != ACLCHECK_OK ||
		bbf_schema_aclcheck(served->target_schema, served->owner, ACL_USAGE) != ACLCHECK_OK)
		return "The source's owner has no right to use the tables' schemas.";
	return NULL;
}

/*
 * The job of a trigger's first argument, with a reference taken; NULL, after a
 * warning, if it cannot be served.
 */
static ServedJob *
serve(const char *name, Relation rel, bool of_source, bool needs_rights)
{
	CacheEntry *entry;
	const char *why;
	bool		found;

	if (cache == NULL)
	{
		HASHCTL		ctl = {.keysize = NAMEDATALEN, .entrysize = sizeof(CacheEntry)};

		cache = hash_create("bgw_backfill jobs", 16, &ctl, HASH_ELEM | HASH_STRINGS);
	}
	entry = hash_search(cache, name, HASH_ENTER, &found);
	if (!found)
		entry->served = NULL;
	if (entry->served && !is_current(entry->served))
	{
		ServedJob  *old = entry->served;

		entry->served = NULL;
		release(old);
	}
	if (entry->served == NULL)
	{
		ServedJob  *served = try_build(name, rel);

		/* building may have called us, and made one meanwhile */
		entry = hash_search(cache, name, HASH_ENTER, &found);
		if (found && entry->served && served)
			release(entry->served);
		entry->served = served;
		if (served == NULL)
			return NULL;
	}
	if (RelationGetRelid(rel) != (of_source ? entry->served->source : entry->served->target))
	{
		warn(name, rel, "The table is not the job's.");
		return NULL;
	}
	if (needs_rights && (why = rights_lost(entry->served)) != NULL)
	{
		warn(name, rel, why);
		return NULL;
	}
	entry->served->references++;
	return entry->served;
}

/* Add a key to a set, in the current memory context. */
static void
add_key(KeySet *set, const KeyColumn *column, Datum key)
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
	KeyColumn  *column = arg;

	return DatumGetInt32(FunctionCall2Coll(&column->cmp, column->collation,
										   *(const Datum *) a, *(const Datum *) b));
}

/* Read the keys of a transition table. */
static void
read_transition_table(Tuplestorestate *rows, Relation rel, const KeyColumn *column, KeySet *set)
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

/*
 * Run one of the saved statements with a snapshot of now.  The search path is
 * pinned for each: the one before may have fired a trigger that set it.
 */
static uint64
execute(SPIPlanPtr plan, Datum *values, int expected)
{
	MemoryContext context = CurrentMemoryContext;
	int			nestlevel = bbf_txn_pin();
	int			rc = SPI_execute_snapshot(plan, values, NULL, GetLatestSnapshot(),
										  InvalidSnapshot, false, true, 0);

	bbf_txn_unpin(nestlevel);
	MemoryContextSwitchTo(context);
	if (rc != expected)
		elog(ERROR, "SPI_execute_snapshot returned %s", SPI_result_code_string(rc));
	return SPI_processed;
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

static Datum
key_array(const KeyColumn *column, Datum *keys, int n)
{
	return PointerGetDatum(construct_array(keys, n, column->type, column->typlen,
										   column->typbyval, column->typalign));
}

/* Settle the source rows of some keys of the target. */
static void
settle_target_keys(const ServedJob *served, Datum *keys, int n, bool inserted)
{
	Datum		values[1] = {key_array(&served->target_key, keys, n)};

	if (inserted && served->target_settle_new &&
		execute(served->target_settle_new, values, SPI_OK_UPDATE) == (uint64) n)
		return;
	if (execute(served->target_lock, values, SPI_OK_SELECT) == 0)
		return;
	values[0] = returned_array(TIDOID, sizeof(ItemPointerData), false, TYPALIGN_SHORT);
	SPI_freetuptable(SPI_tuptable);
	execute(served->target_settle, values, SPI_OK_UPDATE);
}

/* Settle source rows that are new, or have a new key. */
static void
settle_source_keys(const ServedJob *served, Datum *keys, int n)
{
	const KeyColumn *held = &served->target_key;
	Datum		values[2] = {key_array(&served->source_key, keys, n)};

	execute(served->source_lock_matches, values, SPI_OK_SELECT);
	values[1] = returned_array(held->type, held->typlen, held->typbyval, held->typalign);
	SPI_freetuptable(SPI_tuptable);
	execute(served->source_settle, values, SPI_OK_UPDATE);
}

/* Settle a set of keys, in key order. */
static void
settle(ServedJob *served, KeySet *set, bool of_source, bool inserted)
{
	KeyColumn  *column = of_source ? &served->source_key : &served->target_key;
	Oid			save_userid;
	int			save_context;

	if (set->n == 0)
		return;
	qsort_arg(set->keys, set->n, sizeof(Datum), compare_keys, column);
	set->n = (int) qunique_arg(set->keys, set->n, sizeof(Datum), compare_keys, column);

	become(served->owner, &save_userid, &save_context);
	SPI_connect();
	for (int i = 0; i < set->n; i += KEYS_AT_ONCE)
	{
		int			n = Min(KEYS_AT_ONCE, set->n - i);

		if (of_source)
			settle_source_keys(served, set->keys + i, n);
		else
			settle_target_keys(served, set->keys + i, n, inserted);
	}
	SPI_finish();
	SetUserIdAndSecContext(save_userid, save_context);
}

/* The set that row triggers of a job collect in; NULL if none and not create. */
static KeySet *
collecting(const char *job, bool of_source, bool create)
{
	MemoryContext old;
	KeySet	   *set;
	ListCell   *lc;

	foreach(lc, collected)
	{
		set = lfirst(lc);
		if (set->of_source == of_source && strcmp(set->job, job) == 0)
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
	set = palloc0(sizeof(KeySet));
	strlcpy(set->job, job, NAMEDATALEN);
	set->of_source = of_source;
	collected = lappend(collected, set);
	MemoryContextSwitchTo(old);
	return set;
}

/* Free the keys of statements that are worked off, unless one is in use. */
static void
free_collected(void)
{
	ListCell   *lc;

	if (settling > 0)
		return;
	foreach(lc, collected)
	{
		if (((KeySet *) lfirst(lc))->n > 0)
			return;
	}
	foreach(lc, collected)
	{
		((KeySet *) lfirst(lc))->keys = NULL;
		((KeySet *) lfirst(lc))->size = 0;
	}
	MemoryContextReset(keys_context);
}

/* Has this transaction deleted or changed rows of the job's target? */
static bool
has_removed(const char *job)
{
	KeySet	   *set = collecting(job, false, false);

	return set && set->removed;
}

/* Add the keys of one row of an event. */
static void
add_row_keys(TriggerData *trigdata, const KeyColumn *column, KeySet *set)
{
	TupleTableSlot *slots[] = {trigdata->tg_trigslot,
		TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event) ? trigdata->tg_newslot : NULL};

	for (int i = 0; i < (int) lengthof(slots); i++)
	{
		bool		isnull;
		Datum		key;

		if (slots[i] == NULL)
			continue;
		key = slot_getattr(slots[i], column->attno, &isnull);
		if (!isnull)
			add_key(set, column, key);
	}
}

/*
 * Collect the keys of the event, or settle them.  row_keys: what row triggers
 * have collected for an UPDATE's statement trigger.
 */
static void
work_off(TriggerData *trigdata, ServedJob *served, KeySet *row_keys, bool of_source)
{
	const char *name = trigdata->tg_trigger->tgargs[0];
	KeyColumn  *column = of_source ? &served->source_key : &served->target_key;
	bool		inserted = TRIGGER_FIRED_BY_INSERT(trigdata->tg_event);
	KeySet		set = {0};

	if (!of_source && !inserted)
		collecting(name, false, true)->removed = true;

	if (row_keys)
	{
		set = *row_keys;
		row_keys->keys = NULL;
		row_keys->n = row_keys->size = 0;
		settling++;
		settle(served, &set, of_source, false);
		settling--;
		free_collected();
		return;
	}
	if (TRIGGER_FIRED_FOR_ROW(trigdata->tg_event) && trigdata->tg_trigger->tgnargs == 1)
	{
		KeySet	   *collect = collecting(name, of_source, true);
		MemoryContext old = MemoryContextSwitchTo(keys_context);

		add_row_keys(trigdata, column, collect);
		MemoryContextSwitchTo(old);
		return;
	}
	if (TRIGGER_FIRED_FOR_ROW(trigdata->tg_event))
		add_row_keys(trigdata, column, &set);
	else if (inserted && trigdata->tg_newtable)
		read_transition_table(trigdata->tg_newtable, trigdata->tg_relation, column, &set);
	else if (TRIGGER_FIRED_BY_DELETE(trigdata->tg_event) && trigdata->tg_oldtable)
		read_transition_table(trigdata->tg_oldtable, trigdata->tg_relation, column, &set);
	settle(served, &set, of_source, inserted && !has_removed(name));
}

/* The common part of both trigger functions. */
static Datum
follow(FunctionCallInfo fcinfo, bool of_source)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	const char *name;
	ServedJob  *served;
	KeySet	   *volatile row_keys = NULL;
	bool		per_row;
	bool		update;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_AFTER(trigdata->tg_event) ||
		trigdata->tg_trigger->tgnargs < 1)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be called by an AFTER trigger of a job",
						of_source ? "source_changed" : "target_changed")));
	name = trigdata->tg_trigger->tgargs[0];
	per_row = TRIGGER_FIRED_FOR_ROW(trigdata->tg_event);
	update = TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event);

	/* an UPDATE that collected nothing costs nothing */
	if (!per_row && update &&
		((row_keys = collecting(name, of_source, false)) == NULL || row_keys->n == 0))
		return PointerGetDatum(NULL);

	served = serve(name, trigdata->tg_relation, of_source, true);
	if (served == NULL)
	{
		if (row_keys)
			row_keys->n = 0;
		return PointerGetDatum(NULL);
	}
	PG_TRY();
	{
		work_off(trigdata, served, row_keys, of_source);
	}
	PG_FINALLY();
	{
		release(served);
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

/* On a source, AFTER INSERT, UPDATE; arguments as above. */
Datum
bgw_backfill_source_changed(PG_FUNCTION_ARGS)
{
	return follow(fcinfo, true);
}

/* On a target, AFTER TRUNCATE; argument: the job's name. */
Datum
bgw_backfill_target_truncated(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	const char *name;
	ServedJob  *served;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_BY_TRUNCATE(trigdata->tg_event) ||
		trigdata->tg_trigger->tgnargs < 1)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be called by a TRUNCATE trigger of a job",
						"target_truncated")));
	name = trigdata->tg_trigger->tgargs[0];
	served = serve(name, trigdata->tg_relation, false, false);
	if (served == NULL)
		return PointerGetDatum(NULL);
	SPI_connect();
	bbf_job_restart_fill(name);
	SPI_finish();
	bbf_wake_at_commit();
	release(served);
	return PointerGetDatum(NULL);
}
