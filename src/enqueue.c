/*
 * enqueue.c
 *		Adding the key of a new source row to the table of pending keys, from the
 *		row that the trigger was given, without a statement.
 *
 * A statement that reads the source again, looks for a match and upserts costs
 * more than the application's INSERT itself.  All three can be left out where
 *
 *	- a foreign key, validated and immediate, says that nobody else's target row
 *	  can be there: it would have to see the source row, which is not committed.
 *	  (One that came past the foreign key, as a superuser can make it, or that
 *	  stays while one statement replaces its source row, leaves a stale key: the
 *	  next prune takes it.)
 *	- no trigger of the job has run since the row was inserted.  Whatever this
 *	  transaction does to the row, or inserts into the target for it, happens in
 *	  the row's own command or a later one, and a trigger of ours follows: either
 *	  it is still to come, and then it finds the key that we add; or it has been,
 *	  and then we know (R11).  The commands are told apart by their number: the
 *	  row's is its cmin.
 *	- nobody's code would run in that write but the server's: no trigger, rule,
 *	  row security, check or expression on the table of pending keys, which is as
 *	  we made it; keys and groups of types that have no code of a user's.  So all of
 *	  it is done as who writes, without becoming the owner.
 *
 * Where any of these does not hold, we say so, and the caller settles the row by
 * statements.
 *
 * The key may be there: a stale one of a row that was deleted, or one that a batch
 * which still saw that row is adding (R5).  So the index entry is made as that of
 * a deferred constraint would be: the index says whether it may have a double, and
 * neither waits nor raises an error.  Then we take our row away again, and the
 * caller upserts, which waits as it must.  Two of us never meet there, each with
 * an entry that the other one waits for: the source's own unique index lets only
 * one transaction insert a key.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/pg_am.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "enqueue.h"
#include "executor/executor.h"
#include "expr.h"
#include "objects.h"
#include "rewrite/rewriteHandler.h"
#include "shape.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* what adding a row takes; lives and dies with what the trigger knows of its job */
typedef struct BbfEnqueue
{
	int			ncopied;		/* its first columns: the key, and the group */
	AttrNumber	from[2];		/* those columns of the source */
	bool		possible;		/* else only pending_where is */
	ExprState  *eligible;		/* pending_where; NULL: none */
	ExprContext *econtext;
	TupleTableSlot *slot;
} BbfEnqueue;

/* The column of the table of pending keys that has the same of the source's. */
static bool
is_copy(Relation table, int attno, Relation source, AttrNumber from)
{
	Form_pg_attribute ours = TupleDescAttr(RelationGetDescr(table), attno - 1);
	Form_pg_attribute theirs = TupleDescAttr(RelationGetDescr(source), from - 1);

	return !ours->attisdropped && ours->attgenerated == '\0' && ours->attidentity == '\0' &&
		strcmp(NameStr(ours->attname), NameStr(theirs->attname)) == 0 &&
		ours->atttypid == theirs->atttypid && ours->atttypmod == theirs->atttypmod &&
		ours->attcollation == theirs->attcollation &&
		(!ours->attnotnull || theirs->attnotnull) && !bbf_is_virtual(theirs);
}

/* Is the last column a time that now() fills in? */
static bool
is_clock(Relation table, int attno)
{
	Form_pg_attribute column = TupleDescAttr(RelationGetDescr(table), attno - 1);

	return !column->attisdropped && column->attgenerated == '\0' && column->atttypid == TIMESTAMPTZOID &&
		column->atttypmod == -1 && bbf_shape_default_is_now(table, attno);
}

/*
 * Can an index be kept without the executor's help, and without a user's code?
 * Looked at again before each use: one can be made while others write.
 */
static bool
index_is_simple(Relation index)
{
	return index->rd_index->indimmediate && !index->rd_index->indisexclusion &&
		!bbf_shape_index_has_expressions(index) && !bbf_shape_index_has_predicate(index) &&
		bbf_shape_index_compares_plainly(index);
}

/* Can the indexes be kept without the executor's help? */
static bool
indexes_are_simple(Relation table)
{
	bool		simple = true;
	ListCell   *lc;

	foreach(lc, RelationGetIndexList(table))
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);

		simple = simple && index->rd_rel->relam == BTREE_AM_OID &&
			index_is_simple(index);
		index_close(index, AccessShareLock);
	}
	return simple;
}

