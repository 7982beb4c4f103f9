/*
 * served.c
 *		What a trigger knows about its job: keys, owner and saved statements.
 *
 * What is known about a job is cached per backend and dropped by relcache
 * invalidation of its tables and of the table of jobs.  A trigger's own UPDATE
 * can fire another of our triggers, so an entry may be replaced while it is in
 * use further up: whoever uses one holds a reference.
 *
 * A job that cannot be served gets a WARNING, and the write passes: the
 * application's data goes first.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "compat.h"
#include "dequeue.h"
#include "enqueue.h"
#include "miscadmin.h"
#include "mode.h"
#include "objects.h"
#include "served.h"
#include "session.h"
#include "shape.h"
#include "sql.h"
#include "storage/lmgr.h"
#include "txn.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/typcache.h"
#include "value.h"

/* how often an entry is made anew, if others, or that itself, make it out of date meanwhile: a millisecond or two each */
#define MAX_TRIES 100

#define NOT_THE_JOBS "The table is not the job's."

typedef struct CacheEntry
{
	char		name[NAMEDATALEN];
	BbfServed  *served;			/* NULL: not known, or cannot be served */
	Oid			failed_for;		/* the table whose trigger found that out, */
	TimestampTz failed_in;		/* and the statement */
	uint64		failed_after;	/* the invalidations until then */
} CacheEntry;

static HTAB *cache = NULL;
static uint64 invalidations = 0;

static void
relcache_callback(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS status;
	CacheEntry *entry;

	if (cache == NULL)
		return;
	invalidations++;
	hash_seq_init(&status, cache);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		BbfServed  *served = entry->served;

		if (served && (relid == InvalidOid || relid == served->job_table ||
					   relid == served->source || relid == served->target ||
					   relid == served->table_oid))
			served->stale = true;
	}
}

/* A schema's or a role's rights may have changed. */
static void
syscache_callback(Datum arg, int cacheid, uint32 hashvalue)
{
	relcache_callback((Datum) 0, InvalidOid);
}

/* Once per process that has the library. */
void
bbf_served_init(void)
{
	CacheRegisterRelcacheCallback(relcache_callback, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID, syscache_callback, (Datum) 0);
	CacheRegisterSyscacheCallback(AUTHOID, syscache_callback, (Datum) 0);
	CacheRegisterSyscacheCallback(AUTHMEMROLEMEM, syscache_callback, (Datum) 0);
}

/* Describe a key column. */
static void
init_key(BbfKeyColumn *key, Oid owner, AttrNumber attno, Oid type, Oid collation, MemoryContext context)
{
	TypeCacheEntry *cached = lookup_type_cache(type, TYPECACHE_CMP_PROC_FINFO);

	key->attno = attno;
	key->owner = owner;
	key->type = type;
	key->array_type = get_array_type(type);
	key->collation = collation;
	get_typlenbyvalalign(type, &key->typlen, &key->typbyval, &key->typalign);
	fmgr_info_cxt(cached->cmp_proc, &key->cmp, context);
}

/* Save the statements that settle an event. */
static void
save_steps(BbfServed *served, const BbfJob *job, const BbfPair *pair, const BbfMode *mode, BbfEvent event)
{
	BbfStep    *steps = served->steps[event];
	int			n = mode->settle(job, pair, event, steps);

	for (int i = 0; i < n; i++)
	{
		Oid			types[2] = {bbf_event_of_source(event) ? served->source_key.array_type :
			served->target_key.array_type, served->target_key.array_type};

		if (steps[i].takes == BBF_TAKES_ROWS)
			types[0] = TIDARRAYOID;
		served->plans[event][i] = bbf_sql_save(served->owner, steps[i].sql, steps[i].takes == BBF_TAKES_KEYS_AND_HELD ? 2 : 1, types);
		steps[i].sql = NULL;
	}
	served->nsteps[event] = n;
}

/*
 * What settling takes that the owner does not have, or NULL.  Looked at when an
 * entry is built: a change of a table's rights, of a schema's or of a role makes
 * the entry stale.
 */
