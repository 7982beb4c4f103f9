/*
 * handout.h
 *		Handing out pending rows under a lease, up to a cap.
 */
#ifndef BBF_HANDOUT_H
#define BBF_HANDOUT_H

#include "lease.h"
#include "mode.h"

/* what is asked for, and what came of it */
typedef struct BbfHandout
{
	/* asked for */
	BbfJob	   *job;
	BbfPair    *pair;
	Oid			claimed_by;		/* whose the token is to be */
	int			max_rows;
	bool		only_group;		/* only this group; else all in turn */
	const char *group;			/* as text; NULL: of the nulls, or where there are no groups */
	bool		out_of_turn;	/* the turn stays where it is */
	bool		prunes_nothing; /* the transaction goes on for a while: what is stale is left alone */
	List	   *avoid;			/* groups that are not to be handed out, as text; NULL likewise */

	/* given */
	int			n;
	BbfLeased  *rows;
	Datum	   *keys;			/* the same keys, of the source's type */
	int64		token;			/* of bbf_handout_claim() */
	int64		pruned;			/* stale rows taken out */
	char	   *last_group;		/* whose turn was the last, as text */
	bool		no_room;		/* of bbf_handout_possible(): as far as is known */
} BbfHandout;

extern void bbf_handout_claim(BbfHandout *handout, int64 lease_ms);
extern bool bbf_handout_possible(BbfHandout *handout);
extern bool bbf_handout_settle(const BbfJob *job, const BbfPair *pair, const BbfClaim *claim);
extern bool *bbf_handout_pending(const BbfJob *job, const BbfPair *pair, const Datum *keys, int n,
								 bool only_matches);
extern bool *bbf_handout_pending_texts(const BbfJob *job, const BbfPair *pair, char *const *texts, int n,
									   bool only_matches);

#endif							/* BBF_HANDOUT_H */
