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

static Datum
attribute(HeapTuple tuple, TupleDesc desc, const char *name)
{
	bool		isnull;
	Datum		value = heap_getattr(tuple, SPI_fnumber(desc, name), desc, &isnull);

	return isnull ? (Datum) 0 : value;
}

/* A claim from its row. */
static BbfClaim
claim_of(HeapTuple tuple, TupleDesc desc)
{
	BbfClaim	claim = {0};
	Datum	   *keys;
	Datum	   *groups;
	Datum	   *attempts;
	bool	   *group_nulls;
	int			n;

	claim.token = DatumGetInt64(attribute(tuple, desc, "token"));
	claim.expires_at = DatumGetTimestampTz(attribute(tuple, desc, "expires_at"));
	claim.granted = DatumGetInt32(attribute(tuple, desc, "granted"));
	deconstruct_array(DatumGetArrayTypeP(attribute(tuple, desc, "keys")), TEXTOID, -1, false, TYPALIGN_INT,
					  &keys, NULL, &claim.n);
	deconstruct_array(DatumGetArrayTypeP(attribute(tuple, desc, "group_keys")), TEXTOID, -1, false, TYPALIGN_INT,
					  &groups, &group_nulls, &n);
	deconstruct_array(DatumGetArrayTypeP(attribute(tuple, desc, "attempts")), INT4OID, sizeof(int32), true,
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
		BbfClaim	claim = claim_of(SPI_tuptable->vals[r], SPI_tuptable->tupdesc);
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
		newest = DatumGetInt64(attribute(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, "token"));
		leases->last_group = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2);
	}
	SPI_freetuptable(SPI_tuptable);

	InitDirtySnapshot(dirty);
	ScanKeyInit(&key, SPI_fnumber(desc, "job"), BTEqualStrategyNumber, F_TEXTEQ, values[0]);
	scan = systable_beginscan(rel, relation("claim_open"), true, &dirty, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		BbfClaim	claim = claim_of(tuple, desc);
		Datum		last_group;

		claim.committed = !TransactionIdIsValid(dirty.xmin);
		add_claim(leases, &claim, &allocated);
		last_group = attribute(tuple, desc, "last_group");
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

/* An array of texts; NULL becomes null. */
Datum
bbf_lease_text_array(char *const *texts, int n)
{
	Datum	   *values = palloc(sizeof(Datum) * Max(n, 1));
	bool	   *nulls = palloc(sizeof(bool) * Max(n, 1));
	int			lower = 1;

	for (int i = 0; i < n; i++)
	{
		nulls[i] = texts[i] == NULL;
		values[i] = texts[i] ? CStringGetTextDatum(texts[i]) : (Datum) 0;
	}
	if (n == 0)
		return PointerGetDatum(construct_empty_array(TEXTOID));
	return PointerGetDatum(construct_md_array(values, nulls, 1, &n, &lower, TEXTOID, -1, false, TYPALIGN_INT));
}

/* The three columns of a claim's rows; keep NULL: all of them.  Returns how many. */
static int
row_columns(const BbfLeased *rows, int n, const bool *keep, Datum *columns)
{
	char	  **keys = palloc(sizeof(char *) * Max(n, 1));
	char	  **groups = palloc(sizeof(char *) * Max(n, 1));
	Datum	   *attempts = palloc(sizeof(Datum) * Max(n, 1));
	int			kept = 0;

	for (int i = 0; i < n; i++)
	{
		if (keep && !keep[i])
			continue;
		keys[kept] = rows[i].key;
		groups[kept] = rows[i].group;
		attempts[kept++] = Int32GetDatum(rows[i].attempt);
	}
	columns[0] = bbf_lease_text_array(keys, kept);
	columns[1] = bbf_lease_text_array(groups, kept);
	columns[2] = PointerGetDatum(construct_array(attempts, kept, INT4OID, sizeof(int32), true, TYPALIGN_INT));
	return kept;
}

/* Hand out these rows; returns the token.  The lease begins now, whenever the caller commits. */
int64
bbf_lease_insert(const char *job, const BbfLeased *rows, int n, int64 lease_ms,
				 const char *last_group, int64 stale_pruned)
{
	Oid			types[] = {TEXTOID, TEXTARRAYOID, TEXTARRAYOID, INT4ARRAYOID, FLOAT8OID, TEXTOID, INT8OID, TEXTOID};
	Datum		values[8] = {CStringGetTextDatum(job), 0, 0, 0, Float8GetDatum(lease_ms / 1000.0),
		last_group ? CStringGetTextDatum(last_group) : (Datum) 0, Int64GetDatum(stale_pruned),
	CStringGetTextDatum(GetUserNameFromId(GetSessionUserId(), false))};
	int64		token;

	row_columns(rows, n, NULL, values + 1);
	bbf_sql_catalog_kept("INSERT INTO bgw_backfill.claim"
					" (token, job, claimed_by, expires_at, granted, keys, group_keys, attempts, last_group, stale_pruned)"
					" VALUES (pg_catalog.nextval('bgw_backfill.claim_token'), $1, $8, pg_catalog.clock_timestamp()"
					"  OPERATOR(pg_catalog.+) pg_catalog.make_interval(secs => $5),"
					"  pg_catalog.cardinality($2), $2, $3, $4, $6, $7) RETURNING token",
					8, types, values, last_group ? NULL : "     n  ", SPI_OK_INSERT_RETURNING);
	token = DatumGetInt64(attribute(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, "token"));
	SPI_freetuptable(SPI_tuptable);
	return token;
}

/*
 * Lock a claim that has open rows, or with expired: only if its lease has ended
 * and nobody is at it.  NULL: there is none such.
 */
BbfClaim *
bbf_lease_lock_claim(const char *job, int64 token, bool expired)
{
	Oid			types[] = {TEXTOID, INT8OID};
	Datum		values[] = {CStringGetTextDatum(job), Int64GetDatum(token)};
	BbfClaim   *claim = NULL;

	if (bbf_sql_catalog_kept(psprintf("SELECT * FROM bgw_backfill.claim WHERE job OPERATOR(pg_catalog.=) $1"
								 " AND token OPERATOR(pg_catalog.=) $2%s",
								 expired ? " AND expires_at OPERATOR(pg_catalog.<=) pg_catalog.clock_timestamp()"
								 " FOR UPDATE SKIP LOCKED" : " FOR UPDATE"),
						2, types, values, NULL, SPI_OK_SELECT) > 0)
	{
		claim = palloc(sizeof(BbfClaim));
		*claim = claim_of(SPI_tuptable->vals[0], SPI_tuptable->tupdesc);
		claim->committed = true;
	}
	SPI_freetuptable(SPI_tuptable);
	if (claim)
		bbf_answered_drop(job, claim, 1);
	return claim;
}

/*
 * The tokens of claims that have open rows, after one (text; NULL: from the
 * first), locked but for those that somebody is at.  Returns how many.
 */
int
bbf_lease_open(const char *job, const char *after, int limit, int64 **tokens)
{
	Oid			types[] = {TEXTOID, INT8OID, INT8OID};
	Datum		values[] = {CStringGetTextDatum(job), Int64GetDatum(after ? strtoll(after, NULL, 10) : 0), Int64GetDatum(limit)};
	int			n = (int) bbf_sql_catalog_kept("SELECT token FROM bgw_backfill.claim WHERE job OPERATOR(pg_catalog.=) $1"
										  " AND keys OPERATOR(pg_catalog.<>) '{}' AND token OPERATOR(pg_catalog.>) $2"
										  " ORDER BY token LIMIT $3 FOR UPDATE SKIP LOCKED",
										  3, types, values, NULL, SPI_OK_SELECT);

	*tokens = palloc(sizeof(int64) * Max(n, 1));
	for (int i = 0; i < n; i++)
		(*tokens)[i] = DatumGetInt64(attribute(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, "token"));
	SPI_freetuptable(SPI_tuptable);
	return n;
}

/* Keep only some of a locked claim's rows; keep NULL: none. */
void
bbf_lease_keep(const BbfClaim *claim, const bool *keep)
{
	Oid			types[] = {INT8OID, TEXTARRAYOID, TEXTARRAYOID, INT4ARRAYOID};
	Datum		values[4] = {Int64GetDatum(claim->token)};

	row_columns(claim->rows, keep ? claim->n : 0, keep, values + 1);
	bbf_sql_catalog_kept("UPDATE bgw_backfill.claim SET keys = $2, group_keys = $3, attempts = $4"
					" WHERE token OPERATOR(pg_catalog.=) $1",
					4, types, values, NULL, SPI_OK_UPDATE);
}

/* All that a claim has open, so many rows, is answered; unless somebody is at it. */
void
bbf_lease_empty(const char *job, int64 token, int n)
{
	Oid			types[] = {INT8OID, INT4OID};
	Datum		values[] = {Int64GetDatum(token), Int32GetDatum(n)};

	bbf_sql_catalog_kept("UPDATE bgw_backfill.claim SET keys = '{}', group_keys = '{}', attempts = '{}'"
					" WHERE token OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT c.token FROM bgw_backfill.claim c"
					"  WHERE c.token OPERATOR(pg_catalog.=) $1 AND pg_catalog.cardinality(c.keys) OPERATOR(pg_catalog.=) $2"
					"  FOR UPDATE SKIP LOCKED))",
					2, types, values, NULL, SPI_OK_UPDATE);
}

/* Let a locked claim's lease end that long from now; returns when. */
TimestampTz
bbf_lease_extend(int64 token, int64 lease_ms)
{
	Oid			types[] = {INT8OID, FLOAT8OID};
	Datum		values[] = {Int64GetDatum(token), Float8GetDatum(lease_ms / 1000.0)};
	TimestampTz expires_at;

	bbf_sql_catalog_kept("UPDATE bgw_backfill.claim SET expires_at = pg_catalog.clock_timestamp()"
					" OPERATOR(pg_catalog.+) pg_catalog.make_interval(secs => $2)"
					" WHERE token OPERATOR(pg_catalog.=) $1 RETURNING expires_at",
					2, types, values, NULL, SPI_OK_UPDATE_RETURNING);
	expires_at = DatumGetTimestampTz(attribute(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, "expires_at"));
	SPI_freetuptable(SPI_tuptable);
	return expires_at;
}

/*
 * Forget the claims that are answered and whose lease has ended, but for the
 * newest, which knows whose turn it is.  What they had pruned goes to the job's
 * account.
 */
void
bbf_lease_forget_answered(const char *job)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(job)};

	bbf_sql_catalog_kept("WITH gone AS (DELETE FROM bgw_backfill.claim c WHERE c.token OPERATOR(pg_catalog.=) ANY (ARRAY("
					"  SELECT o.token FROM bgw_backfill.claim o WHERE o.job OPERATOR(pg_catalog.=) $1"
					"  AND o.keys OPERATOR(pg_catalog.=) '{}' AND o.expires_at OPERATOR(pg_catalog.<) pg_catalog.clock_timestamp()"
					"  AND o.token OPERATOR(pg_catalog.<) (SELECT pg_catalog.max(n.token) FROM bgw_backfill.claim n"
					"   WHERE n.job OPERATOR(pg_catalog.=) $1)"
					"  LIMIT 10000 FOR UPDATE SKIP LOCKED)) RETURNING c.stale_pruned)"
					" UPDATE bgw_backfill.job_state SET stale_pruned = stale_pruned OPERATOR(pg_catalog.+)"
					"  (SELECT coalesce(pg_catalog.sum(g.stale_pruned), 0) FROM gone g)::pg_catalog.int8"
					" WHERE job OPERATOR(pg_catalog.=) $1 AND (SELECT pg_catalog.sum(g.stale_pruned) FROM gone g)"
					"  OPERATOR(pg_catalog.>) 0",
					1, types, values, NULL, SPI_OK_UPDATE);
}