/* Is a table of pending keys one that a row can be put into as it is? */
static bool
takes_rows(Relation table, Relation source, const BbfPair *pair)
{
	int			ncopied = pair->group_by ? 2 : 1;
	TriggerDesc *triggers = bbf_shape_triggers(table);

	return table->rd_rel->relkind == RELKIND_RELATION && table->rd_rel->relam == HEAP_TABLE_AM_OID &&
		source->rd_rel->relam == HEAP_TABLE_AM_OID && !table->rd_rel->relispartition &&
		table->rd_rules == NULL && !table->rd_rel->relrowsecurity &&
		!(triggers && (triggers->trig_insert_before_row || triggers->trig_insert_after_row ||
					   triggers->trig_insert_before_statement || triggers->trig_insert_after_statement)) &&
		RelationGetNumberOfAttributes(table) == ncopied + 1 &&
		is_copy(table, 1, source, pair->source_key_att) &&
		(ncopied == 1 || is_copy(table, 2, source, pair->group_att)) &&
		is_clock(table, ncopied + 1) && indexes_are_simple(table) &&
		bbf_shape_write_is_plain(RelationGetRelid(table), TRIGGER_TYPE_INSERT) &&
		pg_class_aclcheck(RelationGetRelid(table), pair->owner, ACL_INSERT) == ACLCHECK_OK;
}

/* Can pending_where be evaluated here? */
static bool
has_simple_condition(const BbfJob *job, const BbfPair *pair)
{
	return job->pending_where == NULL || bbf_expr_simple(job->pending_where, pair->source, job->source_was) != NULL;
}

/* Can keys of the job be added as this file does it? */
bool
bbf_enqueue_is_possible(const BbfJob *job, const BbfPair *pair)
{
	Oid			relid = bbf_object_find(job, BBF_SIDECAR);
	Relation	table;
	Relation	source;
	bool		result;

	if (!pair->has_foreign_key || pair->match_where || !has_simple_condition(job, pair) || !OidIsValid(relid))
		return false;
	table = try_table_open(relid, AccessShareLock);
	if (table == NULL)
		return false;
	source = table_open(pair->source, AccessShareLock);
	result = takes_rows(table, source, pair);
	table_close(source, AccessShareLock);
	table_close(table, AccessShareLock);
	return result;
}

/*
 * Get ready to evaluate pending_where, and to add keys, each where it is possible.
 * A relcache invalidation of the three tables makes all of it stale.
 */
void
bbf_enqueue_prepare(BbfServed *served, const BbfJob *job, const BbfPair *pair)
{
	BbfEnqueue *enqueue;
	MemoryContext old;

	if (!has_simple_condition(job, pair))
		return;
	old = MemoryContextSwitchTo(served->context);
	enqueue = palloc0(sizeof(BbfEnqueue));
	if (job->pending_where)
	{
		enqueue->eligible = ExecInitExpr(copyObject(bbf_expr_simple(job->pending_where, pair->source, job->source_was)), NULL);
		enqueue->econtext = CreateStandaloneExprContext();
	}
	enqueue->possible = bbf_enqueue_is_possible(job, pair);
	if (enqueue->possible)
	{
		Relation	table = table_open(served->table_oid, AccessShareLock);

		enqueue->ncopied = pair->group_by ? 2 : 1;
		enqueue->from[0] = pair->source_key_att;
		enqueue->from[1] = pair->group_att;
		enqueue->slot = MakeSingleTupleTableSlot(CreateTupleDescCopy(RelationGetDescr(table)),
												 table_slot_callbacks(table));
		table_close(table, AccessShareLock);
	}
	MemoryContextSwitchTo(old);
	served->enqueue = enqueue;
}

/* A trigger of the job runs that may follow what was done to a new row. */
void
bbf_enqueue_note_change(BbfServed *served)
{
	served->changed_in = GetTopFullTransactionIdIfAny();
	served->changed_at = GetCurrentCommandId(false);
}

/*
 * Has no such trigger run since the row was inserted?  (One that has xmax is
 * locked or deleted, and its command may not be told by itself.)
 */
