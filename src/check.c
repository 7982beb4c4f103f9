/*
 * check.c
 *		What track() checks before it writes a job, and what it says in a dry
 *		run.
 *
 * Everything that would make a worker fail later, or an application's write
 * fail because of us, is found here and refused with a hint.  A worker checks
 * again what can change between: nothing here is a promise.
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "check.h"
#include "commands/tablespace.h"
#include "commands/trigger.h"
#include "compat.h"
#include "expr.h"
#include "identity.h"
#include "leftovers.h"
#include "mode.h"
#include "names.h"
#include "readers.h"
#include "shape.h"
#include "sql.h"
#include "usercontext.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

/* A name that the job's objects can be made of, and that is not in use. */
static void
check_name(const BbfJob *job, Oid schema, Oid owner)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(job->name)};

	bbf_names_check_job(job->name);
	if (bbf_sql_catalog("SELECT 1 FROM bgw_backfill.job WHERE job OPERATOR(pg_catalog.=) $1",
						1, types, values, NULL, SPI_OK_SELECT) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("job \"%s\" already exists", job->name),
				 errhint("Give another name as job => '...', or end that job with bgw_backfill.untrack().")));
	for (BbfObject object = 0; object < BBF_OBJECTS; object++)
	{
		if (!bbf_leftover_is(job, object, owner))
			bbf_names_check_object(bbf_job_object(job, bbf_object_suffix(object)), schema, InvalidOid,
								   bbf_names_hint(bbf_job_object(job, bbf_object_suffix(object)), schema));
	}
	bbf_leftovers_tell(job, owner);
}

/* The owner's right on a schema. */
static void
check_schema(Oid schema, Oid owner, AclMode right, const char *right_name)
{
	const char *schema_name = get_namespace_name(schema);
	const char *role = GetUserNameFromId(owner, false);

	if (bbf_schema_aclcheck(schema, owner, right) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("role \"%s\" has no %s privilege on schema \"%s\"",
						role, right_name, schema_name),
				 errdetail("The job's objects are made beside the source, as its owner."),
				 errhint("Use GRANT USAGE, CREATE ON SCHEMA %s TO %s.",
						 quote_identifier(schema_name), quote_identifier(role))));
}

/* The owner: of both tables, the caller's role, able to connect and create. */
static void
check_owner(BbfJob *job, Relation source, Relation target)
{
	Oid			owner = source->rd_rel->relowner;
	Oid			schema = RelationGetNamespace(source);
	Oid			tablespace = source->rd_rel->reltablespace;
	const char *name = GetUserNameFromId(owner, false);
	char	   *problem;
	char	   *hint;

	if (!bbf_relation_ownercheck(RelationGetRelid(source), GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_TABLE, RelationGetRelationName(source));
	if (!bbf_relation_ownercheck(RelationGetRelid(target), GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_TABLE, RelationGetRelationName(target));
	if (target->rd_rel->relowner != owner)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("source \"%s\" and target \"%s\" have different owners",
						RelationGetRelationName(source), RelationGetRelationName(target)),
				 errdetail("They belong to %s and %s. The worker connects as the owner of both.",
						   name, GetUserNameFromId(target->rd_rel->relowner, false)),
				 errhint("Use ALTER TABLE ... OWNER TO.")));
	if ((problem = bbf_identity_problem(owner, &hint)) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s", problem),
				 errdetail("The worker connects as the owner of the tables."),
				 errhint("%s", hint)));
	check_schema(schema, owner, ACL_USAGE, "USAGE");
	check_schema(schema, owner, ACL_CREATE, "CREATE");
	check_schema(RelationGetNamespace(target), owner, ACL_USAGE, "USAGE");
	if (OidIsValid(tablespace) &&
		bbf_tablespace_aclcheck(tablespace, owner, ACL_CREATE) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("role \"%s\" has no CREATE privilege on tablespace \"%s\"",
						name, get_tablespace_name(tablespace)),
				 errdetail("The index is made in the source's tablespace."),
				 errhint("Use GRANT CREATE ON TABLESPACE %s TO %s.",
						 quote_identifier(get_tablespace_name(tablespace)), quote_identifier(name))));
	job->owner = pstrdup(name);
	job->role_oid = owner;
}

/* The only column of the primary key, or NULL. */
static char *
primary_key_column(Relation rel)
{
	Oid			constraint;
	Bitmapset  *columns = get_primary_key_attnos(RelationGetRelid(rel), true, &constraint);
	int			member;

	if (!bms_get_singleton_member(columns, &member))
		return NULL;
	return get_attname(RelationGetRelid(rel), member + FirstLowInvalidHeapAttributeNumber, false);
}

