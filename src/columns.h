/*
 * columns.h
 *		The names of columns as a job's configuration has them.
 */
#ifndef BBF_COLUMNS_H
#define BBF_COLUMNS_H

#include "access/attnum.h"
#include "job.h"

/* a column by its number, and the name that the configuration knows it by */
typedef struct BbfColumn
{
	AttrNumber	att;
	char	   *name;
} BbfColumn;

extern List *bbf_columns_from_array(Datum array);
extern const char *bbf_columns_was(const List *columns, AttrNumber att);
extern void bbf_columns_resolve(BbfJob *job);
extern List *bbf_columns_follow(BbfJob *job);

#endif							/* BBF_COLUMNS_H */
