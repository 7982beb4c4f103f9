/*
 * lease.c
 *		What has been handed out: the rows of the table claim.
 *
 * A claim is one row: its token, when its lease ends, and the keys that were not
 * seen answered yet.  It is made and ended by transactions of the consumers, which
 * may stay open for long, and nobody may wait for them; nor may two hold the
 * same key, nor all of them together more than max_leased.  So:
 *
 *	- Who hands out holds a lock of his job's, from before he reads the claims
 *	  until his own is in the table: for milliseconds, never until he commits.
 *
 *	- The claims are read with a dirty snapshot, which sees what others have not
 *	  committed.  Of a claim that is being changed, both versions count: the
 *	  change may yet be undone.  A change that is committed while we read (a
 *	  claim is extended, or gives rows back, without the lock) can hide both: the
 *	  new version's index entry came after its page was read, the old version is
 *	  dead by now.  So they are read once more with an ordinary snapshot taken
 *	  after that, which sees what is committed.
 *
 *	- What changes somebody else's claim (its lease has expired, all of it is
 *	  answered) locks the row first, and passes by one that is locked.  A claim of
 *	  which a part is answered is left alone: its holder may be about to use it.
 *	  The statements that change claims are in lease_write.c.
 *
 * Keys are text, written as the type's output function does under the settings
 * of bbf_session_pin_keys().
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "answered.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "lease.h"
#include "miscadmin.h"
#include "sql.h"
#include "storage/lock.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* the lock's number among the advisory ones; SQL has 1 and 2 */
#define LOCK_CLASS 4

static Oid
relation(const char *name)
{
	Oid			relid = get_relname_relid(name, get_namespace_oid("bgw_backfill", false));

	if (!OidIsValid(relid))
		elog(ERROR, "relation bgw_backfill.%s does not exist", name);
	return relid;
}

static LOCKTAG
lock_tag(const char *job)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, relation("claim"),
						 hash_bytes((const unsigned char *) job, (int) strlen(job)), LOCK_CLASS);
	return tag;
}

/* Nobody else hands out rows of this job now. */
void
bbf_lease_lock(const char *job)
{
	LOCKTAG		tag = lock_tag(job);

	(void) LockAcquire(&tag, ExclusiveLock, false, false);
}

/* The claim made under the lock is in the table. */
void
bbf_lease_unlock(const char *job)
{
	LOCKTAG		tag = lock_tag(job);

	(void) LockRelease(&tag, ExclusiveLock, false);
}

static uint32
hash_key(const void *key, Size keysize)
{
	const char *text = *(char *const *) key;

	return hash_bytes((const unsigned char *) text, (int) strlen(text));
}

static int
compare_keys(const void *a, const void *b, Size keysize)
{
	return strcmp(*(char *const *) a, *(char *const *) b);
}

/* Note that a key is handed out.  False: it was already. */
bool
bbf_lease_take(BbfLeases *leases, char *key, bool committed)
{
	bool		found;
	BbfTaken   *taken = hash_search(leases->taken, &key, HASH_ENTER, &found);

	if (!found)
		taken->outstanding = false;
	taken->committed = (!found || taken->committed) && committed;
	return !found;
}

/* Let a key that is handed out count, or not count any more, against the cap. */
void
bbf_lease_count(BbfLeases *leases, const char *key, bool outstanding)
{
	BbfTaken   *taken = hash_search(leases->taken, &key, HASH_FIND, NULL);

	if (taken == NULL || taken->outstanding == outstanding)
		return;
	taken->outstanding = outstanding;
	leases->outstanding += outstanding ? 1 : -1;
}

/* All keys that are handed out, as an array of texts. */
Datum
bbf_lease_taken(const BbfLeases *leases)
{
	long		n = hash_get_num_entries(leases->taken);
	char	  **keys = palloc(sizeof(char *) * Max(n, 1));
	HASH_SEQ_STATUS status;
	BbfTaken   *taken;
	int			i = 0;

	hash_seq_init(&status, leases->taken);
	while ((taken = hash_seq_search(&status)) != NULL)
		keys[i++] = taken->key;
	return bbf_lease_text_array(keys, i);
}

