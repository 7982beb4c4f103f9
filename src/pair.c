/*
 * pair.c
 *		The two tables of a job as the catalogs have them now: keys, operators,
 *		conditions.
 *
 * Read anew in every transaction that uses it, because a table may have been
 * altered between two of them.  What cannot be worked with is an error here,
 * in words that track() can say to a user as well as a worker can record them.
 * The operators on keys come from the operator family of the index on the
 * source key: what orders the index is what orders the walk.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/nbtree.h"
#include "access/table.h"
#include "catalog/pg_am.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "expr.h"
#include "miscadmin.h"
#include "pair.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/typcache.h"
#include "value.h"

/* the first column of a btree index */
typedef struct KeyIndex
{
	Oid			opfamily;
	Oid			opcintype;
	Oid			collation;
	bool		unique;			/* and on this column alone */
} KeyIndex;

/*
 * Find a btree index that begins with a column: a unique one on that column
 * alone if there is one, and one like another table's if there is one.  Partial
 * and invalid ones don't count.  like: NULL, or what the other one is.
 */
static bool
find_key_index(Relation rel, AttrNumber attno, const KeyIndex *like, KeyIndex *found)
{
	List	   *indexes = RelationGetIndexList(rel);
	ListCell   *lc;
	int			best = 0;

	foreach(lc, indexes)
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);
		Form_pg_index form = index->rd_index;
		bool		usable = index->rd_rel->relam == BTREE_AM_OID &&
		form->indisvalid && form->indkey.values[0] == attno &&
		heap_attisnull(index->rd_indextuple, Anum_pg_index_indpred, NULL);
		bool		unique = usable && form->indisunique && form->indimmediate &&
		form->indnkeyatts == 1;
		bool		alike = usable && like && index->rd_opfamily[0] == like->opfamily &&
		index->rd_indcollation[0] == like->collation;
		int			rank = usable ? 1 + (unique ? 1 : 0) + (alike ? 2 : 0) : 0;

		if (rank > best)
		{
			found->opfamily = index->rd_opfamily[0];
			found->opcintype = index->rd_opcintype[0];
			found->collation = index->rd_indcollation[0];
			found->unique = unique;
			best = rank;
		}
		index_close(index, AccessShareLock);
	}
	list_free(indexes);
	return best > 0;
}

/* "OPERATOR(schema.=)" for an operator. */
static char *
operator_sql(Oid operator)
{
	HeapTuple	tuple = SearchSysCache1(OPEROID, ObjectIdGetDatum(operator));
	Form_pg_operator form;
	char	   *result;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for operator %u", operator);
	form = (Form_pg_operator) GETSTRUCT(tuple);
	result = psprintf("OPERATOR(%s.%s)", quote_identifier(get_namespace_name(form->oprnamespace)),
					  NameStr(form->oprname));
	ReleaseSysCache(tuple);
	return result;
}

/* All five comparisons of lefttype with righttype; false if one is missing. */
static bool
find_operators(Oid opfamily, Oid lefttype, Oid righttype, char **ops)
{
	for (int strategy = BTLessStrategyNumber; strategy <= BTMaxStrategyNumber; strategy++)
	{
		Oid			operator = get_opfamily_member(opfamily, lefttype, righttype, strategy);

		if (!OidIsValid(operator))
			return false;
		ops[strategy] = operator_sql(operator);
	}
	return true;
}

/* A column by name; an error that says whose it is if there is none. */
static AttrNumber
find_column(Relation rel, const char *name, const char *what)
{
	AttrNumber	attno = get_attnum(RelationGetRelid(rel), name);

	if (attno <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("%s column \"%s\" of table \"%s\" does not exist",
						what, name, RelationGetRelationName(rel)),
				 MyBackendType == B_BG_WORKER ?
				 errhint("If it is gone for good, use bgw_backfill.untrack() and track() again.") : 0));
	return attno;
}

/*
 * The triggers sort keys and pass them as arrays.  A row type is compared by operators
 * of "record", which the server does not find for "= ANY" of an array of that type.
 */
static bool
can_be_key(Oid type)
{
	return OidIsValid(get_array_type(type)) && get_typtype(type) != TYPTYPE_COMPOSITE &&
		OidIsValid(lookup_type_cache(type, TYPECACHE_CMP_PROC)->cmp_proc);
}

/* Are two columns of one type, length and all? */
static bool
same_type(Relation a, AttrNumber a_att, Relation b, AttrNumber b_att)
{
	Form_pg_attribute first = TupleDescAttr(RelationGetDescr(a), a_att - 1);
	Form_pg_attribute second = TupleDescAttr(RelationGetDescr(b), b_att - 1);

	return first->atttypid == second->atttypid && first->atttypmod == second->atttypmod;
}

