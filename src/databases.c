/*
 * databases.c
 *		The databases that the launcher knows of.  It reads pg_database, which is
 *		shared, and nothing else.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "compat.h"
#include "databases.h"
#include "shmem.h"
#include "utils/hsearch.h"
#include "utils/snapmgr.h"

typedef struct KnownDatabase
{
	Oid			datid;			/* hash key */
	bool		seen;
	bool		connectable;
} KnownDatabase;

static HTAB *known = NULL;

/* Read pg_database: have a look at new ones, forget those that are gone. */
void
bbf_databases_look(void)
{
	HASHCTL		ctl = {.keysize = sizeof(Oid), .entrysize = sizeof(KnownDatabase)};
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;
	HASH_SEQ_STATUS status;
	KnownDatabase *db;

	if (known == NULL)
		known = hash_create("bgw_backfill databases", 64, &ctl, HASH_ELEM | HASH_BLOBS);
	hash_seq_init(&status, known);
	while ((db = hash_seq_search(&status)) != NULL)
		db->seen = false;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);
		bool		open = form->datallowconn && form->datconnlimit != DATCONNLIMIT_INVALID_DB;
		bool		connectable = open && !form->datistemplate;
		bool		found;

		db = hash_search(known, &form->oid, HASH_ENTER, &found);
		db->seen = true;
		if (!found)
			db->connectable = false;
		if (connectable && !db->connectable)
			db->connectable = bbf_shmem_wake(form->oid);	/* else next time */
		else if (!open)
		{
			db->connectable = false;
			bbf_shmem_remove_database(form->oid);
		}
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();

	hash_seq_init(&status, known);
	while ((db = hash_seq_search(&status)) != NULL)
	{
		if (!db->seen)
		{
			Oid			gone = db->datid;

			hash_search(known, &gone, HASH_REMOVE, NULL);
			bbf_shmem_remove_database(gone);
		}
	}

	/* prepared transactions may have been committed */
	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < BBF_MAX_DATABASES; i++)
	{
		if (bbf_shared->databases[i].recheck)
			bbf_shared->databases[i].dirty = true;
	}
	LWLockRelease(bbf_shared->lock);
}

/* Look at every database that we know of: settings may have changed. */
void
bbf_databases_mark_all(void)
{
	LWLockAcquire(bbf_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < BBF_MAX_DATABASES; i++)
	{
		if (OidIsValid(bbf_shared->databases[i].datid))
			bbf_shared->databases[i].dirty = true;
	}
	LWLockRelease(bbf_shared->lock);
}
