/*
 * turn.h
 *		Whose turn it is: the groups in order, and their rows.
 */
#ifndef BBF_TURN_H
#define BBF_TURN_H

#include "handout.h"
#include "listed.h"
#include "portability/instr_time.h"

/* a pending row that may be handed out */
typedef struct BbfCandidate
{
	Datum		key;
	char	   *text;
	int32		attempt;
	bool		returned;		/* out of the table attempt: it may not be pending */
} BbfCandidate;

/* a group, and how far it has been read */
typedef struct BbfTurnGroup
{
	Datum		value;
	char	   *text;			/* NULL: the nulls, or all rows */
	bool		avoided;
	bool		after_jump;		/* others were stepped over before it */
	bool		begun;
	Datum		last;			/* the last key read, if begun */
	bool		exhausted;
	bool		gave;			/* a row of it was chosen */
	bool		asked_passed;	/* where to begin has been asked for */
	bool		more_due;		/* there may be more rows before that whose turn has come */
	bool		open;			/* a row was found that is not in the way for good */
	int			in_the_way;		/* rows before that */
	char	   *in_the_way_upto;
	List	   *read;			/* of BbfCandidate, not looked up yet */
	List	   *good;			/* of BbfCandidate */
	int			next_good;
} BbfTurnGroup;

typedef struct BbfTurn
{
	BbfHandout *handout;
	BbfListed	listed;
	List	   *groups;			/* of BbfTurnGroup, in turn */
	bool		all_groups;		/* there are no more */
	bool		wrapped;		/* the last group was passed */
	bool		jumped;			/* groups were stepped over, before the next one */
	const char *start;			/* after which group it began; NULL: at the first */
	List	   *stretches;
	instr_time	began;
} BbfTurn;

extern void bbf_turn_begin(BbfTurn *turn, BbfHandout *handout, const char *start);
extern void bbf_turn_end(BbfTurn *turn);
extern BbfTurnGroup *bbf_turn_next(BbfTurn *turn);
extern void bbf_turn_read(BbfTurn *turn, BbfTurnGroup *group, int64 rows);
extern BbfCandidate *bbf_turn_has_good(const BbfTurnGroup *group);
extern void bbf_turn_note_stretches(const BbfTurn *turn);
extern void bbf_turn_forget_stretches(const char *job);

#endif							/* BBF_TURN_H */
