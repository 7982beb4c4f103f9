/*
 * served.h
 *		What a trigger knows about its job.
 */
#ifndef BBF_SERVED_H
#define BBF_SERVED_H

#include "access/transam.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "mode.h"
#include "utils/rel.h"

/* a key column and how to handle arrays of its type */
typedef struct BbfKeyColumn
{
	AttrNumber	attno;
	Oid			owner;			/* of the tables: who its type's functions run as */
	Oid			type;
	Oid			array_type;
	Oid			collation;
	int16		typlen;
	bool		typbyval;
	char		typalign;
	bool		old_too;		/* an update's old key counts as well */
	FmgrInfo	cmp;
} BbfKeyColumn;

/* what a trigger knows about its job */
typedef struct BbfServed
{
	MemoryContext context;		/* all of it lives here */
	int			references;
	bool		stale;
	Oid			job_table;
	Oid			source;
	Oid			target;
	Oid			source_schema;
	Oid			target_schema;
	Oid			owner;
	char	   *table;			/* of pending keys, quoted; NULL: none */
	char	   *own_keys;		/* how the source writes keys of the target, a query; NULL: all alike */
	char	   *places_by_source_key;	/* the places of the rows that keys have in that table, */
	char	   *places_by_target_key;	/* or on the source, as queries */
	const char *rights_lost;	/* what the owner lacks, or NULL */
	BbfKeyColumn	source_key;
	BbfKeyColumn	target_key;
	bool		plain_keys;		/* no user's code compares or writes keys */
	bool		plain_update;	/* nor runs in the short way's write */
	bool		deferrable;		/* the source has triggers that a restricted operation would refuse */
	int			one_code;
	bool		one_must_write;
	SPIPlanPtr	target_settle_one;	/* NULL: no short way */
	SPIPlanPtr	target_count_new;
	SPIPlanPtr	target_settle_new;
	SPIPlanPtr	source_settle_one;	/* NULL: no short way */
	Oid			table_oid;		/* the table of pending keys, or InvalidOid */
	struct BbfEnqueue *enqueue; /* see enqueue.c; NULL: nothing is done there */
	struct BbfDequeue *dequeue; /* see dequeue.c; the same */
	FullTransactionId changed_in;	/* when a trigger last ran for anything but a new */
	CommandId	changed_at;		/* source row: its transaction, and the command */
	BbfStep		steps[BBF_EVENTS][BBF_MAX_STEPS];	/* their SQL is not kept */
	SPIPlanPtr	plans[BBF_EVENTS][BBF_MAX_STEPS];
	int			nsteps[BBF_EVENTS];
} BbfServed;

extern void bbf_served_init(void);
extern BbfServed *bbf_served_get(const char *name, Relation rel, bool of_source, bool writes);
extern BbfServed *bbf_served_peek(const char *name, Relation rel, bool of_source);
extern void bbf_served_release(BbfServed *served);

#endif							/* BBF_SERVED_H */
