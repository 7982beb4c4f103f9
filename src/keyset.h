/*
 * keyset.h
 *		Sets of keys: what a statement touched.
 */
#ifndef BBF_KEYSET_H
#define BBF_KEYSET_H

#include "commands/trigger.h"
#include "served.h"

/* a set of keys */
typedef struct BbfKeySet
{
	char		job[NAMEDATALEN];
	BbfEvent	event;
	uint64		removals;		/* events that deleted or changed target rows */
	Datum	   *keys;
	int			n;
	int			size;
} BbfKeySet;

extern void bbf_keyset_read_table(Tuplestorestate *rows, Relation rel, const BbfKeyColumn *column,
								  BbfKeySet *set);
extern void bbf_keyset_add_row(TriggerData *trigdata, const BbfKeyColumn *column, BbfKeySet *set);
extern BbfKeySet *bbf_keyset_collecting(const char *job, BbfEvent event, bool create);
extern void bbf_keyset_collect_row(TriggerData *trigdata, const BbfKeyColumn *column, BbfEvent event);
extern BbfKeySet bbf_keyset_take(BbfKeySet *collected_set);
extern void bbf_keyset_done(void);
extern uint64 bbf_keyset_removals(const char *job);
extern void bbf_keyset_sort(BbfKeySet *set, BbfKeyColumn *column);

#endif							/* BBF_KEYSET_H */
