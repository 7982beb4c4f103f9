/*
 * pair.h
 *		The two tables of a job as the catalogs have them now.
 */
#ifndef BBF_PAIR_H
#define BBF_PAIR_H

#include "access/stratnum.h"
#include "job.h"
#include "utils/rel.h"

typedef struct BbfPair
{
	Oid			source;
	Oid			target;
	Oid			owner;			/* of the source */
	char	   *source_sql;		/* quoted, with its schema */
	char	   *target_sql;
	char	   *schema;			/* the source's, not quoted */

	AttrNumber	source_key_att;
	AttrNumber	target_key_att;
	AttrNumber	group_att;		/* 0: no group column */
	char	   *source_key;		/* quoted */
	char	   *target_key;
	char	   *group_by;		/* NULL: none */

	Oid			key_type;		/* base type of the source key */
	Oid			target_key_type;	/* base type of the target key */
	Oid			group_type;
	Oid			group_collation;
	bool		group_has_one_text; /* equal groups are written alike */
	bool		key_has_one_text;	/* equal keys are */
	Oid			key_collation;
	Oid			key_opfamily;
	Oid			key_opcintype;
	char	   *key_op[BTMaxStrategyNumber + 1];	/* source key OP key */
	char	   *target_key_op[BTMaxStrategyNumber + 1]; /* target key OP key */
	char	   *source_eq_target;	/* source key = target key */
	char	   *group_gt;		/* group OP group */
	char	   *group_eq;
	bool		same_key_type;	/* what the target's column can hold, the source's can */
	bool		target_key_unique;
	bool		has_foreign_key;	/* validated and never deferred */

	char	   *pending_where;	/* columns prefixed with s; NULL: none */
	char	   *match_where;	/* columns prefixed with m; NULL: none */
} BbfPair;

extern Oid	bbf_pair_owner(Oid relid);
extern BbfPair *bbf_pair_tables(const BbfJob *job);
extern BbfPair *bbf_pair_load(const BbfJob *job);
extern bool bbf_pair_find_foreign_key(Relation source, Relation target,
									  AttrNumber *source_att, AttrNumber *target_att, int *nfound);
extern Datum bbf_pair_key_in(const BbfPair *pair, const char *text);
extern int	bbf_pair_keys_in(const BbfPair *pair, char *const *texts, int n, Datum *keys, int *which);
extern char *bbf_pair_key_out(const BbfPair *pair, Datum key);
extern Datum bbf_pair_group_in(const BbfPair *pair, const char *text);
extern bool bbf_pair_group_is_readable(const BbfPair *pair, const char *job, const char *text);
extern char *bbf_pair_group_out(const BbfPair *pair, Datum group);
extern bool bbf_pair_same_group(const BbfPair *pair, Datum a, Datum b);
extern int	bbf_pair_compare_groups(const BbfPair *pair, Datum a, Datum b);
extern int	bbf_pair_compare_keys(const BbfPair *pair, Datum a, Datum b);
extern char *bbf_pair_match(const BbfPair *pair, const char *source_alias);

#endif							/* BBF_PAIR_H */
