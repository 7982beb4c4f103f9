/*
 * names.c
 *		The names of jobs and of their objects: who may have them.
 *
 * Job names belong to the whole database, and the first who asks has one.  Nobody
 * waits for somebody who has asked and not committed: a lock on the name says so at
 * once, before the row's unique index would wait.  The name of a successor is
 * nobody's to ask for (bbf_names_check_job), and cannot be guessed.
 *
 * A job's objects stand beside its source, and whoever may create something in that
 * schema can take a name before us, or be about to: making ours would wait for his
 * transaction, with the tables locked.  So the names are looked at first, with a
 * snapshot that sees what is not committed.  Who takes one after that look is waited
 * for once, for lock_timeout; the next try sees him.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/dependency.h"
#include "catalog/index.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "leftovers.h"
#include "miscadmin.h"
#include "names.h"
#include "objects.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

/* the lock's number among the advisory ones; SQL has 1 and 2, leases 4 */
#define LOCK_CLASS 5

/*
 * Have a job's name until the end of the transaction.  An error if somebody else has
 * it, or, which is not likely, one that looks the same to the lock.
 */
static void
take_job_name(const char *name)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId,
						 get_relname_relid("job", get_namespace_oid("bgw_backfill", false)),
						 hash_bytes((const unsigned char *) name, (int) strlen(name)), LOCK_CLASS);
	if (LockAcquire(&tag, ExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("another transaction is about to make a job named \"%s\"", name),
				 errdetail("It is not committed yet."),
				 errhint("Try again later, or give another name as job => '...'.")));
}

/* May a new job have this name, as far as can be said without looking at the others? */
void
bbf_names_check_job(const char *name)
{
	if (name[0] == '\0' || strlen(name) > BBF_MAX_JOB_NAME)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("invalid job name: \"%s\"", name),
				 errdetail("A job's name has 1 to %d bytes, because its objects are named after it.",
						   BBF_MAX_JOB_NAME),
				 errhint("Give a shorter name as job => '...'.")));
	if (name[0] == BBF_SUCCESSOR_PREFIX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("invalid job name: \"%s\"", name),
				 errdetail("Names that begin with \"%c\" are those of jobs on their way to another mode.",
						   BBF_SUCCESSOR_PREFIX),
				 errhint("Give another name as job => '...'.")));
	take_job_name(name);
}

/* What has a name in a schema, according to a catalog, committed or not. */
typedef struct Found
{
	bool		any;
	bool		uncommitted;	/* another transaction has made it, and is open */
	Oid			owner;
} Found;

static Found
find(Oid catalog, Oid index, AttrNumber name_att, AttrNumber schema_att, const char *name, Oid schema)
{
	Found		found = {0};
	Relation	rel = table_open(catalog, AccessShareLock);
	SnapshotData dirty;
	NameData	key_name;
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;

	namestrcpy(&key_name, name);
	ScanKeyInit(&keys[0], name_att, BTEqualStrategyNumber, F_NAMEEQ, NameGetDatum(&key_name));
	ScanKeyInit(&keys[1], schema_att, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(schema));
	InitDirtySnapshot(dirty);
	scan = systable_beginscan(rel, index, true, &dirty, 2, keys);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		found.any = true;
		found.uncommitted = TransactionIdIsValid(dirty.xmin);
		found.owner = catalog == RelationRelationId ? ((Form_pg_class) GETSTRUCT(tuple))->relowner :
			((Form_pg_type) GETSTRUCT(tuple))->typowner;
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}

/* What a new job's owner can do about something that has the name of an object to be. */
const char *
bbf_names_hint(const char *object, Oid schema)
{
	Oid			relid = get_relname_relid(object, schema);
	const char *statement;
	char	   *name;

	/* another transaction is about to make it */
	if (!OidIsValid(relid) && !OidIsValid(GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid, CStringGetDatum(object), ObjectIdGetDatum(schema))))
		return "Give another name as job => '...'.";
	name = quote_qualified_identifier(get_namespace_name(schema), object);

	switch (OidIsValid(relid) ? get_rel_relkind(relid) : '\0')
	{
		case RELKIND_VIEW:
			statement = "DROP VIEW";
			break;
		case RELKIND_MATVIEW:
			statement = "DROP MATERIALIZED VIEW";
			break;
		case RELKIND_INDEX:
		case RELKIND_PARTITIONED_INDEX:
			statement = "DROP INDEX";
			break;
		case RELKIND_SEQUENCE:
			statement = "DROP SEQUENCE";
			break;
		case RELKIND_FOREIGN_TABLE:
			statement = "DROP FOREIGN TABLE";
			break;
		case RELKIND_RELATION:
		case RELKIND_PARTITIONED_TABLE:
			statement = "DROP TABLE";
			break;
		default:
			statement = "DROP TYPE";
	}
	if (OidIsValid(relid) && OidIsValid(get_index_constraint(relid)))
	{
		Oid			table = IndexGetRelation(relid, false);

		statement = psprintf("ALTER TABLE %s DROP CONSTRAINT",
							 quote_qualified_identifier(get_namespace_name(get_rel_namespace(table)), get_rel_name(table)));
		name = pstrdup(quote_identifier(get_constraint_name(get_index_constraint(relid))));
	}
	return psprintf("Use %s %s if nothing needs it, or give another name as job => '...'.", statement, name);
}

/*
 * An error if something has the name of an object to be, and does not belong to
 * owner (InvalidOid: whoever it belongs to): a relation, or a type, as each table and
 * view has one of its name.
 */
void
bbf_names_check_object(const char *object, Oid schema, Oid owner, const char *hint)
{
	Found		found = find(RelationRelationId, ClassNameNspIndexId, Anum_pg_class_relname,
							 Anum_pg_class_relnamespace, object, schema);

	if (found.any && !found.uncommitted && found.owner == owner)
		return;
	if (!found.any)
		found = find(TypeRelationId, TypeNameNspIndexId, Anum_pg_type_typname, Anum_pg_type_typnamespace,
					 object, schema);
	if (!found.any)
		return;
	if (found.uncommitted)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("another transaction is about to make a relation or type \"%s\"", object),
				 errdetail("The job's objects are named after it. The transaction is role \"%s\"'s, and not committed yet.",
						   GetUserNameFromId(found.owner, false)),
				 errhint("%s", hint)));
	ereport(ERROR,
			(errcode(ERRCODE_DUPLICATE_TABLE),
			 errmsg("relation or type \"%s\" already exists", object),
			 found.owner != GetUserId() ?
			 errdetail("The job's objects are named after it. It belongs to role \"%s\".",
					   GetUserNameFromId(found.owner, false)) :
			 errdetail("The job's objects are named after it."),
			 errhint("%s", hint)));
}

/* The same for those that a job is about to make, where some may be there already. */
void
bbf_names_check_installed(const BbfJob *job, Oid schema, const BbfObject *objects, int n)
{
	const char *name = bbf_job_display_name(job);

	for (int i = 0; i < n; i++)
	{
		if (bbf_object_is_recorded(job, objects[i]))
			continue;			/* wherever it stands, and whatever its name */
		bbf_names_check_object(bbf_job_object(job, bbf_object_suffix(objects[i])), schema,
							   objects[i] == BBF_PENDING_IDX || bbf_leftover_is(job, objects[i], GetUserId()) ? GetUserId() : InvalidOid,
							   psprintf("Its owner, or the owner of the schema, can drop it; then use bgw_backfill.resume('%s'). Or end the job with bgw_backfill.untrack('%s'), and track it under another name.",
										name, name));
	}
}