/* Keys: their indexes, types, collation and operators. */
static void
load_keys(BbfPair *pair, const BbfJob *job, Relation source, Relation target)
{
	KeyIndex	skey;
	KeyIndex	tkey;
	Oid			eq = InvalidOid;

	pair->source_key_att = find_column(source, job->source_key, "source key");
	pair->target_key_att = find_column(target, job->target_key, "target key");
	pair->source_key = pstrdup(quote_identifier(job->source_key));
	pair->target_key = pstrdup(quote_identifier(job->target_key));
	pair->same_key_type = same_type(source, pair->source_key_att, target, pair->target_key_att);
	pair->key_type = getBaseType(get_atttype(pair->source, pair->source_key_att));
	pair->target_key_type = getBaseType(get_atttype(pair->target, pair->target_key_att));

	if (!find_key_index(source, pair->source_key_att, NULL, &skey) || !skey.unique)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("source key \"%s\" of table \"%s\" has no unique index of its own",
						job->source_key, RelationGetRelationName(source)),
				 errdetail("The walk over the source needs a valid, immediate, unique btree index on that column alone, without a condition."),
				 errhint("Use CREATE UNIQUE INDEX CONCURRENTLY, or name another column as source_key.")));
	if (!find_key_index(target, pair->target_key_att, &skey, &tkey))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("no index of table \"%s\" begins with the target key \"%s\"",
						RelationGetRelationName(target), job->target_key),
				 errdetail("Each look for a target row would read the whole table."),
				 errhint("Use CREATE INDEX CONCURRENTLY ON %s (%s).",
						 pair->target_sql, pair->target_key)));
	if (skey.opfamily != tkey.opfamily ||
		!find_operators(skey.opfamily, skey.opcintype, skey.opcintype, pair->key_op) ||
		!find_operators(skey.opfamily, tkey.opcintype, skey.opcintype, pair->target_key_op) ||
		!OidIsValid(eq = get_opfamily_member(skey.opfamily, skey.opcintype, tkey.opcintype,
											 BTEqualStrategyNumber)))
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("source key \"%s\" and target key \"%s\" have no btree equality in common",
						job->source_key, job->target_key),
				 errdetail("Their types are %s and %s.",
						   format_type_be(get_atttype(pair->source, pair->source_key_att)),
						   format_type_be(get_atttype(pair->target, pair->target_key_att))),
				 errhint("Give both columns the same type, or types of one operator family such as integer and bigint.")));
	if (op_volatile(eq) != PROVOLATILE_IMMUTABLE)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("source key \"%s\" and target key \"%s\" are not equal for everybody alike",
						job->source_key, job->target_key),
				 errdetail("How %s and %s compare depends on settings of the session.",
						   format_type_be(get_atttype(pair->source, pair->source_key_att)),
						   format_type_be(get_atttype(pair->target, pair->target_key_att))),
				 errhint("Give both columns the same type.")));
	if (skey.collation != tkey.collation)
		ereport(ERROR,
				(errcode(ERRCODE_COLLATION_MISMATCH),
				 errmsg("source key \"%s\" and target key \"%s\" have different collations",
						job->source_key, job->target_key),
				 errhint("Give both columns, and the indexes on them, the same collation.")));
	if (!can_be_key(pair->key_type) || !can_be_key(pair->target_key_type))
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("type %s cannot be a key",
						format_type_be(can_be_key(pair->key_type) ? pair->target_key_type : pair->key_type)),
				 errdetail("A key's type needs an array type and a default btree operator class, and must not be a row type."),
				 errhint("Give both tables a unique column of another type, such as bigint or uuid, and name it as source_key and target_key.")));
	if (!TupleDescAttr(RelationGetDescr(source), pair->source_key_att - 1)->attnotnull)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("source key \"%s\" of table \"%s\" is not NOT NULL",
						job->source_key, RelationGetRelationName(source)),
				 errdetail("The walk over the source does not meet rows without a key."),
				 errhint("Use ALTER TABLE ... ALTER COLUMN ... SET NOT NULL, or name another column as source_key.")));
	pair->source_eq_target = operator_sql(eq);
	pair->key_collation = skey.collation;
	pair->key_has_one_text = bbf_value_equal_is_image(skey.opfamily, skey.opcintype, skey.collation);
	pair->key_opfamily = skey.opfamily;
	pair->key_opcintype = skey.opcintype;
	pair->target_key_unique = tkey.unique;
}