/* Is a key handed out?  NULL: no. */
const BbfTaken *
bbf_lease_find(const BbfLeases *leases, const char *key)
{
	return hash_search(leases->taken, &key, HASH_FIND, NULL);
}

/* A column of a claim's row; 0 for null. */
Datum
bbf_lease_attribute(HeapTuple tuple, TupleDesc desc, const char *name)
{
	bool		isnull;
	Datum		value = heap_getattr(tuple, SPI_fnumber(desc, name), desc, &isnull);

	return isnull ? (Datum) 0 : value;
}

/* A claim from its row. */
BbfClaim
bbf_lease_of_tuple(HeapTuple tuple, TupleDesc desc)
{
	BbfClaim	claim = {0};
	Datum	   *keys;
	Datum	   *groups;
	Datum	   *attempts;
	bool	   *group_nulls;
	int			n;

	claim.token = DatumGetInt64(bbf_lease_attribute(tuple, desc, "token"));
	claim.expires_at = DatumGetTimestampTz(bbf_lease_attribute(tuple, desc, "expires_at"));
	claim.claimed_by = DatumGetObjectId(bbf_lease_attribute(tuple, desc, "claimed_by"));
	claim.granted = DatumGetInt32(bbf_lease_attribute(tuple, desc, "granted"));
	deconstruct_array(DatumGetArrayTypeP(bbf_lease_attribute(tuple, desc, "keys")), TEXTOID, -1, false, TYPALIGN_INT,
					  &keys, NULL, &claim.n);
	deconstruct_array(DatumGetArrayTypeP(bbf_lease_attribute(tuple, desc, "group_keys")), TEXTOID, -1, false, TYPALIGN_INT,
					  &groups, &group_nulls, &n);
	deconstruct_array(DatumGetArrayTypeP(bbf_lease_attribute(tuple, desc, "attempts")), INT4OID, sizeof(int32), true,
					  TYPALIGN_INT, &attempts, NULL, &n);
	claim.stored = claim.n;
	claim.rows = palloc(sizeof(BbfLeased) * Max(claim.n, 1));
	for (int i = 0; i < claim.n; i++)
	{
		claim.rows[i].key = TextDatumGetCString(keys[i]);
		claim.rows[i].group = group_nulls[i] ? NULL : TextDatumGetCString(groups[i]);
		claim.rows[i].attempt = DatumGetInt32(attempts[i]);
	}
	return claim;
}

/* The keys of a claim's rows. */
char **
bbf_lease_keys(const BbfClaim *claim)
{
	char	  **keys = palloc(sizeof(char *) * Max(claim->n, 1));

	for (int i = 0; i < claim->n; i++)
		keys[i] = claim->rows[i].key;
	return keys;
}

static void
add_claim(BbfLeases *leases, const BbfClaim *claim, int *allocated)
{
	if (leases->nclaims == *allocated)
	{
		*allocated *= 2;
		leases->claims = repalloc(leases->claims, sizeof(BbfClaim) * *allocated);
	}
	leases->claims[leases->nclaims++] = *claim;
}

/* Note what a claim holds. */
static void
take_claim(BbfLeases *leases, const BbfClaim *claim, TimestampTz now)
{
	for (int i = 0; i < claim->n; i++)
	{
		bbf_lease_take(leases, claim->rows[i].key, claim->committed);
		if (claim->expires_at > now)
			bbf_lease_count(leases, claim->rows[i].key, true);
	}
}

