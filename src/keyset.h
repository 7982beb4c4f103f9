/*
 * keyset.h
 *		Sets of keys: what a statement touched.
 */
#ifndef BBF_KEYSET_H
#define BBF_KEYSET_H

#include "commands/trigger.h"
#include "lib/ilist.h"
#include "served.h"

/* a set of keys; the second part is of those that row triggers collect */
typedef struct BbfKeySet
{
	Oid			type;
	Datum	   *keys;
	int			n;
	int			size;

	char		job[NAMEDATALEN];
	BbfEvent	event;
	SubTransactionId subid;
	MemoryContext context;		/* all of it lives here */
	MemoryContextCallback forget;
	dlist_node	node;
	bool		listed;			/* not taken over yet */
} BbfKeySet;

extern void bbf_keyset_add_row(TriggerData *trigdata, const BbfKeyColumn *column, BbfKeySet *set);
extern BbfKeySet *bbf_keyset_collected(const char *job, BbfEvent event);
extern void bbf_keyset_collect_row(TriggerData *trigdata, const BbfKeyColumn *column, BbfEvent event);
extern void bbf_keyset_take(BbfKeySet *set);
extern void bbf_keyset_drop(BbfKeySet *set);
extern void bbf_keyset_note_removal(const char *job);
extern uint64 bbf_keyset_removals(const char *job);
extern bool bbf_keyset_source_updated(const char *job);
extern void bbf_keyset_sort(BbfKeySet *set, BbfKeyColumn *column);

#endif							/* BBF_KEYSET_H */
