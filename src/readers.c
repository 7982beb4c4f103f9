/*
 * readers.c
 *		Other roles that read the pending rows.
 *
 * The view is a security invoker's: who reads it needs SELECT on what it reads.  Who
 * may read a source's key and group may read those of its pending rows, wherever the
 * job's mode keeps them.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "mode.h"
#include "readers.h"
#include "sql.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

/*
 * Grant something ("SELECT .. ON ..") to who may read the source's key and group:
 * by a grant on its columns, and with of_table also by one on the table.
 */
void
bbf_readers_grant(const char *what, const BbfPair *pair, bool of_table)
{
	Oid			types[] = {OIDOID, TEXTOID, INT2OID, INT2OID, BOOLOID};
	Datum		values[] = {ObjectIdGetDatum(pair->source), CStringGetTextDatum(psprintf("GRANT %s TO ", what)),
		Int16GetDatum(pair->source_key_att), Int16GetDatum(pair->group_by ? pair->group_att : pair->source_key_att),
	BoolGetDatum(of_table)};
	List	   *grants = NIL;
	ListCell   *lc;
	uint64		n;

	n = bbf_sql_run("SELECT $2 OPERATOR(pg_catalog.||) CASE r.grantee WHEN 0 THEN 'PUBLIC'"
					" ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(r.grantee)) END"
					" FROM (SELECT a.grantee FROM pg_catalog.pg_class c, pg_catalog.aclexplode(c.relacl) a"
					"  WHERE $5 AND c.oid OPERATOR(pg_catalog.=) $1 AND a.privilege_type OPERATOR(pg_catalog.=) 'SELECT'"
					"  AND a.grantee OPERATOR(pg_catalog.<>) c.relowner"
					"  UNION SELECT k.grantee FROM pg_catalog.pg_class c, pg_catalog.pg_attribute ka,"
					"  pg_catalog.aclexplode(ka.attacl) k, pg_catalog.pg_attribute ga, pg_catalog.aclexplode(ga.attacl) g"
					"  WHERE c.oid OPERATOR(pg_catalog.=) $1"
					"  AND ka.attrelid OPERATOR(pg_catalog.=) $1 AND ka.attnum OPERATOR(pg_catalog.=) $3"
					"  AND ga.attrelid OPERATOR(pg_catalog.=) $1 AND ga.attnum OPERATOR(pg_catalog.=) $4"
					"  AND k.privilege_type OPERATOR(pg_catalog.=) 'SELECT' AND g.privilege_type OPERATOR(pg_catalog.=) 'SELECT'"
					"  AND g.grantee OPERATOR(pg_catalog.=) k.grantee AND k.grantee OPERATOR(pg_catalog.<>) c.relowner) r"
					" ORDER BY 1",
					5, types, values, NULL, SPI_OK_SELECT);
	for (uint64 i = 0; i < n; i++)
		grants = lappend(grants, SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1));
	SPI_freetuptable(SPI_tuptable);
	foreach(lc, grants)
		bbf_sql_ddl(lfirst(lc));
}

/* Those of a view's readers who may not read the target's key; NULL: none. */
static char *
cannot_read(Oid view, const BbfPair *pair, bool anybody)
{
	Oid			types[] = {OIDOID, OIDOID, INT2OID, BOOLOID};
	Datum		values[] = {ObjectIdGetDatum(view), ObjectIdGetDatum(pair->target),
	Int16GetDatum(pair->target_key_att), BoolGetDatum(anybody)};
	char	   *roles;

	bbf_sql_run("SELECT pg_catalog.string_agg(CASE a.grantee WHEN 0 THEN 'PUBLIC'"
				" ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END, ', ' ORDER BY a.grantee)"
				" FROM pg_catalog.pg_class v, pg_catalog.aclexplode(v.relacl) a"
				" WHERE v.oid OPERATOR(pg_catalog.=) $1 AND a.privilege_type OPERATOR(pg_catalog.=) 'SELECT'"
				" AND a.grantee OPERATOR(pg_catalog.<>) v.relowner AND ($4 OR a.grantee OPERATOR(pg_catalog.=) 0"
				"  OR NOT pg_catalog.has_column_privilege(a.grantee, $2, $3, 'SELECT'))",
				4, types, values, NULL, SPI_OK_SELECT);
	roles = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	SPI_freetuptable(SPI_tuptable);
	return roles;
}

/* Say who reads the view of a job's pending rows and could not in another mode. */
void
bbf_readers_warn(const BbfJob *job, const char *mode)
{
	const BbfMode *next = bbf_mode_lookup(mode);
	BbfPair    *pair = bbf_pair_load(job);
	Oid			view = get_relname_relid(bbf_job_object(job, "pending"), get_namespace_oid(pair->schema, false));
	Relation	source = table_open(pair->source, AccessShareLock);
	bool		row_security = source->rd_rel->relrowsecurity;
	char	   *roles;

	table_close(source, NoLock);
	if (!OidIsValid(view))
		return;
	if (next->passes && (roles = cannot_read(view, pair, false)) != NULL)
		ereport(WARNING,
				(errmsg("in mode \"%s\" the view \"%s\" reads table \"%s\" as well, which %s may not",
						mode, get_rel_name(view), get_rel_name(pair->target), roles),
				 errhint("Use GRANT SELECT ON %s TO %s.", pair->target_sql, roles)));
	if (next->table && row_security && !bbf_mode_same_place(next, bbf_mode_lookup(job->mode)) &&
		(roles = cannot_read(view, pair, true)) != NULL)
		ereport(WARNING,
				(errmsg("in mode \"%s\" the view \"%s\" reads table \"%s\", which %s may not",
						mode, get_rel_name(view), bbf_job_object(job, "sidecar"), roles),
				 errdetail("The table of pending keys is granted to nobody, because row security decides who reads which row of the source."),
				 errhint("Once it is there, GRANT SELECT on it to who may read all keys.")));
}
