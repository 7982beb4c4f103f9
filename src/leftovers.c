/*
 * leftovers.c
 *		What an earlier job of the same name has left beside the same source.
 *
 * untrack(job, false) and DROP EXTENSION leave a job's view, index and table of pending keys.
 * A job that gets the same name takes them up: what fits is used, what does not, or is of
 * another mode, is dropped and made anew.  Nobody has kept them meanwhile: the fill adds
 * what is missing, and the verify, which looks in both directions, puts the rest right
 * before the job is live.
 *
 * Whatever a user has made of that name is never taken for one of these: each carries a
 * comment that names the job, which only its owner can give it, and he must be the source's.
 * The indexes of a table of pending keys are known by their table, that on a source has to be
 * on this one.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "catalog/index.h"
#include "catalog/pg_class.h"
#include "commands/comment.h"
#include "expr.h"
#include "leftovers.h"
#include "miscadmin.h"
#include "mode_sidecar.h"
#include "sql.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

/* The comment by which an object of a job is known; NULL: it has none of its own. */
char *
bbf_leftover_mark(const BbfJob *job, BbfObject object)
{
	switch (object)
	{
		case BBF_VIEW:
		case BBF_PENDING_IDX:
			return psprintf("pending rows of job %s, kept by bgw_backfill", bbf_job_display_name(job));
		case BBF_SIDECAR:
			return psprintf("keys of the pending rows of job %s, kept by bgw_backfill", bbf_job_display_name(job));
		default:
			return NULL;
	}
}

/* Is what has the name of an object of the job, and is not its own, left by an earlier one? */
bool
bbf_leftover_is(const BbfJob *job, BbfObject object, Oid owner)
{
	Oid			relid = bbf_object_find(job, object);
	char	   *comment;

	if (!OidIsValid(relid) || bbf_object_is_recorded(job, object) || !bbf_object_fits(object, relid, owner))
		return false;
	if (object == BBF_SIDECAR_KEY || object == BBF_SIDECAR_IDX)
		return bbf_leftover_is(job, BBF_SIDECAR, owner) &&
			IndexGetRelation(relid, true) == bbf_object_find(job, BBF_SIDECAR);
	if (object == BBF_PENDING_IDX && IndexGetRelation(relid, true) != bbf_job_source(job))
		return false;
	comment = GetComment(relid, RelationRelationId, 0);
	return comment && strcmp(comment, bbf_leftover_mark(job, object)) == 0;
}

/* Say what a new job would take up. */
void
bbf_leftovers_tell(const BbfJob *job, Oid owner)
{
	for (BbfObject object = 0; object < BBF_OBJECTS; object++)
	{
		if (object != BBF_SIDECAR_KEY && object != BBF_SIDECAR_IDX && bbf_leftover_is(job, object, owner))
			ereport(NOTICE,
					(errmsg("%s \"%s\", left by an earlier job \"%s\", is taken up again",
							object == BBF_VIEW ? "view" : object == BBF_SIDECAR ? "table" : "index",
							bbf_object_name(job, object), job->name)));
	}
}

/* Has a relation these columns in this order, of the source's types, and so many in all? */
static bool
has_columns(Oid relid, Oid source, const char *const *names, int n, int natts)
{
	Relation	rel = table_open(relid, AccessShareLock);
	TupleDesc	desc = RelationGetDescr(rel);
	bool		result = desc->natts == natts;

	for (int i = 0; i < n && result; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		Oid			type;
		int32		typmod;
		Oid			collation;

		get_atttypetypmodcoll(source, get_attnum(source, names[i]), &type, &typmod, &collation);
		result = !att->attisdropped && strcmp(NameStr(att->attname), names[i]) == 0 &&
			att->atttypid == type && att->atttypmod == typmod && att->attcollation == collation;
	}
	table_close(rel, NoLock);
	return result;
}

/* Is a left index the one that would be built? */
static bool
index_fits(const BbfJob *job, const BbfPair *pair)
{
	Relation	index = index_open(bbf_object_find(job, BBF_PENDING_IDX), AccessShareLock);
	const Form_pg_index form = index->rd_index;
	bool		result = form->indisvalid && !form->indisunique &&
		form->indnatts == (pair->group_by ? 2 : 1) &&
		form->indkey.values[form->indnatts - 1] == pair->source_key_att &&
		(pair->group_by == NULL || form->indkey.values[0] == pair->group_att) &&
		bbf_expr_is_predicate(RelationGetRelid(index), pair->source,
							  psprintf("NOT %s%s", quote_identifier(job->flag_column),
									   job->pending_where ? psprintf(" AND (%s)", bbf_expr_renamed(job->pending_where, pair->source, job->source_was)) : ""));

	for (int i = 0; i < form->indnatts && result; i++)
		result = index->rd_indoption[i] == 0 &&
			index->rd_opfamily[i] == (form->indkey.values[i] == pair->source_key_att ? pair->key_opfamily : index->rd_opfamily[i]);
	index_close(index, NoLock);
	return result;
}

static void
drop(const BbfJob *job, BbfObject object)
{
	ereport(LOG,
			(errmsg("job \"%s\": dropping \"%s\", left by an earlier job", bbf_job_display_name(job), bbf_object_name(job, object))));
	bbf_sql_ddl(psprintf("DROP %s %s", bbf_object_keyword(object),
						 bbf_object_sql(job, object)));
}

/* Drop what is left and does not fit the job, before install makes what is missing.  Both tables are locked. */
void
bbf_leftovers_drop_misfits(const BbfJob *job, const BbfPair *pair)
{
	const BbfMode *mode = bbf_mode_lookup(job->mode);
	const char *names[] = {job->source_key, job->group_by, BBF_ENQUEUED_AT};
	int			n = job->group_by ? 2 : 1;
	bool		sidecar = bbf_leftover_is(job, BBF_SIDECAR, GetUserId());
	bool		sidecar_fits = !sidecar || mode->table == NULL ||
		has_columns(bbf_object_find(job, BBF_SIDECAR), pair->source, names, n, n + 1);

	/* the view reads the table */
	if (bbf_leftover_is(job, BBF_VIEW, GetUserId()) &&
		(!sidecar_fits || !has_columns(bbf_object_find(job, BBF_VIEW), pair->source, names, n, n)))
		drop(job, BBF_VIEW);
	if (!sidecar_fits)
		drop(job, BBF_SIDECAR);
	if (mode->pending_index && bbf_leftover_is(job, BBF_PENDING_IDX, GetUserId()) &&
		(get_attnum(pair->source, job->flag_column) == InvalidAttrNumber || !index_fits(job, pair)))
		drop(job, BBF_PENDING_IDX);
}

/* Drop what is left of another mode, once the view does not read it any more. */
void
bbf_leftovers_drop_unused(const BbfJob *job)
{
	const BbfMode *mode = bbf_mode_lookup(job->mode);

	if (mode->table == NULL && bbf_leftover_is(job, BBF_SIDECAR, GetUserId()))
		drop(job, BBF_SIDECAR);
	if (mode->pending_index == NULL && bbf_leftover_is(job, BBF_PENDING_IDX, GetUserId()))
		drop(job, BBF_PENDING_IDX);
}