/* Fill in the keys that were not given, from the foreign key. */
static void
default_keys(BbfJob *job, Relation source, Relation target)
{
	AttrNumber	source_att = job->source_key ? get_attnum(RelationGetRelid(source), job->source_key) : 0;
	AttrNumber	target_att = job->target_key ? get_attnum(RelationGetRelid(target), job->target_key) : 0;
	int			nfound;

	if (job->source_key && job->target_key)
		return;
	bbf_pair_find_foreign_key(source, target, &source_att, &target_att, &nfound);
	if (nfound > 1)
		ereport(ERROR,
				(errcode(ERRCODE_AMBIGUOUS_COLUMN),
				 errmsg("table \"%s\" has several foreign keys to \"%s\"",
						RelationGetRelationName(target), RelationGetRelationName(source)),
				 errhint("Give source_key and target_key.")));
	if (nfound == 1)
	{
		job->source_key = get_attname(RelationGetRelid(source), source_att, false);
		job->target_key = get_attname(RelationGetRelid(target), target_att, false);
		return;
	}
	if (job->target_key == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("target_key must be given"),
				 errdetail("Table \"%s\" has no foreign key of one column to \"%s\".",
						   RelationGetRelationName(target), RelationGetRelationName(source)),
				 errhint("Name the column of \"%s\" that holds the source's key.",
						 RelationGetRelationName(target))));
	job->source_key = primary_key_column(source);
	if (job->source_key == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("source_key must be given"),
				 errdetail("Table \"%s\" has no primary key of one column.",
						   RelationGetRelationName(source))));
}

/* Is the flag column another job's? */
static void
check_flag_is_free(const BbfJob *job)
{
	Oid			types[] = {OIDOID, TEXTOID, OIDOID};
	Datum		values[] = {ObjectIdGetDatum(job->source_oid),
		job->flag_column ? CStringGetTextDatum(job->flag_column) : (Datum) 0,
	ObjectIdGetDatum(MyDatabaseId)};

	if (job->flag_column && bbf_sql_catalog("SELECT job FROM bgw_backfill.job WHERE source_oid OPERATOR(pg_catalog.=) $1"
						" AND flag_column OPERATOR(pg_catalog.=) $2"
						" AND database_oid OPERATOR(pg_catalog.=) $3",
						3, types, values, NULL, SPI_OK_SELECT) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("flag column \"%s\" belongs to job \"%s\"", job->flag_column,
						bbf_sql_text(0, 1)),
				 errhint("Name another flag_column.")));
}

/* Is somebody else's trigger in the way of one of ours? */
static void
check_trigger_names(List *triggers)
{
	ListCell   *lc;

	foreach(lc, triggers)
	{
		BbfTriggerDef *def = lfirst(lc);

		if (OidIsValid(get_trigger_oid(def->relid, def->name, true)))
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_OBJECT),
					 errmsg("trigger \"%s\" of table \"%s\" already exists",
							def->name, get_rel_name(def->relid)),
					 errdetail("The job's triggers are named after it."),
					 errhint("Drop it, or give another name as job => '...'.")));
	}
}

static Relation
open_table(Oid relid, const char *what)
{
	Relation	rel = try_relation_open(relid, AccessShareLock);

	if (rel == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("%s with OID %u does not exist", what, relid)));
	return rel;
}

/* The index of pending rows can hold no virtual column. */
static void
check_indexed(const BbfJob *job, Relation source, const BbfPair *pair)
{
	Bitmapset  *columns = bbf_expr_columns(job->pending_where, pair->source, job->source_was);
	int			column = -1;

	if (pair->group_by)
		columns = bms_add_member(columns, pair->group_att);
	while ((column = bms_next_member(columns, column)) >= 0)
	{
		Form_pg_attribute attribute = TupleDescAttr(RelationGetDescr(source), column - 1);

		if (bbf_is_virtual(attribute))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("column \"%s\" of table \"%s\" is a virtual generated column",
							NameStr(attribute->attname), RelationGetRelationName(source)),
					 errdetail("Columns of pending_where and group_by become part of an index, which can hold no virtual column."),
					 errhint("Use a stored generated column or, in pending_where, its expression.")));
	}
}

/*
 * Check a job that a user wants, and complete it: source_oid, target_oid and
 * what the user gave are filled in, conditions as he wrote them.
 */