/* The group column, if any. */
static void
load_group(BbfPair *pair, const BbfJob *job, Relation source)
{
	TypeCacheEntry *type;
	Oid			column_type;
	int32		typmod;

	if (job->group_by == NULL)
		return;
	pair->group_att = find_column(source, job->group_by, "group");
	pair->group_by = pstrdup(quote_identifier(job->group_by));
	pair->group_type = getBaseType(get_atttype(pair->source, pair->group_att));
	type = lookup_type_cache(pair->group_type, TYPECACHE_GT_OPR | TYPECACHE_EQ_OPR);
	if (!OidIsValid(type->gt_opr) || !OidIsValid(type->eq_opr))
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("group column \"%s\" has type %s, which cannot be sorted",
						job->group_by, format_type_be(pair->group_type)),
				 errdetail("The pending scan steps through the groups in order."),
				 errhint("Name a column whose type has a default btree operator class.")));
	pair->group_gt = operator_sql(type->gt_opr);
	pair->group_eq = operator_sql(type->eq_opr);
	get_atttypetypmodcoll(pair->source, pair->group_att, &column_type, &typmod, &pair->group_collation);
	pair->group_has_one_text = bbf_value_equal_is_image(type->btree_opf, type->btree_opintype, pair->group_collation);
}

/*
 * Look for foreign keys of one column from target to source.  Returns whether
 * one between the given columns (InvalidAttrNumber: any) is validated and not
 * deferrable; the columns of the last one found, and how many were.
 */
bool
bbf_pair_find_foreign_key(Relation source, Relation target,
						  AttrNumber *source_att, AttrNumber *target_att, int *nfound)
{
	List	   *fkeys = copyObject(RelationGetFKeyList(target));	/* a look-up may free the cache's own */
	AttrNumber	want_source = *source_att;
	AttrNumber	want_target = *target_att;
	ListCell   *lc;
	bool		firm = false;

	*nfound = 0;
	foreach(lc, fkeys)
	{
		ForeignKeyCacheInfo *fkey = lfirst_node(ForeignKeyCacheInfo, lc);
		HeapTuple	tuple;
		Form_pg_constraint con;

		if (fkey->confrelid != RelationGetRelid(source) || fkey->nkeys != 1 ||
			(want_source != InvalidAttrNumber && fkey->confkey[0] != want_source) ||
			(want_target != InvalidAttrNumber && fkey->conkey[0] != want_target))
			continue;
		*source_att = fkey->confkey[0];
		*target_att = fkey->conkey[0];
		(*nfound)++;
		tuple = SearchSysCache1(CONSTROID, ObjectIdGetDatum(fkey->conoid));
		if (!HeapTupleIsValid(tuple))
			elog(ERROR, "cache lookup failed for constraint %u", fkey->conoid);
		con = (Form_pg_constraint) GETSTRUCT(tuple);
		firm = firm || (con->convalidated && !con->condeferrable);
		ReleaseSysCache(tuple);
	}
	return firm;
}

/* The owner of a relation, or InvalidOid if it is gone. */
Oid
bbf_pair_owner(Oid relid)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	Oid			owner = InvalidOid;

	if (HeapTupleIsValid(tuple))
	{
		owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
		ReleaseSysCache(tuple);
	}
	return owner;
}

/*
 * The two tables of a job by name, as far as they are there; nothing of their
 * columns.  Enough to drop what is on them.
 */
BbfPair *
bbf_pair_tables(const BbfJob *job)
{
	BbfPair    *pair = palloc0(sizeof(BbfPair));

	pair->source = bbf_job_source(job);
	pair->target = bbf_job_target(job);
	if (OidIsValid(pair->source))
	{
		pair->schema = get_namespace_name(get_rel_namespace(pair->source));
		pair->source_sql = quote_qualified_identifier(pair->schema, get_rel_name(pair->source));
		pair->owner = bbf_pair_owner(pair->source);
	}
	if (OidIsValid(pair->target))
		pair->target_sql = quote_qualified_identifier(get_namespace_name(get_rel_namespace(pair->target)),
													  get_rel_name(pair->target));
	return pair;
}

/*
 * Read the pair of a job.  An error if a table, a column or an index that the
 * job needs is not there.  A worker keeps its locks on the tables, so that the
 * names hold until it commits; elsewhere no lock outlives the call.
 */