static const char *
rights_lost(const BbfServed *served, bool locks_source)
{
	if (pg_class_aclcheck(served->source, served->owner, ACL_SELECT) != ACLCHECK_OK ||
		(locks_source && pg_class_aclcheck(served->source, served->owner, ACL_UPDATE) != ACLCHECK_OK))
		return "The source's owner has no right to read and update it.";
	if (pg_class_aclcheck(served->target, served->owner, ACL_SELECT) != ACLCHECK_OK)
		return "The source's owner has no right to read the target.";
	if (bbf_schema_aclcheck(served->source_schema, served->owner, ACL_USAGE) != ACLCHECK_OK ||
		bbf_schema_aclcheck(served->target_schema, served->owner, ACL_USAGE) != ACLCHECK_OK)
		return "The source's owner has no right to use the tables' schemas.";
	return NULL;
}

/* Has a table a trigger on UPDATE that may be deferred? */
static bool
has_deferrable_trigger(Oid relid)
{
	Relation	rel = table_open(relid, AccessShareLock);
	bool		found = false;

	for (int i = 0; rel->trigdesc && i < rel->trigdesc->numtriggers; i++)
		found = found || (rel->trigdesc->triggers[i].tgdeferrable &&
						  TRIGGER_FOR_UPDATE(rel->trigdesc->triggers[i].tgtype));
	table_close(rel, AccessShareLock);
	return found;
}

/* A query for the places of the rows that keys have where the mode keeps its answer. */
static char *
places(const BbfServed *served, const BbfPair *pair, const char *eq)
{
	return MemoryContextStrdup(served->context,
							   psprintf("SELECT x.ctid FROM ONLY %s x WHERE x.%s %s ANY ($1) ORDER BY x.ctid",
										served->table ? served->table : pair->source_sql, pair->source_key, eq));
}

/* Save the statements, as the owner. */
static void
save_statements(BbfServed *served, const BbfJob *job, const BbfPair *pair, const BbfMode *mode)
{
	char	   *short_way;
	Oid			types[1];

	if (mode->target_settle_one && (short_way = mode->target_settle_one(job, pair)) != NULL)
	{
		types[0] = served->target_key.type;
		served->target_settle_one = bbf_sql_save(served->owner, short_way, 1, types);
		served->one_code = mode->one_code;
		served->one_must_write = mode->one_must_write;
		if (mode->table)
			bbf_dequeue_prepare(served, pair);
	}
	if (served->target_settle_one && mode->target_count_new)
	{
		types[0] = served->target_key.array_type;
		served->target_count_new = bbf_sql_save(served->owner, mode->target_count_new(job, pair), 1, types);
		served->target_settle_new = bbf_sql_save(served->owner, mode->target_settle_new(job, pair), 1, types);
	}
	if (mode->source_settle_one && (short_way = mode->source_settle_one(job, pair)) != NULL)
	{
		types[0] = served->source_key.type;
		served->source_settle_one = bbf_sql_save(served->owner, short_way, 1, types);
		bbf_enqueue_prepare(served, job, pair);
	}
	for (BbfEvent event = 0; event < BBF_EVENTS; event++)
		save_steps(served, job, pair, mode, event);
}

/* What is written: the table of pending keys, or the source. */
static void
look_at_writes(BbfServed *served, const BbfJob *job, const BbfPair *pair, const BbfMode *mode)
{
	char	   *strange;

	served->plain_keys = bbf_value_type_is_plain(pair->key_type) && bbf_value_type_is_plain(pair->target_key_type) &&
		pair->key_opfamily < FirstNormalObjectId;
	if (mode->table == NULL)
	{
		served->deferrable = has_deferrable_trigger(pair->source);
		served->plain_update = served->plain_keys && bbf_shape_write_is_plain(pair->source, TRIGGER_TYPE_UPDATE);
		return;
	}
	served->table_oid = bbf_object_find(job, BBF_SIDECAR);
	served->table = MemoryContextStrdup(served->context, mode->table(job, pair));
	strange = mode->strange(job, pair);
	if (strange)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" has %s", get_rel_name(served->table_oid), strange)));
	served->plain_update = served->plain_keys &&
		bbf_shape_write_is_plain(served->table_oid, TRIGGER_TYPE_INSERT | TRIGGER_TYPE_DELETE | TRIGGER_TYPE_UPDATE);
}

