/*
 * objects.c
 *		The relations that a job has made: a view, an index, a table with indexes of
 *		its own.
 *
 * They are made as "<job>_<suffix>" in the source's schema, and are the job's by
 * identity from then on: their OIDs are recorded when the installation is checked.  Who
 * renames one, or moves it to another schema, finds it followed there, and taken away from
 * there in the end.  When the source goes to another schema, the view and the table go
 * along.  The name counts only where no OID does: for what has not been recorded yet, or
 * is gone, and in another database.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "names.h"
#include "objects.h"
#include "pair.h"
#include "sql.h"
#include "txn.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

static const struct
{
	const char *suffix;
	char		relkind;
	const char *keyword;
}			objects[] = {
	[BBF_VIEW] = {"pending", RELKIND_VIEW, "VIEW"},
	[BBF_SIDECAR] = {"sidecar", RELKIND_RELATION, "TABLE"},
	[BBF_SIDECAR_KEY] = {"sidecar_key", RELKIND_INDEX, "INDEX"},
	[BBF_SIDECAR_IDX] = {"sidecar_idx", RELKIND_INDEX, "INDEX"},
	[BBF_PENDING_IDX] = {"pending_idx", RELKIND_INDEX, "INDEX"}
};

/* What an object's name ends with when it is made. */
const char *
bbf_object_suffix(BbfObject object)
{
	return objects[object].suffix;
}

/* What SQL calls an object of its kind. */
const char *
bbf_object_keyword(BbfObject object)
{
	return objects[object].keyword;
}

/* Is a relation of an object's kind, and an owner's? */
bool
bbf_object_fits(BbfObject object, Oid relid, Oid owner)
{
	return get_rel_relkind(relid) == objects[object].relkind && bbf_pair_owner(relid) == owner;
}

/* Is an object there that has been recorded as the job's? */
bool
bbf_object_is_recorded(const BbfJob *job, BbfObject object)
{
	return bbf_job_same_place(job) && OidIsValid(job->objects[object]) &&
		get_rel_relkind(job->objects[object]) == objects[object].relkind;
}

/* The schema in which objects are made; InvalidOid if it is gone. */
static Oid
schema_of(const BbfJob *job)
{
	Oid			source = bbf_job_source(job);

	return OidIsValid(source) ? get_rel_namespace(source) : get_namespace_oid(job->source_schema, true);
}

/* The OID of an object, or of what has its name; InvalidOid: there is none. */
Oid
bbf_object_find(const BbfJob *job, BbfObject object)
{
	Oid			schema;

	if (bbf_object_is_recorded(job, object))
		return job->objects[object];
	/* an index stands beside its table */
	if ((object == BBF_SIDECAR_KEY || object == BBF_SIDECAR_IDX) && bbf_object_is_recorded(job, BBF_SIDECAR))
		schema = get_rel_namespace(job->objects[BBF_SIDECAR]);
	else
		schema = schema_of(job);
	return OidIsValid(schema) ? get_relname_relid(bbf_job_object(job, objects[object].suffix), schema) : InvalidOid;
}

/* The name that an object has, or is to have. */
char *
bbf_object_name(const BbfJob *job, BbfObject object)
{
	return bbf_object_is_recorded(job, object) ? get_rel_name(job->objects[object]) :
		bbf_job_object(job, objects[object].suffix);
}

/* The same, quoted and with its schema. */
char *
bbf_object_sql(const BbfJob *job, BbfObject object)
{
	Oid			schema = bbf_object_is_recorded(job, object) ? get_rel_namespace(job->objects[object]) : schema_of(job);

	return quote_qualified_identifier(get_namespace_name(schema), bbf_object_name(job, object));
}

/* Record what is there, if it is not known. */
void
bbf_objects_record(BbfJob *job)
{
	Oid			types[] = {TEXTOID, OIDARRAYOID};
	Datum		values[2] = {CStringGetTextDatum(job->name)};
	Datum		oids[BBF_OBJECTS];
	bool		known = true;

	for (BbfObject object = 0; object < BBF_OBJECTS; object++)
	{
		Oid			found = bbf_object_find(job, object);

		/* what is in the way is not the job's */
		if (OidIsValid(found) && !bbf_object_fits(object, found, GetUserId()))
			found = InvalidOid;
		known = known && found == job->objects[object];
		job->objects[object] = found;
		oids[object] = ObjectIdGetDatum(found);
	}
	values[1] = PointerGetDatum(construct_array(oids, BBF_OBJECTS, OIDOID, sizeof(Oid), true, TYPALIGN_INT));
	if (!known)
		bbf_sql_catalog("UPDATE bgw_backfill.job SET objects = $2 WHERE job OPERATOR(pg_catalog.=) $1",
						2, types, values, NULL, SPI_OK_UPDATE);
}

/*
 * The source has come to a schema from another one: what stands beside it there goes
 * along.  Indexes go with their tables.
 */
void
bbf_objects_move_along(const BbfJob *job, Oid schema)
{
	Oid			before = get_namespace_oid(job->source_schema, true);

	for (BbfObject object = BBF_VIEW; OidIsValid(before) && before != schema && object <= BBF_SIDECAR; object++)
	{
		if (!bbf_object_is_recorded(job, object) || get_rel_namespace(job->objects[object]) != before ||
			bbf_pair_owner(job->objects[object]) != GetUserId())
			continue;
		bbf_names_check_object(bbf_object_name(job, object), schema, InvalidOid,
							   psprintf("Rename it or drop it, then use bgw_backfill.resume('%s').", bbf_job_display_name(job)));
		bbf_txn_lock_timeout(bbf_job_setting(job, BBF_LOCK_TIMEOUT));
		bbf_sql_ddl(psprintf("ALTER %s %s SET SCHEMA %s", bbf_object_keyword(object),
							 bbf_object_sql(job, object), quote_identifier(get_namespace_name(schema))));
	}
}