BbfPair *
bbf_pair_load(const BbfJob *job)
{
	BbfPair    *pair = bbf_pair_tables(job);
	AttrNumber	source_att;
	AttrNumber	target_att;
	int			nfound;
	Relation	source = OidIsValid(pair->source) ? try_table_open(pair->source, AccessShareLock) : NULL;
	Relation	target = OidIsValid(pair->target) ? try_table_open(pair->target, AccessShareLock) : NULL;

	if (source == NULL || target == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 source == NULL ?
				 errmsg("source table \"%s.%s\" of job \"%s\" does not exist",
						job->source_schema, job->source_name, job->name) :
				 errmsg("target table \"%s.%s\" of job \"%s\" does not exist",
						job->target_schema, job->target_name, job->name),
				 errhint("Use bgw_backfill.untrack('%s') to end the job.", job->name)));

	/* names as they are under the lock */
	pair->owner = source->rd_rel->relowner;
	/* the conditions are not to run with the rights of somebody who has not said so */
	if (!bbf_job_belongs_to(job, pair->owner))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("source of job \"%s\" does not belong to role \"%s\"", job->name, job->owner),
				 errdetail("Source, target and view must have the same owner."),
				 errhint("Use ALTER ... OWNER TO, then bgw_backfill.resume('%s').", job->name)));
	pair->schema = get_namespace_name(RelationGetNamespace(source));
	pair->source_sql = quote_qualified_identifier(pair->schema, RelationGetRelationName(source));
	pair->target_sql = quote_qualified_identifier(get_namespace_name(RelationGetNamespace(target)),
												  RelationGetRelationName(target));
	load_keys(pair, job, source, target);
	load_group(pair, job, source);
	source_att = pair->source_key_att;
	target_att = pair->target_key_att;
	pair->has_foreign_key = bbf_pair_find_foreign_key(source, target, &source_att, &target_att, &nfound);
	pair->pending_where = bbf_expr_deparse(job->pending_where, pair->source, job->source_was, "s");
	pair->match_where = bbf_expr_deparse(job->match_where, pair->target, job->target_was, "m");

	table_close(target, MyBackendType == B_BG_WORKER ? NoLock : AccessShareLock);
	table_close(source, MyBackendType == B_BG_WORKER ? NoLock : AccessShareLock);
	return pair;
}

/* A source key from its text. */
Datum
bbf_pair_key_in(const BbfPair *pair, const char *text)
{
	return bbf_value_in(pair->owner, pair->key_type, text);
}

/* Source keys from texts that were stored, as far as they can be read: how many, and which ones. */
int
bbf_pair_keys_in(const BbfPair *pair, char *const *texts, int n, Datum *keys, int *which)
{
	return bbf_value_in_readable(pair->owner, pair->key_type, texts, n, keys, which);
}

/* The text of a source key. */
char *
bbf_pair_key_out(const BbfPair *pair, Datum key)
{
	return bbf_value_out(pair->owner, pair->key_type, key);
}

/* A group from its text. */
Datum
bbf_pair_group_in(const BbfPair *pair, const char *text)
{
	return bbf_value_in(pair->owner, pair->group_type, text);
}

/* Can the text of a group that a job goes on after still be read?  The log says so if not. */
bool
bbf_pair_group_is_readable(const BbfPair *pair, const char *job, const char *text)
{
	if (bbf_value_is_readable(pair->owner, pair->group_type, text))
		return true;
	ereport(LOG,
			(errmsg("job \"%s\": a group that was stored can no longer be read, beginning anew", job)));
	return false;
}

/* The text of a group. */
char *
bbf_pair_group_out(const BbfPair *pair, Datum group)
{
	return bbf_value_out(pair->owner, pair->group_type, group);
}

/* Are two values one group, as the index has it? */
bool
bbf_pair_same_group(const BbfPair *pair, Datum a, Datum b)
{
	TypeCacheEntry *type = lookup_type_cache(pair->group_type, TYPECACHE_EQ_OPR_FINFO);

	return DatumGetBool(bbf_value_call(pair->owner, &type->eq_opr_finfo, pair->group_collation, a, b));
}

/* The order of two groups, as the index has it. */
int
bbf_pair_compare_groups(const BbfPair *pair, Datum a, Datum b)
{
	TypeCacheEntry *type = lookup_type_cache(pair->group_type, TYPECACHE_CMP_PROC_FINFO);

	return DatumGetInt32(bbf_value_call(pair->owner, &type->cmp_proc_finfo, pair->group_collation, a, b));
}

/* The order of two source keys, as the index on the source key has it. */
int
bbf_pair_compare_keys(const BbfPair *pair, Datum a, Datum b)
{
	Oid			support = get_opfamily_proc(pair->key_opfamily, pair->key_opcintype, pair->key_opcintype, BTORDER_PROC);
	FmgrInfo	compare;

	if (!OidIsValid(support))
		elog(ERROR, "operator family %u has no comparison for type %u", pair->key_opfamily, pair->key_opcintype);
	fmgr_info(support, &compare);
	return DatumGetInt32(bbf_value_call(pair->owner, &compare, pair->key_collation, a, b));
}

/*
 * "A match exists" for one source row, as SQL.  OFFSET 0 keeps the planner from
 * reading the whole target into a hash table instead of probing its index, a
 * choice that a saved plan would keep while the target grows.
 */
char *
bbf_pair_match(const BbfPair *pair, const char *source_alias)
{
	return psprintf("EXISTS (SELECT FROM ONLY %s m WHERE m.%s %s %s.%s%s%s OFFSET 0)",
					pair->target_sql, pair->target_key, pair->target_key_op[BTEqualStrategyNumber],
					source_alias, pair->source_key,
					pair->match_where ? " AND " : "", pair->match_where ? pair->match_where : "");
}