static bool
is_untouched(const BbfServed *served, TupleTableSlot *row)
{
	bool		isnull;

	if (!FullTransactionIdIsValid(served->changed_in) ||
		!FullTransactionIdEquals(served->changed_in, GetTopFullTransactionIdIfAny()))
		return true;
	return !TransactionIdIsValid(DatumGetTransactionId(slot_getsysattr(row, MaxTransactionIdAttributeNumber, &isnull))) &&
		served->changed_at < DatumGetCommandId(slot_getsysattr(row, MinCommandIdAttributeNumber, &isnull));
}

/* Does the row satisfy pending_where? */
static bool
is_eligible(const BbfEnqueue *enqueue, TupleTableSlot *row)
{
	bool		isnull;
	Datum		result;

	if (enqueue->eligible == NULL)
		return true;
	enqueue->econtext->ecxt_scantuple = row;
	result = ExecEvalExprSwitchContext(enqueue->eligible, enqueue->econtext, &isnull);
	ResetExprContext(enqueue->econtext);
	return !isnull && DatumGetBool(result);
}

/* Make the index entries of a new row.  False: an index may have its key already. */
static bool
add_index_entries(Relation table, Relation *indexes, IndexInfo **infos, int n, TupleTableSlot *slot)
{
	bool		unique = true;

	for (int i = 0; i < n; i++)
	{
		Datum		values[INDEX_MAX_KEYS];
		bool		isnull[INDEX_MAX_KEYS];
		bool		added;

		if (!infos[i]->ii_ReadyForInserts)
			continue;
		FormIndexDatum(infos[i], slot, NULL, values, isnull);
		added = index_insert(indexes[i], values, isnull, &slot->tts_tid, table,
							 infos[i]->ii_Unique ? UNIQUE_CHECK_PARTIAL : UNIQUE_CHECK_NO, false, infos[i]);
		unique = unique && (added || !infos[i]->ii_Unique);
	}
	return unique;
}

/* Add a row.  False: its key may be there already, and nothing is done. */
static bool
add_row(Relation table, Relation *indexes, IndexInfo **infos, int n, BbfEnqueue *enqueue, TupleTableSlot *row)
{
	TupleTableSlot *slot = enqueue->slot;
	bool		unique;

	ExecClearTuple(slot);
	for (int i = 0; i < enqueue->ncopied; i++)
		slot->tts_values[i] = slot_getattr(row, enqueue->from[i], &slot->tts_isnull[i]);
	slot->tts_values[enqueue->ncopied] = TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());
	slot->tts_isnull[enqueue->ncopied] = false;
	ExecStoreVirtualTuple(slot);

	table_tuple_insert(table, slot, GetCurrentCommandId(true), 0, NULL);
	unique = add_index_entries(table, indexes, infos, n, slot);
	if (!unique)
	{
		CommandCounterIncrement();	/* to be able to delete it */
		simple_table_tuple_delete(table, &slot->tts_tid, GetActiveSnapshot());
	}
	ExecClearTuple(slot);
	return unique;
}

/*
 * Settle a source row that a trigger has found new.  False: that is not possible
 * here and now, and nothing is done; the row is eligible, if pending_where can be
 * evaluated here.
 */
bool
bbf_enqueue_row(BbfServed *served, TupleTableSlot *row)
{
	BbfEnqueue *enqueue = served->enqueue;
	Relation	table;
	List	   *list;
	ListCell   *lc;
	Relation   *indexes;
	IndexInfo **infos;
	int			n = 0;
	bool		simple;

	if (enqueue == NULL)
		return false;
	if (!is_eligible(enqueue, row))
		return true;
	if (!enqueue->possible || !is_untouched(served, row) || (table = try_table_open(served->table_oid, RowExclusiveLock)) == NULL)
		return false;

	/* it is locked: is it still what we got ready for? */
	simple = !served->stale;
	list = RelationGetIndexList(table);
	indexes = palloc(sizeof(Relation) * (list_length(list) + 1));
	infos = palloc(sizeof(IndexInfo *) * (list_length(list) + 1));
	foreach(lc, list)
	{
		indexes[n] = index_open(lfirst_oid(lc), RowExclusiveLock);
		simple = simple && index_is_simple(indexes[n]);
		infos[n] = simple ? BuildIndexInfo(indexes[n]) : NULL;
		n++;
	}
	simple = simple && !served->stale && add_row(table, indexes, infos, n, enqueue, row);
	for (int i = 0; i < n; i++)
		index_close(indexes[i], NoLock);
	table_close(table, NoLock);
	return simple;
}
