/*
 * readers.c
 *		Other roles that read the pending rows.
 *
 * The view is a security invoker's: who reads it needs SELECT on what it reads.  Who
 * may read a source's key and group may read those of its pending rows, wherever the
 * job's mode keeps them; and nobody else, from the next check of the installation on.
 *
 * All statements run under the pinned path, as the owner of the tables.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "expr.h"
#include "mode.h"
#include "objects.h"
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
 * Who may read the source's key and group ($1: the source, $2, $3: these columns), by
 * a grant on the table ($4: that counts as well) or by one on each of them, of which
 * one may be everybody's.
 */
#define READERS \
	"SELECT a.grantee FROM pg_class c, aclexplode(c.relacl) a WHERE $4 AND c.oid = $1" \
	" AND a.privilege_type = 'SELECT' AND a.grantee <> c.relowner" \
	" UNION SELECT greatest(k.grantee, g.grantee) FROM pg_class c, pg_attribute ka, aclexplode(ka.attacl) k, pg_attribute ga, aclexplode(ga.attacl) g" \
	" WHERE c.oid = $1 AND ka.attrelid = $1 AND ka.attnum = $2 AND ga.attrelid = $1 AND ga.attnum = $3" \
	" AND k.privilege_type = 'SELECT' AND g.privilege_type = 'SELECT'" \
	" AND (k.grantee = g.grantee OR k.grantee = 0::oid OR g.grantee = 0::oid) AND greatest(k.grantee, g.grantee) <> c.relowner"

/*
 * Of these, those who may read all keys: where row security decides who reads which
 * row, the roles that it does not bind, if nobody else has their rights.
 */
#define READERS_OF_ALL \
	"SELECT r.grantee FROM (" READERS ") r, pg_class t WHERE t.oid = $1" \
	" AND (NOT t.relrowsecurity OR EXISTS (SELECT FROM pg_roles p WHERE p.oid = r.grantee AND (p.rolbypassrls OR p.rolsuper)" \
	"  AND NOT EXISTS (SELECT FROM pg_auth_members m WHERE m.roleid = p.oid)))"

/* The parameters of the above, and one more. */
typedef struct Args
{
	Oid			types[5];
	Datum		values[5];
} Args;

static Args
arguments(const BbfPair *pair, bool of_table, Oid type, Datum value)
{
	return (Args) {
		{OIDOID, INT2OID, INT2OID, BOOLOID, type},
		{ObjectIdGetDatum(pair->source), Int16GetDatum(pair->source_key_att),
		Int16GetDatum(pair->group_by ? pair->group_att : pair->source_key_att), BoolGetDatum(of_table), value}
	};
}

/* Run the statements that the last one has returned. */
static void
run_returned(uint64 n)
{
	List	   *statements = NIL;
	ListCell   *lc;

	for (uint64 i = 0; i < n; i++)
		statements = lappend(statements, bbf_sql_text(i, 1));
	SPI_freetuptable(SPI_tuptable);
	foreach(lc, statements)
		bbf_sql_ddl(lfirst(lc));
}

/* Grant something ("SELECT .. ON ..") to who may read the source's key and group by a grant on these columns. */
void
bbf_readers_grant(const char *what, const BbfPair *pair)
{
	Args		args = arguments(pair, false, TEXTOID, CStringGetTextDatum(psprintf("GRANT %s TO ", what)));

	run_returned(bbf_sql_run("SELECT $5 || " GRANTEE("r") " FROM (" READERS ") r ORDER BY 1",
							 5, args.types, args.values, NULL, SPI_OK_SELECT));
}

/*
 * Let those read a table of pending keys who may read all keys of the source, and
 * nobody else; nor may anybody else do anything to it.  What somebody has passed on
 * goes with his right to do so; whoever is to have it gets it from the owner.
 */