/* Read the pair of a job and prepare its statements, as the owner. */
static void
build_as_owner(BbfServed *served, const BbfJob *job)
{
	const BbfMode *mode = bbf_mode_lookup(job->mode);
	BbfPair    *pair = bbf_pair_load(job);
	char	   *missing;

	if (mode->missing(job, pair, &missing) == BBF_MISSING_OBJECT)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("%s is missing", missing)));
	if (pair->owner != served->owner)
		elog(ERROR, "the source has got another owner");
	served->source_schema = get_rel_namespace(pair->source);
	served->target_schema = get_rel_namespace(pair->target);
	served->rights_lost = rights_lost(served, mode->writes_source || !pair->target_key_unique);
	look_at_writes(served, job, pair, mode);
	if (served->rights_lost)
		return;					/* there is no use for statements */
	init_key(&served->source_key, pair->owner, pair->source_key_att, pair->key_type,
			 pair->key_collation, served->context);
	init_key(&served->target_key, pair->owner, pair->target_key_att, pair->target_key_type,
			 pair->key_collation, served->context);
	served->source_key.old_too = mode->old_source_keys;
	served->target_key.old_too = true;
	if (!pair->key_has_one_text)
		served->own_keys = MemoryContextStrdup(served->context,
											   psprintf("SELECT s.%s FROM ONLY %s s WHERE s.%s %s ANY ($1)", pair->source_key,
														pair->source_sql, pair->source_key, pair->source_eq_target));
	served->places_by_source_key = places(served, pair, pair->key_op[BTEqualStrategyNumber]);
	served->places_by_target_key = places(served, pair, pair->source_eq_target);
	save_statements(served, job, pair, mode);
}

/* Read a job and prepare its statements.  An error if that can't be done. */
static void
build(BbfServed *served, const char *name, Oid relid, bool of_source)
{
	BbfJob	   *job = bbf_job_load(name);
	BbfUserContext before;

	if (job == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("job \"%s\" does not exist", name)));
	served->job_table = get_relname_relid("job", get_namespace_oid("bgw_backfill", false));
	served->source = bbf_job_source(job);
	served->target = bbf_job_target(job);
	if (relid != (of_source ? served->source : served->target))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg(NOT_THE_JOBS)));
	served->owner = bbf_pair_owner(served->source);
	if (OidIsValid(served->source) && !bbf_job_belongs_to(job, served->owner))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the source does not belong to role \"%s\" any more", job->owner)));
	if (!OidIsValid(served->owner))
		(void) bbf_pair_load(job);	/* says what is gone */
	bbf_usercontext_begin(served->owner, true, &before);
	bbf_session_pin_text();
	bbf_session_pin_by_index();
	build_as_owner(served, job);
	bbf_usercontext_end(&before);
}

#define MAX_PLANS (4 + BBF_EVENTS * BBF_MAX_STEPS)

/* The entry's saved statements; some may be NULL. */
static void
get_plans(const BbfServed *served, SPIPlanPtr *plans)
{
	plans[0] = served->target_settle_one;
	plans[1] = served->target_count_new;
	plans[2] = served->target_settle_new;
	plans[3] = served->source_settle_one;
	memcpy(plans + 4, served->plans, sizeof(served->plans));
}

/* Free an entry's memory and plans, once nobody uses it. */
void
bbf_served_release(BbfServed *served)
{
	SPIPlanPtr	plans[MAX_PLANS];

	if (--served->references > 0)
		return;
	get_plans(served, plans);
	for (int i = 0; i < (int) lengthof(plans); i++)
	{
		if (plans[i])
			SPI_freeplan(plans[i]);
	}
	MemoryContextDelete(served->context);
}

/* Can the entry be used as it is?  A plan's own dependencies count as well. */
static bool
is_current(const BbfServed *served)
{
	SPIPlanPtr	plans[MAX_PLANS];

	get_plans(served, plans);
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

/* an entry to be built */
typedef struct Building
{
	BbfServed  *served;
	const char *name;
	Oid			relid;
	bool		of_source;
} Building;

static void
run_build(void *arg)
{
	const Building *building = arg;

	SPI_connect();
	build(building->served, building->name, building->relid, building->of_source);
	SPI_finish();
}

/*
 * Build an entry under a subtransaction, so that what is wrong with the job
 * becomes a WARNING.  Being cancelled or out of resources is passed on.
 */
static BbfServed *
try_build(const char *name, Relation rel, bool of_source)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "bgw_backfill trigger",
												  ALLOCSET_SMALL_SIZES);
	Building	building = {MemoryContextAllocZero(context, sizeof(BbfServed)), name, RelationGetRelid(rel), of_source};
	ErrorData  *error;
	int			category;

	building.served->context = context;
	building.served->references = 1;
	error = bbf_txn_try(run_build, &building);
	if (error == NULL)
		return building.served;
	bbf_served_release(building.served);
	category = ERRCODE_TO_CATEGORY(error->sqlerrcode);
	if (category == ERRCODE_INSUFFICIENT_RESOURCES ||
		category == ERRCODE_OPERATOR_INTERVENTION ||
		category == ERRCODE_TRANSACTION_ROLLBACK ||
		error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE)
		ReThrowError(error);
	warn(name, rel, error->message);
	return NULL;
}

