/*
 * settle.h
 *		What a batch does to the rows of its key range.
 */
#ifndef BBF_SETTLE_H
#define BBF_SETTLE_H

#include "mode.h"

/* what the statements of a batch share */
typedef struct BbfWalk
{
	BbfJob	   *job;
	BbfPair    *pair;
	const BbfMode *mode;
	bool		sweep;
	Datum		low;			/* cursor; only if bounded */
	bool		bounded;
	Datum		high;
} BbfWalk;

extern uint64 bbf_settle_statement(const BbfJob *job, const char *sql, int nargs, Oid *types, Datum *values,
								   const char *nulls, int expected);
extern uint64 bbf_settle_kept_statement(const BbfJob *job, const char *sql, int nargs, Oid *types, Datum *values,
										const char *nulls, int expected);
extern char *bbf_settle_first_key(const BbfPair *pair);
extern bool bbf_settle_window(BbfWalk *walk, int32 size, int64 *rows, char **end, int64 *changed);
extern int64 bbf_settle_range(BbfWalk *walk);
extern bool bbf_settle_row(BbfWalk *walk, const char *key, bool wait, int64 *changed);

#endif							/* BBF_SETTLE_H */