void
bbf_check_job(BbfJob *job)
{
	const BbfMode *mode = bbf_mode_lookup(job->mode);
	Relation	source = open_table(job->source_oid, "source");
	Relation	target = open_table(job->target_oid, "target");
	BbfUserContext before;
	BbfPair    *pair;

	bbf_shape_check_table(source, "source");
	bbf_shape_check_table(target, "target");
	if (job->source_oid == job->target_oid)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("source and target are the same table"),
				 errdetail("Both are \"%s\".", RelationGetRelationName(source))));
	check_owner(job, source, target);
	bbf_shape_check_persistence(source, target);

	job->source_schema = get_namespace_name(RelationGetNamespace(source));
	job->source_name = pstrdup(RelationGetRelationName(source));
	job->target_schema = get_namespace_name(RelationGetNamespace(target));
	job->target_name = pstrdup(RelationGetRelationName(target));
	if (job->name == NULL)
		job->name = job->source_name;
	check_name(job, RelationGetNamespace(source), source->rd_rel->relowner);
	default_keys(job, source, target);
	if (!mode->writes_source)
		job->flag_column = NULL;	/* it has none */
	if (job->pending_where)
		job->pending_where = bbf_expr_canonical(job->pending_where, job->source_oid,
												"pending_where", job->flag_column);
	if (job->match_where)
		job->match_where = bbf_expr_canonical(job->match_where, job->target_oid,
											  "match_where", NULL);
	if (job->group_by && strcmp(job->group_by, job->source_key) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("column \"%s\" cannot be key and group at once", job->group_by)));
	/* the conditions were read under the caller's path; from here on all is the owner's */
	bbf_usercontext_begin(source->rd_rel->relowner, true, &before);
	pair = bbf_pair_load(job);
	check_indexed(job, source, pair);
	mode->check(job, source, target);
	check_trigger_names(mode->triggers(job, pair));
	bbf_readers_tell(job, pair);
	bbf_usercontext_end(&before);
	check_flag_is_free(job);

	relation_close(target, AccessShareLock);
	relation_close(source, AccessShareLock);
}

/*
 * Check what is new in the successor of a job, which has been checked itself.
 * shares_table: it brings no object of its own.
 */
void
bbf_check_successor(BbfJob *job, bool shares_table)
{
	static const char *const suffixes[] = {"pending_idx", "sidecar", "sidecar_idx", "sidecar_key"};
	const BbfMode *mode = bbf_mode_lookup(job->mode);
	Relation	source = open_table(bbf_job_source(job), "source");
	Relation	target = open_table(bbf_job_target(job), "target");
	BbfUserContext before;
	BbfPair    *pair;

	bbf_usercontext_begin(source->rd_rel->relowner, true, &before);
	pair = bbf_pair_load(job);
	check_indexed(job, source, pair);
	mode->check(job, source, target);
	if (!shares_table)
		bbf_readers_tell(job, pair);
	bbf_usercontext_end(&before);
	check_flag_is_free(job);
	for (int i = mode->table ? 1 : 0; !shares_table && i < (mode->table ? (int) lengthof(suffixes) : 1); i++)
		bbf_names_check_object(bbf_job_object(job, suffixes[i]), RelationGetNamespace(source), InvalidOid,
							   psprintf("Its owner, or the owner of the schema, can drop it; then try again. Or end the job with bgw_backfill.untrack('%s'), and track it in mode \"%s\" under another name.",
										bbf_job_display_name(job), job->becomes ? job->becomes : job->mode));
	relation_close(target, AccessShareLock);
	relation_close(source, AccessShareLock);
}

/* Say, as notices, what the job would do. */
void
bbf_check_report(const BbfJob *job)
{
	const BbfMode *mode = bbf_mode_lookup(job->mode);
	BbfPair    *pair = bbf_pair_load(job);
	Relation	source = table_open(pair->source, AccessShareLock);
	double		source_rows = bbf_shape_estimate_rows(pair->source);
	double		target_rows = bbf_shape_estimate_rows(pair->target);
	int			batch_size = bbf_job_setting(job, BBF_BATCH_SIZE);
	BbfUserContext before;

	bbf_usercontext_begin(pair->owner, true, &before);
	ereport(NOTICE, (errmsg("job \"%s\" would run as role \"%s\" in mode \"%s\"",
							job->name, job->owner, job->mode)));
	ereport(NOTICE, (errmsg_internal("%s", mode->describe(job, source))));
	ereport(NOTICE, (errmsg("%sview %s and index %s would be created",
							mode->triggers(job, pair) == NIL ? "" :
							psprintf("triggers on %s and %s, ", pair->target_sql, pair->source_sql),
							quote_qualified_identifier(pair->schema, bbf_job_object(job, "pending")),
							quote_identifier(bbf_job_object(job, mode->table && !job->group_by ? "sidecar_key" : mode->index)))));
	ereport(NOTICE, (errmsg("about %.0f source rows would be walked in about %.0f batches of %d; about %.0f rows would be written",
							source_rows, Max(1, (source_rows + batch_size - 1) / batch_size), batch_size,
							pair->target_key_unique && !job->match_where ?
							Max(source_rows - target_rows, 0) : source_rows)));
	if (job->pending_where)
		ereport(NOTICE, (errmsg("pending_where: %s", job->pending_where)));
	if (job->match_where)
		ereport(NOTICE, (errmsg("match_where: %s", job->match_where)));
	if (job->handler)
		ereport(NOTICE, (errmsg("%s would be called for each group after each pending scan", job->handler)));
	if (!pair->has_foreign_key && mode->without_foreign_key)
		ereport(NOTICE,
				(errmsg("hazard: no validated, immediate foreign key from %s to %s",
						pair->target_sql, pair->source_sql),
				 errdetail_internal("%s", mode->without_foreign_key)));
	if (mode->writes_source)
		bbf_shape_report_triggers(source, NOTICE);
	bbf_usercontext_end(&before);
	table_close(source, AccessShareLock);
}