/* The open claims that are committed, and that are not among those read already. */
static void
add_committed(BbfLeases *leases, const char *job, int *allocated)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(job)};
	int			known = leases->nclaims;
	uint64		n = bbf_sql_catalog_kept("SELECT * FROM bgw_backfill.claim WHERE job OPERATOR(pg_catalog.=) $1"
									" AND keys OPERATOR(pg_catalog.<>) '{}'",
									1, types, values, NULL, SPI_OK_SELECT);

	for (uint64 r = 0; r < n; r++)
	{
		BbfClaim	claim = bbf_lease_of_tuple(SPI_tuptable->vals[r], SPI_tuptable->tupdesc);
		bool		is_known = false;

		claim.committed = true;
		for (int i = 0; i < known && !is_known; i++)
			is_known = leases->claims[i].token == claim.token && leases->claims[i].n == claim.n &&
				leases->claims[i].expires_at == claim.expires_at;
		if (!is_known)
			add_claim(leases, &claim, allocated);
	}
	SPI_freetuptable(SPI_tuptable);
}

/* Is anything handed out of a job?  Of what is not committed nobody need know. */
bool
bbf_lease_any(const char *job)
{
	Relation	rel = table_open(relation("claim"), AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	ScanKeyData key;
	SysScanDesc scan;
	bool		any;

	ScanKeyInit(&key, SPI_fnumber(RelationGetDescr(rel), "job"), BTEqualStrategyNumber, F_TEXTEQ, CStringGetTextDatum(job));
	scan = systable_beginscan(rel, relation("claim_open"), true, snapshot, 1, &key);
	any = HeapTupleIsValid(systable_getnext(scan));
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
	return any;
}

/*
 * Read all that is handed out of a job, and at which group the newest claim, not
 * committed as it may be, has ended.  To be called under the job's lock.
 */
BbfLeases *
bbf_lease_read(const char *job)
{
	BbfLeases  *leases = palloc0(sizeof(BbfLeases));
	HASHCTL		ctl = {.keysize = sizeof(char *), .entrysize = sizeof(BbfTaken), .hash = hash_key,
	.match = compare_keys, .hcxt = CurrentMemoryContext};
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(job)};
	Relation	rel = table_open(relation("claim"), AccessShareLock);
	TupleDesc	desc = RelationGetDescr(rel);
	TimestampTz now = GetCurrentTimestamp();
	int64		newest = 0;
	int			allocated = 16;
	SnapshotData dirty;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	leases->taken = hash_create("bgw_backfill leases", 1024, &ctl,
								HASH_ELEM | HASH_FUNCTION | HASH_COMPARE | HASH_CONTEXT);
	leases->claims = palloc(sizeof(BbfClaim) * allocated);

	if (bbf_sql_catalog_kept("SELECT token, last_group FROM bgw_backfill.claim WHERE job OPERATOR(pg_catalog.=) $1"
						" ORDER BY token DESC LIMIT 1", 1, types, values, NULL, SPI_OK_SELECT) > 0)
	{
		newest = DatumGetInt64(bbf_lease_attribute(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, "token"));
		leases->last_group = bbf_sql_text(0, 2);
	}
	SPI_freetuptable(SPI_tuptable);

	InitDirtySnapshot(dirty);
	ScanKeyInit(&key, SPI_fnumber(desc, "job"), BTEqualStrategyNumber, F_TEXTEQ, values[0]);
	scan = systable_beginscan(rel, relation("claim_open"), true, &dirty, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		BbfClaim	claim = bbf_lease_of_tuple(tuple, desc);
		Datum		last_group;

		claim.committed = !TransactionIdIsValid(dirty.xmin);
		add_claim(leases, &claim, &allocated);
		last_group = bbf_lease_attribute(tuple, desc, "last_group");
		if (claim.token > newest)
		{
			newest = claim.token;
			leases->last_group = last_group ? TextDatumGetCString(last_group) : NULL;
		}
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	add_committed(leases, job, &allocated);
	if (leases->nclaims > 0)
		bbf_answered_drop(job, leases->claims, leases->nclaims);
	for (int i = 0; i < leases->nclaims; i++)
		take_claim(leases, &leases->claims[i], now);
	return leases;
}
