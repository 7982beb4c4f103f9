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

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "dequeue.h"
#include "enqueue.h"
#include "mode.h"
#include "served.h"
#include "session.h"
#include "shape.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

typedef struct CacheEntry
{
	char		name[NAMEDATALEN];
	BbfServed  *served;
} CacheEntry;

static HTAB *cache = NULL;

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
init_key(BbfKeyColumn *key, AttrNumber attno, Oid type, Oid collation, MemoryContext context)
{
	TypeCacheEntry *cached = lookup_type_cache(type, TYPECACHE_CMP_PROC_FINFO);

	key->attno = attno;
	key->type = type;
	key->array_type = get_array_type(type);
	key->collation = collation;
	get_typlenbyvalalign(type, &key->typlen, &key->typbyval, &key->typalign);
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
		served->plans[event][i] = save_plan(steps[i].sql, steps[i].takes == BBF_TAKES_KEYS_AND_HELD ? 2 : 1, types);
		steps[i].sql = NULL;
	}
	served->nsteps[event] = n;
}

/* Run by the rules of foreign-key checks; returns what to restore. */
void
bbf_served_become(Oid owner, Oid *save_userid, int *save_context)
{
	GetUserIdAndSecContext(save_userid, save_context);
	SetUserIdAndSecContext(owner, *save_context | SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_NOFORCE_RLS);
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

/* A query for the places of the rows that keys have where the mode keeps its answer. */
static char *
places(const BbfServed *served, const BbfPair *pair, const char *eq)
{
	return MemoryContextStrdup(served->context,
							   psprintf("SELECT x.ctid FROM ONLY %s x WHERE x.%s %s ANY ($1) ORDER BY x.ctid",
										served->table ? served->table : pair->source_sql, pair->source_key, eq));
}

/* Read a job and prepare its statements.  An error if that can't be done. */
static void
build(BbfServed *served, const char *name)
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
	if (OidIsValid(served->source) && !bbf_job_belongs_to(job, bbf_pair_owner(served->source)))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the source does not belong to role \"%s\" any more", job->owner)));
	mode = bbf_mode_lookup(job->mode);
	pair = bbf_pair_load(job);
	missing = mode->missing(job, pair);
	if (missing && strstr(missing, "default") == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("%s is missing", missing)));
	served->owner = pair->owner;
	served->table = mode->table ? MemoryContextStrdup(served->context, mode->table(job, pair)) : NULL;
	served->source_schema = get_rel_namespace(pair->source);
	served->table_oid = mode->table ?
		get_relname_relid(bbf_job_object(job, "sidecar"), served->source_schema) : InvalidOid;
	served->target_schema = get_rel_namespace(pair->target);
	served->rights_lost = rights_lost(served, mode->writes_source || !pair->target_key_unique);
	if (served->rights_lost)
		return;					/* there is no use for statements */
	init_key(&served->source_key, pair->source_key_att, pair->key_type,
			 pair->key_collation, served->context);
	init_key(&served->target_key, pair->target_key_att, pair->target_key_type,
			 pair->key_collation, served->context);
	served->places_by_source_key = places(served, pair, pair->key_op[BTEqualStrategyNumber]);
	served->places_by_target_key = places(served, pair, pair->source_eq_target);
	served->source_key.old_too = mode->old_source_keys;
	served->target_key.old_too = true;

	bbf_served_become(served->owner, &save_userid, &save_context);
	nestlevel = NewGUCNestLevel();
	bbf_session_pin_text();
	(void) set_config_option("enable_seqscan", "off", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("enable_bitmapscan", "off", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	if (mode->target_settle_one && (short_way = mode->target_settle_one(job, pair)) != NULL)
	{
		types[0] = served->target_key.type;
		served->target_settle_one = save_plan(short_way, 1, types);
		served->one_code = mode->one_code;
		served->one_must_write = mode->one_must_write;
		if (mode->table)
			bbf_dequeue_prepare(served, pair);
	}
	if (served->target_settle_one && mode->target_count_new)
	{
		types[0] = served->target_key.array_type;
		served->target_count_new = save_plan(mode->target_count_new(job, pair), 1, types);
		served->target_settle_new = save_plan(mode->target_settle_new(job, pair), 1, types);
	}
	served->plain_update = mode->table ?
		bbf_shape_write_is_plain(served->table_oid,
								 TRIGGER_TYPE_INSERT | TRIGGER_TYPE_DELETE | TRIGGER_TYPE_UPDATE) :
		bbf_shape_write_is_plain(pair->source, TRIGGER_TYPE_UPDATE);
	if (mode->source_settle_one && (short_way = mode->source_settle_one(job, pair)) != NULL)
	{
		types[0] = served->source_key.type;
		served->source_settle_one = save_plan(short_way, 1, types);
		bbf_enqueue_prepare(served, job, pair);
	}
	for (BbfEvent event = 0; event < BBF_EVENTS; event++)
		save_steps(served, job, pair, mode, event);
	bbf_session_unpin(nestlevel);
	SetUserIdAndSecContext(save_userid, save_context);
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

/*
 * Build an entry under a subtransaction, so that what is wrong with the job
 * becomes a WARNING.  Being cancelled or out of resources is passed on.
 */
static BbfServed *
try_build(const char *name, Relation rel)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "bgw_backfill trigger",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old_context = CurrentMemoryContext;
	ResourceOwner old_owner = CurrentResourceOwner;
	BbfServed  *volatile served = MemoryContextAllocZero(context, sizeof(BbfServed));

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
		bbf_served_release(served);
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

/*
 * The job of a source's trigger, if it is known and can be served; no reference is
 * taken, and its plans are not looked at: for what uses none and runs no user's code.
 */
BbfServed *
bbf_served_peek(const char *name, Relation source)
{
	CacheEntry *entry = cache ? hash_search(cache, name, HASH_FIND, NULL) : NULL;
	BbfServed  *served = entry ? entry->served : NULL;

	return served && !served->stale && served->source == RelationGetRelid(source) &&
		served->rights_lost == NULL ? served : NULL;
}

/*
 * The job of a trigger's first argument, with a reference taken; NULL, after a
 * warning, if it cannot be served.
 */
BbfServed *
bbf_served_get(const char *name, Relation rel, bool of_source, bool needs_rights)
{
	CacheEntry *entry;
	FullTransactionId changed_in = InvalidFullTransactionId;
	CommandId	changed_at = FirstCommandId;
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
		BbfServed  *old = entry->served;

		changed_in = old->changed_in;
		changed_at = old->changed_at;
		entry->served = NULL;
		bbf_served_release(old);
	}
	if (entry->served == NULL)
	{
		BbfServed  *served = try_build(name, rel);

		/* building may have called us, and made one meanwhile */
		entry = hash_search(cache, name, HASH_ENTER, &found);
		if (found && entry->served && served)
			bbf_served_release(entry->served);
		entry->served = served;
		if (served == NULL)
			return NULL;
		served->changed_in = changed_in;
		served->changed_at = changed_at;
	}
	if (RelationGetRelid(rel) != (of_source ? entry->served->source : entry->served->target))
	{
		warn(name, rel, "The table is not the job's.");
		return NULL;
	}
	if (needs_rights && entry->served->rights_lost)
	{
		warn(name, rel, entry->served->rights_lost);
		return NULL;
	}
	entry->served->references++;
	return entry->served;
}

