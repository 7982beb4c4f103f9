/*
 * columns.c
 *		The names of columns as a job's configuration has them.
 *
 * A job knows its columns by name: key, group, flag, and those in the text of its
 * conditions.  A rename changes the name and not the number.  So each job keeps, for
 * both of its tables, which number every name stood for.  Whoever reads the job sees the
 * columns under the names of now (bbf_columns_resolve), the conditions among them: their
 * text is parsed with the names of then (expr.c).  The worker writes the names of now into
 * the configuration when it checks the installation, and whoever changes the job.
 *
 * A column that is gone is not followed: another one that has got its name is taken for it.
 * In another database, where numbers mean nothing, the names count.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_type.h"
#include "columns.h"
#include "expr.h"
#include "sql.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/syscache.h"

/* The columns from an array of texts, each "number name". */
List *
bbf_columns_from_array(Datum array)
{
	List	   *columns = NIL;
	Datum	   *texts;
	int			n;

	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false, TYPALIGN_INT, &texts, NULL, &n);
	for (int i = 0; i < n; i++)
	{
		BbfColumn  *column = palloc(sizeof(BbfColumn));
		char	   *entry = TextDatumGetCString(texts[i]);
		char	   *name = strchr(entry, ' ');

		if (name == NULL)
			continue;
		column->att = (AttrNumber) atoi(entry);
		column->name = name + 1;
		columns = lappend(columns, column);
	}
	return columns;
}

static Datum
to_array(const List *columns)
{
	Datum	   *texts = palloc(sizeof(Datum) * Max(list_length(columns), 1));
	ListCell   *lc;

	foreach(lc, columns)
	{
		const BbfColumn *column = lfirst(lc);

		texts[foreach_current_index(lc)] = CStringGetTextDatum(psprintf("%d %s", column->att, column->name));
	}
	return PointerGetDatum(construct_array(texts, list_length(columns), TEXTOID, -1, false, TYPALIGN_INT));
}

/* The name that a column had; NULL: it is not among them. */
const char *
bbf_columns_was(const List *columns, AttrNumber att)
{
	ListCell   *lc;

	foreach(lc, columns)
	{
		const BbfColumn *column = lfirst(lc);

		if (column->att == att)
			return column->name;
	}
	return NULL;
}

/* The name that a column has now; NULL: it is gone. */
static char *
attribute_name(Oid relid, AttrNumber att)
{
	HeapTuple	tuple = SearchSysCacheAttNum(relid, att);
	char	   *name;

	if (!HeapTupleIsValid(tuple))
		return NULL;
	name = pstrdup(NameStr(((Form_pg_attribute) GETSTRUCT(tuple))->attname));
	ReleaseSysCache(tuple);
	return name;
}

/* Those of the columns that have another name now, with the one that they had. */
static List *
renamed(Oid relid, const List *columns)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, columns)
	{
		BbfColumn  *column = lfirst(lc);
		char	   *name = attribute_name(relid, column->att);

		if (name && strcmp(name, column->name) != 0)
			result = lappend(result, column);
	}
	return result;
}

/* The name of now of a column that had this name then. */
static char *
name_now(Oid relid, const List *was, char *name)
{
	ListCell   *lc;

	foreach(lc, was)
	{
		const BbfColumn *column = lfirst(lc);

		if (name && strcmp(column->name, name) == 0)
			return attribute_name(relid, column->att);
	}
	return name;
}

/* Let a job, just read, know its columns by the names of now. */
void
bbf_columns_resolve(BbfJob *job)
{
	Oid			source = bbf_job_source(job);
	Oid			target = bbf_job_target(job);

	if (!bbf_job_same_place(job))
		return;
	job->source_was = renamed(source, job->source_columns);
	job->target_was = renamed(target, job->target_columns);
	job->source_key = name_now(source, job->source_was, job->source_key);
	job->group_by = name_now(source, job->source_was, job->group_by);
	job->flag_column = name_now(source, job->source_was, job->flag_column);
	job->target_key = name_now(target, job->target_was, job->target_key);
}

