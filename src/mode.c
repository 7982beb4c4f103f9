/*
 * mode.c
 *		The modes there are, and SQL that several of them use.
 */
#include "postgres.h"

#include "mode.h"

/* A key range as a condition: column OP $1 AND column OP $2; the former if it is bounded. */
char *
bbf_mode_range(const char *column, char *const *op, bool bounded)
{
	char	   *high = psprintf("%s %s $2", column, op[BTLessEqualStrategyNumber]);

	return bounded ?
		psprintf("%s %s $1 AND %s", column, op[BTGreaterStrategyNumber], high) : high;
}

/* Lock source rows by place, passing by what others hold; or one row by key. */
char *
bbf_mode_lock_source(const BbfJob *job, const BbfPair *pair, bool by_key)
{
	if (by_key)
		return psprintf("SELECT s.ctid, s.%s FROM ONLY %s s WHERE s.%s %s $1 FOR NO KEY UPDATE",
						pair->source_key, pair->source_sql, pair->source_key,
						pair->key_op[BTEqualStrategyNumber]);
	return psprintf("SELECT s.ctid, s.%s FROM ONLY %s s WHERE s.ctid OPERATOR(pg_catalog.=) ANY ($1)"
					" ORDER BY s.%s USING %s FOR NO KEY UPDATE SKIP LOCKED",
					pair->source_key, pair->source_sql,
					pair->source_key, pair->key_op[BTLessStrategyNumber]);
}

/* The mode of that name; an error if there is none. */
const BbfMode *
bbf_mode_lookup(const char *name)
{
	static const BbfMode *const modes[] = {&bbf_mode_column, &bbf_mode_sidecar, &bbf_mode_watermark};

	for (int i = 0; i < (int) lengthof(modes); i++)
	{
		if (strcmp(name, modes[i]->name) == 0)
			return modes[i];
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unrecognized mode: \"%s\"", name),
			 errhint("The modes are column, sidecar and watermark.")));
}

/* Do two modes keep their answer in the same place? */
bool
bbf_mode_same_place(const BbfMode *a, const BbfMode *b)
{
	return a->table == b->table;
}
