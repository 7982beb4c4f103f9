/*
 * dequeue.c
 *		Removing the keys of new target rows from the table of pending keys, without
 *		a statement.
 *
 * A statement that locks a key, or passes it by, and deletes it takes several times
 * as long to start and end as it does to run, and most inserts are of one row.  What
 * it comes to, nearly always, is one row that nobody holds: it is found by the index,
 * with a snapshot of now (R8), and deleted without waiting.  Is there none, there is
 * nothing to do, as for the statement.
 *
 * In any other case nothing is done to the key here, and the statement decides, which
 * follows what has changed and knows locks of our own from those of others: somebody
 * holds the row, or has changed it since the snapshot, or this transaction has.  So
 * no race is decided here that the statement would decide otherwise: to delete a row
 * that nobody holds or has changed is to lock it first and delete it then.
 *
 * It is done only where nobody's code would run in that delete but the server's, and
 * what compares keys: no trigger (a foreign key's, which refers to the table, among
 * them), rule or row security on the table of pending keys.  The caller is the
 * owner (usercontext.c).
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/nbtree.h"
#include "access/relscan.h"
#include "access/skey.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_am.h"
#include "catalog/pg_trigger.h"
#include "compat.h"
#include "dequeue.h"
#include "executor/executor.h"
#include "parser/parse_coerce.h"
#include "shape.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"

/* what removing a key takes; lives and dies with what the trigger knows of its job */
typedef struct BbfDequeue
{
	Oid			index;			/* the unique one on keys */
	ScanKeyData key;			/* source key = target key, whose value is not set */
} BbfDequeue;

/* The key is the table's first column; its own unique index, or InvalidOid. */
static Oid
find_index(Relation table, const BbfPair *pair)
{
	Oid			found = InvalidOid;
	ListCell   *lc;

	foreach(lc, RelationGetIndexList(table))
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);
		Form_pg_index form = index->rd_index;

		if (index->rd_rel->relam == BTREE_AM_OID && form->indisunique && form->indisvalid &&
			form->indimmediate && form->indnkeyatts == 1 && form->indkey.values[0] == 1 &&
			!bbf_shape_index_has_predicate(index) &&
			index->rd_opfamily[0] == pair->key_opfamily && index->rd_opcintype[0] == pair->key_opcintype &&
			index->rd_indcollation[0] == pair->key_collation)
			found = RelationGetRelid(index);
		index_close(index, AccessShareLock);
	}
	return found;
}

/* Can rows be deleted as they are? */
static bool
gives_rows(Relation table, const BbfPair *pair)
{
	TriggerDesc *triggers = bbf_shape_triggers(table);
	char	   *key = get_attname(pair->source, pair->source_key_att, false);

	return strcmp(NameStr(TupleDescAttr(RelationGetDescr(table), 0)->attname), key) == 0 &&
		table->rd_rel->relkind == RELKIND_RELATION && table->rd_rel->relam == HEAP_TABLE_AM_OID &&
		!table->rd_rel->relispartition && table->rd_rules == NULL && !table->rd_rel->relrowsecurity &&
		!(triggers && (triggers->trig_delete_before_row || triggers->trig_delete_after_row ||
					   triggers->trig_delete_before_statement || triggers->trig_delete_after_statement)) &&
		bbf_shape_write_is_plain(RelationGetRelid(table), TRIGGER_TYPE_DELETE) &&
		pg_class_aclcheck(RelationGetRelid(table), pair->owner, ACL_SELECT) == ACLCHECK_OK &&
		pg_class_aclcheck(RelationGetRelid(table), pair->owner, ACL_DELETE) == ACLCHECK_OK;
}

/*
 * Get ready, if it is possible: where a target row that is there is a match, whatever
 * else is in it.
 */
void
bbf_dequeue_prepare(BbfServed *served, const BbfPair *pair)
{
	Relation	table = try_table_open(served->table_oid, AccessShareLock);
	Oid			type = pair->target_key_type;
	Oid			equal = get_opfamily_member(pair->key_opfamily, pair->key_opcintype, type, BTEqualStrategyNumber);
	Oid			index = InvalidOid;
	MemoryContext old;

	if (table == NULL)
		return;
	if (!OidIsValid(equal) && IsBinaryCoercible(type, pair->key_opcintype))
	{
		type = pair->key_opcintype;
		equal = get_opfamily_member(pair->key_opfamily, type, type, BTEqualStrategyNumber);
	}
	if (OidIsValid(equal) && gives_rows(table, pair))
		index = find_index(table, pair);
	table_close(table, AccessShareLock);
	if (!OidIsValid(index))
		return;

	old = MemoryContextSwitchTo(served->context);
	served->dequeue = palloc0(sizeof(BbfDequeue));
	served->dequeue->index = index;
	ScanKeyEntryInitialize(&served->dequeue->key, 0, 1, BTEqualStrategyNumber, type, pair->key_collation,
						   get_opcode(equal), (Datum) 0);
	MemoryContextSwitchTo(old);
}

/* Remove the key that a scan looks for, if it is there.  False: the statement has to. */
static bool
remove_key(Relation table, SysScanDesc scan)
{
	HeapTuple	tuple = systable_getnext_ordered(scan, ForwardScanDirection);
	TM_FailureData failure;

	return !HeapTupleIsValid(tuple) ||
		bbf_table_tuple_delete(table, &tuple->t_self, GetCurrentCommandId(true), GetActiveSnapshot(), &failure) == TM_Ok;
}

/*
 * Remove keys.  False: that is not possible here and now for all of them, and the
 * statement has to do it; those that are removed are not there any more.
 */
bool
bbf_dequeue_keys(const BbfServed *served, const Datum *keys, int n)
{
	const BbfDequeue *dequeue = served->dequeue;
	ScanKeyData key;
	SysScanDesc scan;
	Relation	table;
	Relation	index;
	bool		done;

	if (dequeue == NULL || n == 0)
		return false;
	CommandCounterIncrement();	/* see what enqueue.c has added for this very command */
	table = try_table_open(served->table_oid, RowExclusiveLock);
	if (table == NULL)
		return false;
	/* all is locked: is it still what we got ready for? */
	if (served->stale)
	{
		table_close(table, NoLock);
		return false;
	}
	CheckCmdReplicaIdentity(table, CMD_DELETE);
	index = index_open(dequeue->index, RowExclusiveLock);
	PushActiveSnapshot(GetLatestSnapshot());
	key = dequeue->key;
	key.sk_argument = keys[0];
	key.sk_func.fn_mcxt = CurrentMemoryContext; /* what it caches goes with this copy */
	scan = systable_beginscan_ordered(table, index, GetActiveSnapshot(), 1, &key);
	done = remove_key(table, scan);
	for (int i = 1; i < n && done; i++)
	{
		CHECK_FOR_INTERRUPTS();
		key.sk_argument = keys[i];
		index_rescan(scan->iscan, &key, 1, NULL, 0);
		done = remove_key(table, scan);
	}
	systable_endscan_ordered(scan);
	PopActiveSnapshot();
	index_close(index, NoLock);
	table_close(table, NoLock);
	return done;
}
