/*
 * readers.c
 *		Other roles that read the pending rows.
 *
 * The view is a security invoker's: who reads it needs SELECT on what it reads.  Who
 * may read a source's key and group may read those of its pending rows, wherever the
 * job's mode keeps them.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "expr.h"
#include "mode.h"
#include "readers.h"
#include "shape.h"
#include "sql.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

/* A grantee's name, for GRANT. */
#define GRANTEE(acl) \
	"CASE WHEN " acl ".grantee OPERATOR(pg_catalog.=) 0::pg_catalog.oid THEN 'PUBLIC'" \
	" ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(" acl ".grantee)) END"

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

	n = bbf_sql_run("SELECT $2 OPERATOR(pg_catalog.||) " GRANTEE("r")
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
		grants = lappend(grants, bbf_sql_text(i, 1));
	SPI_freetuptable(SPI_tuptable);
	foreach(lc, grants)
		bbf_sql_ddl(lfirst(lc));
}

/* Those of a view's readers who may not read some of a table's columns; columns NULL: all readers.  NULL: none. */
static char *
cannot_read(const BbfPair *pair, Oid view, Oid relid, Bitmapset *columns)
{
	Oid			types[] = {OIDOID, OIDOID, INT2ARRAYOID};
	Datum	   *numbers = palloc(sizeof(Datum) * (bms_num_members(columns) + 1));
	Datum		values[] = {ObjectIdGetDatum(view), ObjectIdGetDatum(relid), 0};
	char	   *roles;
	int			column = -1;
	int			n = 0;

	while ((column = bms_next_member(columns, column)) >= 0)
		numbers[n++] = Int16GetDatum(column);
	values[2] = PointerGetDatum(construct_array(numbers, n, INT2OID, sizeof(int16), true, TYPALIGN_SHORT));
	bbf_sql_run_latest(pair->owner, "SELECT pg_catalog.string_agg(" GRANTEE("a") ", ', ' ORDER BY a.grantee)"
				" FROM pg_catalog.pg_class v, pg_catalog.aclexplode(v.relacl) a"
				" WHERE v.oid OPERATOR(pg_catalog.=) $1 AND a.privilege_type OPERATOR(pg_catalog.=) 'SELECT'"
				" AND a.grantee OPERATOR(pg_catalog.<>) v.relowner"
				" AND ($3 OPERATOR(pg_catalog.=) '{}' OR EXISTS (SELECT FROM pg_catalog.unnest($3) c"
				"  WHERE NOT pg_catalog.has_column_privilege(a.grantee, $2, c, 'SELECT')))",
				3, types, values, NULL, SPI_OK_SELECT, false);
	roles = bbf_sql_text(0, 1);
	SPI_freetuptable(SPI_tuptable);
	return roles;
}

/* Warn of readers who lack columns of a table that the view will read. */
static void
warn(const BbfPair *pair, const char *mode, Oid view, Oid relid, const char *table_sql, Bitmapset *columns)
{
	char	   *roles = cannot_read(pair, view, relid, columns);

	if (roles)
		ereport(WARNING,
				(errmsg("in mode \"%s\" the view \"%s\" reads columns of table \"%s\" that %s may not",
						mode, get_rel_name(view), get_rel_name(relid), roles),
				 errhint("Use GRANT SELECT ON %s TO %s.", table_sql, roles)));
}

/* Say who reads the view of a job's pending rows and could not in another mode. */
void
bbf_readers_warn(const BbfJob *job, const char *mode)
{
	const BbfMode *next = bbf_mode_lookup(mode);
	BbfPair    *pair = bbf_pair_load(job);
	Oid			view = get_relname_relid(bbf_job_object(job, "pending"), get_namespace_oid(pair->schema, false));
	BbfUserContext before;
	char	   *roles;

	if (!OidIsValid(view))
		return;
	bbf_usercontext_begin(pair->owner, true, &before);
	if (next->passes)
		warn(pair, mode, view, pair->target, pair->target_sql,
			 bms_add_member(bbf_expr_columns(job->match_where, pair->target), pair->target_key_att));
	if (next->table == NULL)
		warn(pair, mode, view, pair->source, pair->source_sql,
			 bms_add_member(bms_add_member(bbf_expr_columns(job->pending_where, pair->source), pair->source_key_att),
							pair->group_by ? pair->group_att : pair->source_key_att));
	if (next->table && !bbf_mode_same_place(next, bbf_mode_lookup(job->mode)) &&
		bbf_shape_has_row_security(pair->source) &&
		(roles = cannot_read(pair, view, InvalidOid, NULL)) != NULL)
		ereport(WARNING,
				(errmsg("in mode \"%s\" the view \"%s\" reads table \"%s\", which %s may not",
						mode, get_rel_name(view), bbf_job_object(job, "sidecar"), roles),
				 errdetail("The table of pending keys is granted to nobody, because row security decides who reads which row of the source."),
				 errhint("Once it is there, GRANT SELECT on it to who may read all keys.")));
	bbf_usercontext_end(&before);
}
