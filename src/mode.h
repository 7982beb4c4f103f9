/*
 * mode.h
 *		What a mode must offer.  A phase knows no mode by name; a mode knows
 *		nothing of workers.
 *
 * All SQL that a mode gives has the source as "s" and the target as "m".
 */
#ifndef BBF_MODE_H
#define BBF_MODE_H

#include "job.h"
#include "pair.h"

/* a trigger that a mode needs */
typedef struct BbfTriggerDef
{
	char	   *name;
	Oid			relid;
	char		enabled;		/* as pg_trigger.tgenabled */
	char	   *sql;			/* CREATE TRIGGER */
} BbfTriggerDef;

/* what a trigger has to settle: which table, and what its rows did */
typedef enum BbfEvent
{
	BBF_TARGET_INSERT,
	BBF_TARGET_CHANGE,			/* deleted, or updated in what counts */
	BBF_SOURCE_INSERT,
	BBF_SOURCE_UPDATE,			/* of what counts */
	BBF_SOURCE_DELETE,
	BBF_EVENTS
} BbfEvent;

#define bbf_event_of_source(event) ((event) >= BBF_SOURCE_INSERT)

/*
 * One of the statements that settle the keys of an event, each with a snapshot
 * of its own.
 */
typedef struct BbfStep
{
	char	   *sql;
	int			expected;		/* SPI_OK_* */
	enum
	{
		BBF_TAKES_KEYS,			/* $1: the event's keys */
		BBF_TAKES_ROWS,			/* $1: the places that the step before gave */
		BBF_TAKES_KEYS_AND_HELD /* and $2: target keys that a step before gave */
	}			takes;
	enum
	{
		BBF_GIVES_NOTHING,
		BBF_GIVES_ROWS,			/* ctids; with none of them all is settled */
		BBF_GIVES_HELD			/* target keys */
	}			gives;
} BbfStep;

#define BBF_MAX_STEPS 3

/* what is not there or not right of an installation */
typedef enum BbfMissing
{
	BBF_MISSING_NOTHING,
	BBF_MISSING_DEFAULT,		/* of the flag: writes can be followed all the same */
	BBF_MISSING_OBJECT
} BbfMissing;

typedef struct BbfMode
{
	const char *name;
	const char *index;			/* of the pending rows: its name is "<job>_<index>" */

	/* are source rows updated, so that the source must bear it? */
	bool		writes_source;

	/* is there no trigger, so that passes over the newest keys have to find them? */
	bool		passes;

	/* what a missing foreign key means, as a sentence for track(dry_run) */
	const char *without_foreign_key;

	/* track(): raise an error for what this mode cannot work with */
	void		(*check) (const BbfJob *job, Relation source, Relation target);

	/* track(dry_run): one line on what install would do */
	char	   *(*describe) (const BbfJob *job, Relation source);

	/* is something of the installation not there or not right; *what, if so: its name, for a message */
	BbfMissing	(*missing) (const BbfJob *job, const BbfPair *pair, char **what);

	/* let nobody read it but who may read the source; NULL: there is nothing to do */
	void		(*sync_readers) (const BbfJob *job, const BbfPair *pair);

	/* the triggers it needs, as a list of BbfTriggerDef */
	List	   *(*triggers) (const BbfJob *job, const BbfPair *pair);

	/* the lock that install needs on the source; NoLock: none, nor on the target */
	LOCKMODE	(*source_lock) (const BbfJob *job, const BbfPair *pair);

	/* make what is missing but the triggers; both tables are locked */
	void		(*install) (BbfJob *job, const BbfPair *pair);

	/*
	 * drop it again, but for the triggers, which the phase drops; without
	 * drop_objects only what must not stay
	 */
	void		(*uninstall) (const BbfJob *job, const BbfPair *pair);

	/* after the fill, in transactions of its own; false: fill again.  May be NULL */
	bool		(*finish_fill) (BbfJob *job);

	/*
	 * The table of pending keys, quoted and with its schema, whose rows are "d",
	 * and when a row of it should not be there; NULL: the answer is on the source.
	 */
	char	   *(*table) (const BbfJob *job, const BbfPair *pair);
	char	   *(*stale) (const BbfJob *job, const BbfPair *pair);

	/*
	 * What that table has that install has not put there, and that could run
	 * somebody's code when it is written; NULL: nothing.
	 */
	char	   *(*strange) (const BbfJob *job, const BbfPair *pair);

	/*
	 * The batch's statements, and what SPI says to the last three; see walk.c.
	 * write_lacking may be NULL, and write_at_once may give NULL.
	 */
	char	   *(*write_lacking) (const BbfJob *job, const BbfPair *pair);
	char	   *(*candidates) (const BbfJob *job, const BbfPair *pair, bool sweep, bool bounded);
	char	   *(*lock) (const BbfJob *job, const BbfPair *pair, bool by_key);
	char	   *(*decide) (const BbfJob *job, const BbfPair *pair);
	char	   *(*undecided) (const BbfJob *job, const BbfPair *pair);
	char	   *(*write_at_once) (const BbfJob *job, const BbfPair *pair, bool sweep);
	char	   *(*put_right) (const BbfJob *job, const BbfPair *pair);
	int			decide_code;
	int			write_code;
	int			right_code;

	/* is an update of a source key to settle the old key as well? */
	bool		old_source_keys;

	/*
	 * The triggers' statements; see trigger.c.  The first three, the short
	 * ways of an insert, may be NULL or give NULL; one_code: what SPI says to the
	 * first; one_must_write: it has settled its key only if it wrote a row.
	 * source_settle_one, the short way of one new source row, likewise.
	 * settle() writes the steps of an event and returns how many.
	 */
	int			one_code;
	bool		one_must_write;
	char	   *(*target_settle_one) (const BbfJob *job, const BbfPair *pair);
	char	   *(*target_count_new) (const BbfJob *job, const BbfPair *pair);
	char	   *(*target_settle_new) (const BbfJob *job, const BbfPair *pair);
	char	   *(*source_settle_one) (const BbfJob *job, const BbfPair *pair);
	int			(*settle) (const BbfJob *job, const BbfPair *pair, BbfEvent event, BbfStep *steps);

	/* the pending rows: "FROM .. WHERE .." with the source's columns as s */
	char	   *(*pending_from) (const BbfJob *job, const BbfPair *pair);

	/* the same to hand out from: each row that is given out is looked at again */
	char	   *(*queue_from) (const BbfJob *job, const BbfPair *pair);

	/*
	 * The index that phase index builds for them: "ON .. (..) WHERE .."; NULL:
	 * the mode's table brings its own.
	 */
	char	   *(*pending_index) (const BbfJob *job, const BbfPair *pair);
} BbfMode;

extern const BbfMode bbf_mode_column;
extern const BbfMode bbf_mode_sidecar;
extern const BbfMode bbf_mode_watermark;

extern const BbfMode *bbf_mode_lookup(const char *name);
extern bool bbf_mode_same_place(const BbfMode *a, const BbfMode *b);
extern char *bbf_mode_range(const char *column, char *const *op, bool bounded);
extern char *bbf_mode_lock_source(const BbfJob *job, const BbfPair *pair, bool by_key);

#endif							/* BBF_MODE_H */