/* The columns of a table as they are now. */
static List *
columns_now(Oid relid)
{
	Relation	rel = table_open(relid, AccessShareLock);
	List	   *columns = NIL;

	for (int i = 0; i < RelationGetDescr(rel)->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel), i);
		BbfColumn  *column;

		if (att->attisdropped)
			continue;
		column = palloc(sizeof(BbfColumn));
		column->att = att->attnum;
		column->name = pstrdup(NameStr(att->attname));
		columns = lappend(columns, column);
	}
	table_close(rel, NoLock);
	return columns;
}

static bool
are_the_same(const List *a, const List *b)
{
	ListCell   *la;
	ListCell   *lb;

	if (list_length(a) != list_length(b))
		return false;
	forboth(la, a, lb, b)
	{
		const BbfColumn *x = lfirst(la);
		const BbfColumn *y = lfirst(lb);

		if (x->att != y->att || strcmp(x->name, y->name) != 0)
			return false;
	}
	return true;
}

/*
 * Write the names of now into the configuration of a job whose tables are there.  Changes
 * nothing when they are the same, and wakes nobody when none of the job's is another one.
 * Returns the source's columns that have got another name, with the one that they had.
 */
List *
bbf_columns_follow(BbfJob *job)
{
	List	   *source_was = job->source_was;
	Oid			source = bbf_job_source(job);
	Oid			target = bbf_job_target(job);
	List	   *source_columns = columns_now(source);
	List	   *target_columns = columns_now(target);
	Oid			types[9] = {TEXTOID, TEXTARRAYOID, TEXTARRAYOID};
	Datum		values[9] = {CStringGetTextDatum(job->name), to_array(source_columns), to_array(target_columns)};
	char		nulls[] = "         ";
	char	   *texts[8];

	if (are_the_same(source_columns, job->source_columns) && are_the_same(target_columns, job->target_columns))
		return NIL;
	bbf_sql_catalog("UPDATE bgw_backfill.job SET source_columns = $2, target_columns = $3 WHERE job OPERATOR(pg_catalog.=) $1",
					3, types, values, NULL, SPI_OK_UPDATE);
	job->source_columns = source_columns;
	job->target_columns = target_columns;
	if (job->source_was == NIL && job->target_was == NIL)
		return NIL;
	job->pending_where = bbf_expr_renamed(job->pending_where, source, job->source_was);
	job->match_where = bbf_expr_renamed(job->match_where, target, job->target_was);
	job->new_pending_where = bbf_expr_renamed(job->new_pending_where, source, job->source_was);
	job->new_match_where = bbf_expr_renamed(job->new_match_where, target, job->target_was);
	texts[0] = job->source_key;
	texts[1] = job->target_key;
	texts[2] = job->group_by;
	texts[3] = job->flag_column;
	texts[4] = job->pending_where;
	texts[5] = job->match_where;
	texts[6] = job->new_pending_where;
	texts[7] = job->new_match_where;
	for (int i = 0; i < (int) lengthof(texts); i++)
	{
		types[1 + i] = TEXTOID;
		values[1 + i] = texts[i] ? CStringGetTextDatum(texts[i]) : (Datum) 0;
		nulls[1 + i] = texts[i] ? ' ' : 'n';
	}
	bbf_sql_catalog("UPDATE bgw_backfill.job SET source_key = $2, target_key = $3, group_by = $4, flag_column = $5,"
					" pending_where = $6, match_where = $7, new_pending_where = $8, new_match_where = $9"
					" WHERE job OPERATOR(pg_catalog.=) $1",
					9, types, values, nulls, SPI_OK_UPDATE);
	ereport(LOG,
			(errmsg("job \"%s\": columns have got other names, which are followed", bbf_job_display_name(job))));
	job->source_was = job->target_was = NIL;
	return source_was;
}
