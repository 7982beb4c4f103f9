/*
 * compat.h
 *		The differences between server versions, and the only place that may
 *		look at the version number.
 */
#ifndef BBF_COMPAT_H
#define BBF_COMPAT_H

#if PG_VERSION_NUM < 150000
#error "bgw_backfill needs PostgreSQL 15 or later"
#endif

#include "catalog/namespace.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_tablespace.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "utils/acl.h"
#include "utils/backend_status.h"
#include "utils/wait_event.h"

#if PG_VERSION_NUM >= 160000
#define bbf_schema_aclcheck(oid, role, mode) \
	object_aclcheck(NamespaceRelationId, (oid), (role), (mode))
#define bbf_database_aclcheck(oid, role, mode) \
	object_aclcheck(DatabaseRelationId, (oid), (role), (mode))
#define bbf_tablespace_aclcheck(oid, role, mode) \
	object_aclcheck(TableSpaceRelationId, (oid), (role), (mode))
#define bbf_function_aclcheck(oid, role, mode) \
	object_aclcheck(ProcedureRelationId, (oid), (role), (mode))
#define bbf_relation_ownercheck(oid, role) \
	object_ownercheck(RelationRelationId, (oid), (role))
#define bbf_database_ownercheck(oid, role) \
	object_ownercheck(DatabaseRelationId, (oid), (role))
#define bbf_extension_ownercheck(oid, role) \
	object_ownercheck(ExtensionRelationId, (oid), (role))
#else
#define bbf_schema_aclcheck(oid, role, mode) pg_namespace_aclcheck((oid), (role), (mode))
#define bbf_database_aclcheck(oid, role, mode) pg_database_aclcheck((oid), (role), (mode))
#define bbf_tablespace_aclcheck(oid, role, mode) pg_tablespace_aclcheck((oid), (role), (mode))
#define bbf_function_aclcheck(oid, role, mode) pg_proc_aclcheck((oid), (role), (mode))
#define bbf_relation_ownercheck(oid, role) pg_class_ownercheck((oid), (role))
#define bbf_database_ownercheck(oid, role) pg_database_ownercheck((oid), (role))
#define bbf_extension_ownercheck(oid, role) pg_extension_ownercheck((oid), (role))
#endif

/* what an interrupted DROP DATABASE leaves; not named before 15.4 */
#ifndef DATCONNLIMIT_INVALID_DB
#define DATCONNLIMIT_INVALID_DB (-2)
#endif

/* Before 18, a generated column is always stored. */
#if PG_VERSION_NUM >= 180000
#define bbf_is_virtual(attribute) ((attribute)->attgenerated == ATTRIBUTE_GENERATED_VIRTUAL)
#define BBF_MODULE_MAGIC		PG_MODULE_MAGIC_EXT(.name = "bgw_backfill", .version = "1.0")
#else
#define bbf_is_virtual(attribute) ((void) (attribute), false)
#define BBF_MODULE_MAGIC		PG_MODULE_MAGIC
#endif

/* a function that raises an error, before its declaration */
#if PG_VERSION_NUM >= 180000
#define BBF_NORETURN			pg_noreturn
#else
#define BBF_NORETURN			pg_attribute_noreturn()
#endif

/* the status of the backend at a place, from 1 on */
#if PG_VERSION_NUM >= 160000
#define bbf_local_beentry(place) pgstat_get_local_beentry_by_index(place)
#else
#define bbf_local_beentry(place) pgstat_fetch_stat_local_beentry(place)
#endif

/*
 * Before 17, all waits of extensions have one name.  Elsewhere the name is looked
 * up once in a process; it goes to the variable.
 */
#if PG_VERSION_NUM >= 170000
#define bbf_wait_event(variable, name) \
	((variable) != 0 ? (variable) : ((variable) = WaitEventExtensionNew(name)))
#else
#define bbf_wait_event(variable, name) ((variable) = PG_WAIT_EXTENSION)
#endif

/* Before 17, a worker cannot connect as a role without LOGIN. */
#if PG_VERSION_NUM >= 170000
#define BBF_CONNECT_FLAGS		BGWORKER_BYPASS_ROLELOGINCHECK
#define BBF_OWNER_NEEDS_LOGIN	false
#else
#define BBF_CONNECT_FLAGS		0
#define BBF_OWNER_NEEDS_LOGIN	true
#endif

/*
 * From 19 on the server itself terminates workers with this flag when a command
 * needs their database to itself.
 */
#if PG_VERSION_NUM >= 190000
#define BBF_WORKER_FLAG			BGWORKER_INTERRUPTIBLE
#define BBF_SERVER_TERMINATES	true
#else
#define BBF_WORKER_FLAG			0
#define BBF_SERVER_TERMINATES	false
#endif

/* Delete a row as it was seen, without waiting for anybody; 19 has options. */
#if PG_VERSION_NUM >= 190000
#define bbf_table_tuple_delete(rel, tid, cid, snapshot, failure) \
	table_tuple_delete((rel), (tid), (cid), 0, (snapshot), InvalidSnapshot, false, (failure))
#else
#define bbf_table_tuple_delete(rel, tid, cid, snapshot, failure) \
	table_tuple_delete((rel), (tid), (cid), (snapshot), InvalidSnapshot, false, (failure), false)
#endif

#endif							/* BBF_COMPAT_H */