void
bbf_readers_sync(const BbfPair *pair, Oid table, const char *table_sql)
{
	Args		args = arguments(pair, true, OIDOID, ObjectIdGetDatum(table));
	const char *has = "(SELECT grantee, bool_and(reads) AS reads FROM ("
		" SELECT a.grantee, a.privilege_type = 'SELECT' AND NOT a.is_grantable AND a.grantor = c.relowner AS reads"
		"  FROM pg_class c, aclexplode(c.relacl) a WHERE c.oid = $5 AND a.grantee <> c.relowner"
		" UNION ALL SELECT a.grantee, false FROM pg_class c, pg_attribute t, aclexplode(t.attacl) a"
		"  WHERE c.oid = $5 AND t.attrelid = $5 AND NOT t.attisdropped AND a.grantee <> c.relowner) x GROUP BY grantee)";

	run_returned(bbf_sql_run(psprintf("WITH wanted AS MATERIALIZED (" READERS_OF_ALL "), has AS MATERIALIZED %s"
									  " SELECT x.sql FROM ("
									  "SELECT 1 AS i, %s || " GRANTEE("has") " || ' CASCADE' AS sql FROM has"
									  "  WHERE NOT reads OR grantee NOT IN (SELECT grantee FROM wanted)"
									  " UNION ALL SELECT 2, %s || " GRANTEE("wanted") " FROM wanted"
									  "  WHERE grantee NOT IN (SELECT grantee FROM has WHERE reads)) x ORDER BY x.i, x.sql",
									  has, quote_literal_cstr(psprintf("REVOKE ALL ON TABLE %s FROM ", table_sql)),
									  quote_literal_cstr(psprintf("GRANT SELECT ON TABLE %s TO ", table_sql))),
							 5, args.types, args.values, NULL, SPI_OK_SELECT));
}

/* Say what a job that is to be will grant: the table of pending keys, or the flag's column, if it adds that. */
void
bbf_readers_tell(const BbfJob *job, const BbfPair *pair)
{
	bool		of_table = bbf_mode_lookup(job->mode)->sync_readers != NULL;
	Args		args = arguments(pair, of_table, OIDOID, ObjectIdGetDatum(InvalidOid));
	char	   *roles;

	if (!of_table && (job->flag_column == NULL || get_attnum(pair->source, job->flag_column) != InvalidAttrNumber))
		return;
	bbf_sql_run_latest(pair->owner, psprintf("SELECT string_agg(" GRANTEE("r") ", ', ' ORDER BY r.grantee) FROM (%s) r",
											 of_table ? READERS_OF_ALL : READERS),
					   4, args.types, args.values, NULL, SPI_OK_SELECT, false);
	roles = bbf_sql_text(0, 1);
	SPI_freetuptable(SPI_tuptable);
	if (roles == NULL)
		return;
	if (of_table)
		ereport(NOTICE,
				(errmsg("SELECT on table \"%s\" will be granted to %s", bbf_object_name(job, BBF_SIDECAR), roles),
				 errdetail("It holds key and group of the pending rows; who may read those of table \"%s\" may read it.",
						   get_rel_name(pair->source))));
	else
		ereport(NOTICE,
				(errmsg("SELECT on column \"%s\" of table \"%s\" will be granted to %s",
						job->flag_column, get_rel_name(pair->source), roles),
				 errdetail("It says which rows are pending; who may read key and group may read it.")));
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
	Oid			view = bbf_object_find(job, BBF_VIEW);
	BbfUserContext before;
	char	   *roles;

	if (!OidIsValid(view))
		return;
	bbf_usercontext_begin(pair->owner, true, &before);
	if (next->passes)
		warn(pair, mode, view, pair->target, pair->target_sql,
			 bms_add_member(bbf_expr_columns(job->match_where, pair->target, job->target_was), pair->target_key_att));
	if (next->table == NULL)
		warn(pair, mode, view, pair->source, pair->source_sql,
			 bms_add_member(bms_add_member(bbf_expr_columns(job->pending_where, pair->source, job->source_was), pair->source_key_att),
							pair->group_by ? pair->group_att : pair->source_key_att));
	if (next->table && !bbf_mode_same_place(next, bbf_mode_lookup(job->mode)) &&
		bbf_shape_has_row_security(pair->source) &&
		(roles = cannot_read(pair, view, InvalidOid, NULL)) != NULL)
		ereport(WARNING,
				(errmsg("in mode \"%s\" the view \"%s\" reads table \"%s\", which %s may not",
						mode, get_rel_name(view), bbf_object_name(job, BBF_SIDECAR), roles),
				 errdetail("Row security decides who reads which row of the source. So the table of pending keys is granted to nobody but roles with BYPASSRLS that have no members."),
				 errhint("Let them use bgw_backfill.claim() as such a role or as the owner, or stay in mode \"column\".")));
	bbf_usercontext_end(&before);
}