/*
 * The job of a trigger, if it is known and can be served; no reference is
 * taken, and its plans are not looked at: for what uses none and runs no user's code.
 */
BbfServed *
bbf_served_peek(const char *name, Relation rel, bool of_source)
{
	CacheEntry *entry = cache ? hash_search(cache, name, HASH_FIND, NULL) : NULL;
	BbfServed  *served = entry ? entry->served : NULL;

	return served && !served->stale && (of_source ? served->source : served->target) == RelationGetRelid(rel) &&
		served->rights_lost == NULL ? served : NULL;
}

/* The entry of a job, made anew if it is not current; NULL, after a warning, if it cannot be served. */
static CacheEntry *
find_entry(const char *name, Relation rel, bool of_source)
{
	CacheEntry *entry;
	FullTransactionId changed_in = InvalidFullTransactionId;
	CommandId	changed_at = FirstCommandId;
	bool		found;

	entry = hash_search(cache, name, HASH_ENTER, &found);
	if (!found)
	{
		entry->served = NULL;
		entry->failed_in = 0;
	}
	/* not for each row of a statement anew */
	if (entry->served == NULL && entry->failed_for == RelationGetRelid(rel) &&
		entry->failed_in == GetCurrentStatementStartTimestamp() &&
		entry->failed_after == invalidations)
		return NULL;
	if (entry->served && !is_current(entry->served))
	{
		BbfServed  *old = entry->served;

		changed_in = old->changed_in;
		changed_at = old->changed_at;
		entry->served = NULL;
		bbf_served_release(old);
	}
	if (entry->served == NULL)
	{
		BbfServed  *served = try_build(name, rel, of_source);

		/* building may have called us, and made one meanwhile */
		entry = hash_search(cache, name, HASH_ENTER, &found);
		if (found && entry->served)
			bbf_served_release(entry->served);
		entry->served = served;
		if (served == NULL)
		{
			entry->failed_for = RelationGetRelid(rel);
			entry->failed_in = GetCurrentStatementStartTimestamp();
			entry->failed_after = invalidations;
			return NULL;
		}
		served->changed_in = changed_in;
		served->changed_at = changed_at;
	}
	return entry;
}

/*
 * The job of a trigger's first argument, with a reference taken; NULL, after a
 * warning, if it cannot be served.  writes: the table that the job's state is in is
 * to be written, and what stands on it must be what we have looked at.  So it is
 * locked first: nobody makes a trigger or a rule on it from there on.
 */
BbfServed *
bbf_served_get(const char *name, Relation rel, bool of_source, bool writes)
{
	CacheEntry *entry;
	int			tries = 0;

	if (cache == NULL)
	{
		HASHCTL		ctl = {.keysize = NAMEDATALEN, .entrysize = sizeof(CacheEntry)};

		cache = hash_create("bgw_backfill jobs", 16, &ctl, HASH_ELEM | HASH_STRINGS);
	}
	do
	{
		CHECK_FOR_INTERRUPTS();
		entry = find_entry(name, rel, of_source);
		if (entry == NULL)
			return NULL;
		if (++tries > MAX_TRIES)
		{
			warn(name, rel, "What it depends on changes each time it is looked at.");
			return NULL;
		}
		/* nobody is to lock a job's tables by a trigger of his own */
		if (RelationGetRelid(rel) != (of_source ? entry->served->source : entry->served->target))
		{
			warn(name, rel, NOT_THE_JOBS);
			return NULL;
		}
		if (writes)
			LockRelationOid(OidIsValid(entry->served->table_oid) ? entry->served->table_oid : entry->served->source,
							RowExclusiveLock);
	} while (!is_current(entry->served));
	if (writes && entry->served->rights_lost)
	{
		warn(name, rel, entry->served->rights_lost);
		return NULL;
	}
	entry->served->references++;
	return entry->served;
}

