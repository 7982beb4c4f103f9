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
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_tablespace.h"
#include "miscadmin.h"
#include "utils/acl.h"

#if PG_VERSION_NUM >= 160000
#define bbf_relation_aclcheck(oid, role, mode) \
	object_aclcheck(RelationRelationId, (oid), (role), (mode))
#define bbf_schema_aclcheck(oid, role, mode) \
	object_aclcheck(NamespaceRelationId, (oid), (role), (mode))
#define bbf_database_aclcheck(oid, role, mode) \
	object_aclcheck(DatabaseRelationId, (oid), (role), (mode))
#define bbf_tablespace_aclcheck(oid, role, mode) \
	object_aclcheck(TableSpaceRelationId, (oid), (role), (mode))
#define bbf_relation_ownercheck(oid, role) \
	object_ownercheck(RelationRelationId, (oid), (role))
#define bbf_database_ownercheck(oid, role) \
	object_ownercheck(DatabaseRelationId, (oid), (role))
#define bbf_extension_ownercheck(oid, role) \
	object_ownercheck(ExtensionRelationId, (oid), (role))
#else
#define bbf_relation_aclcheck(oid, role, mode) pg_class_aclcheck((oid), (role), (mode))
#define bbf_schema_aclcheck(oid, role, mode) pg_namespace_aclcheck((oid), (role), (mode))
#define bbf_database_aclcheck(oid, role, mode) pg_database_aclcheck((oid), (role), (mode))
#define bbf_tablespace_aclcheck(oid, role, mode) pg_tablespace_aclcheck((oid), (role), (mode))
#define bbf_relation_ownercheck(oid, role) pg_class_ownercheck((oid), (role))
#define bbf_database_ownercheck(oid, role) pg_database_ownercheck((oid), (role))
#define bbf_extension_ownercheck(oid, role) pg_extension_ownercheck((oid), (role))
#endif

#endif							/* BBF_COMPAT_H */
