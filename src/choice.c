/*
 * choice.c
 *		Choosing the pending rows that are handed out next.
 *
 * One row of each group in turn, then the second of each, and so on; the oldest
 * first within a group (lowest key); the first turn is that of the group after
 * the one that the last claim ended with.  A group costs one look at the index,
 * which brings its first few rows; groups are looked at until there are enough.
 *
 * What is handed out already, waits for its next turn or is in quarantine is
 * passed by.  Where that takes more than a few rows at the beginning of a group,
 * the claim notes how far it came (see attempt.c), and the next one begins there.
 *
 * What has been chosen is looked at once more, with a snapshot taken after that:
 * a row that has got its match in the meantime is not handed out.  It may still
 * get one, or be deleted, a moment later: nothing on the source is locked, the
 * consumer finds out when he writes, and nobody is charged for it.
 */
#include "postgres.h"

#include "attempt.h"
#include "choice.h"
#include "turn.h"

#define MAX_GROUPS		500		/* in one claim that has found something */
#define PASS_AFTER		64		/* rows at the beginning of a group that were in the way */

/* a choice under way */
typedef struct Choice
{
	BbfTurn		turn;
	BbfLeases  *leases;
	bool		any_attempts;
	int			want;
	int			nchosen;		/* not looked at again yet */
	BbfCandidate **chosen;
	char	  **chosen_groups;
} Choice;

/*
 * A row of a group is in the way.  If it is so for good, it can be passed; what came
 * back counts, as there is no limit to it; what is handed out has one.
 */
static void
is_in_the_way(BbfTurnGroup *group, char *key, bool for_good, bool came_back)
{
	if (!for_good)
		group->open = true;
	if (group->open)
		return;
	group->in_the_way += came_back ? 1 : 0;
	group->in_the_way_upto = key;
}

/* How the rows that were read stand: pass by those that are not to be handed out. */
static void
look_up(Choice *choice)
{
	const char *job = choice->turn.handout->job->name;
	List	   *all = NIL;
	ListCell   *lg;
	ListCell   *lc;
	char	  **keys;
	int32	   *attempts;
	BbfStanding *standing = NULL;
	int			i = 0;

	foreach(lg, choice->turn.groups)
		all = list_concat(all, ((BbfTurnGroup *) lfirst(lg))->read);
	keys = palloc(sizeof(char *) * Max(list_length(all), 1));
	attempts = palloc0(sizeof(int32) * Max(list_length(all), 1));
	foreach(lc, all)
		keys[foreach_current_index(lc)] = ((BbfCandidate *) lfirst(lc))->text;
	if (choice->any_attempts && all != NIL)
		standing = bbf_attempt_find(job, keys, list_length(all), attempts);

	foreach(lg, choice->turn.groups)
	{
		BbfTurnGroup  *group = lfirst(lg);

		foreach(lc, group->read)
		{
			BbfCandidate  *candidate = lfirst(lc);
			BbfStanding stands = standing ? standing[i] : BBF_FRESH;
			const BbfTaken *taken = bbf_lease_find(choice->leases, candidate->text);

			candidate->attempt = attempts[i++] + 1;
			if (taken)
				is_in_the_way(group, candidate->text, taken->committed, false);
			else if (stands == BBF_NOT_YET || stands == BBF_QUARANTINED)
				is_in_the_way(group, candidate->text, true, true);
			else
			{
				group->open = true;
				group->good = lappend(group->good, candidate);
			}
		}
		group->read = NIL;
	}
}

/* Rows of a passed group whose turn has come again. */
static void
take_due(Choice *choice, BbfTurnGroup *group)
{
	const BbfPair *pair = choice->turn.handout->pair;
	BbfLeased  *due = palloc(sizeof(BbfLeased) * choice->want);
	char	  **texts = palloc(sizeof(char *) * choice->want);
	Datum	   *keys = palloc(sizeof(Datum) * choice->want);
	int		   *which = palloc(sizeof(int) * choice->want);
	int			n = bbf_attempt_due(choice->turn.handout->job->name, group->text, choice->leases, choice->want, due);
	int			readable;

	for (int i = 0; i < n; i++)
		texts[i] = due[i].key;
	readable = bbf_pair_keys_in(pair, texts, n, keys, which);
	for (int i = 0; i < readable; i++)
	{
		BbfCandidate  *candidate = palloc0(sizeof(BbfCandidate));

		candidate->text = due[which[i]].key;
		candidate->key = keys[i];
		candidate->attempt = due[which[i]].attempt;
		candidate->returned = true;
		group->good = lappend(group->good, candidate);
	}
	group->more_due = readable > 0 && n == choice->want;
}

/*
 * All that was read of a group so far is in the way.  Begin where an earlier claim
 * came to, and take what of the rows before that has its turn again.
 */
static void
ask_passed(Choice *choice, BbfTurnGroup *group)
{
	Datum		upto;

	if (group->asked_passed)
	{
		if (group->more_due)
			take_due(choice, group);
		return;
	}
	group->asked_passed = true;
	if (bbf_attempt_passed_upto(choice->turn.handout->job->name, choice->turn.handout->pair, group->text, &upto) == NULL)
		return;
	take_due(choice, group);
	if (bbf_pair_compare_keys(choice->turn.handout->pair, upto, group->last) > 0)
	{
		group->last = upto;
		group->exhausted = false;
		group->in_the_way = 0;	/* those are passed already */
	}
}

/*
 * Look at those that were chosen once more; what is not pending is not handed out.  A
 * row that came back and is answered now stays in its table until the worker meets it:
 * nobody is to wait for the transaction of a claim to have it.
 */
static void
look_again(Choice *choice, BbfCandidate **chosen, char **groups, int n)
{
	BbfHandout *handout = choice->turn.handout;
	Datum	   *keys = palloc(sizeof(Datum) * Max(n, 1));
	bool		returned = false;
	bool	   *pending;
	int			stale = 0;

	for (int i = 0; i < n; i++)
	{
		keys[i] = chosen[i]->key;
		returned = returned || chosen[i]->returned;
	}
	pending = bbf_listed_among(&choice->turn.listed, keys, n, !returned);
	for (int i = 0; i < n; i++)
	{
		if (!pending[i])
		{
			keys[stale++] = chosen[i]->key;
			continue;
		}
		handout->rows[handout->n] = (BbfLeased) {chosen[i]->text, groups[i], chosen[i]->attempt};
		handout->keys[handout->n++] = chosen[i]->key;
		handout->last_group = groups[i];
	}
	if (!handout->prunes_nothing)
		handout->pruned += bbf_listed_prune(&choice->turn.listed, keys, stale);
}

/*
 * How the rows that were read stand, and of groups in which all of them are in the
 * way: where to go on.
 */
static void
look_up_all(Choice *choice)
{
	ListCell   *lc;

	look_up(choice);
	foreach(lc, choice->turn.groups)
	{
		BbfTurnGroup *group = lfirst(lc);

		if (bbf_turn_has_good(group) == NULL && group->begun && !group->avoided && choice->any_attempts)
			ask_passed(choice, group);
	}
}

/*
 * Make sure that each group known has a row to give, or none at all; and that there
 * are as many groups that have one as rows are needed, or no more groups.
 */
static void
fill_round(Choice *choice, int need)
{
	for (;;)
	{
		int			fruitful = 0;
		bool		read = false;
		bool		enough;
		int			groups = list_length(choice->turn.groups);
		ListCell   *lc;

		foreach(lc, choice->turn.groups)
		{
			BbfTurnGroup *group = lfirst(lc);

			if (bbf_turn_has_good(group))
				fruitful++;
			else if (group->more_due)
				read = true;
			else if (!group->exhausted)
			{
				bbf_turn_read(&choice->turn, group, need / groups);
				read = true;
			}
		}
		/* in vain: twice as many the next time */
		enough = fruitful >= need || (groups >= MAX_GROUPS && (fruitful > 0 || choice->turn.handout->n > 0));
		for (int more = enough ? 0 : Max(need - fruitful, groups); more > 0 && bbf_turn_next(&choice->turn); more--)
			read = true;
		if (!read)
			break;
		look_up_all(choice);
	}
}

/* One row of each group that has one, as long as any is needed.  False: none has. */
static bool
deal_round(Choice *choice, int need)
{
	bool		dealt = false;
	ListCell   *lc;

	foreach(lc, choice->turn.groups)
	{
		BbfTurnGroup *group = lfirst(lc);
		BbfCandidate *candidate = bbf_turn_has_good(group);

		if (candidate == NULL || choice->nchosen == need)
			continue;
		dealt = true;
		group->next_good++;
		if (!bbf_lease_take(choice->leases, candidate->text, true))
			continue;			/* met twice */
		group->gave = true;
		choice->chosen[choice->nchosen] = candidate;
		choice->chosen_groups[choice->nchosen++] = group->text;
	}
	return dealt;
}

/* Deal out rows, until there are enough of them or there are no more. */
static void
choose(Choice *choice)
{
	BbfHandout *handout = choice->turn.handout;
	bool		more = true;

	while (more && handout->n < choice->want)
	{
		int			need = choice->want - handout->n;

		choice->nchosen = 0;
		while (more && choice->nchosen < need)
		{
			fill_round(choice, need - choice->nchosen);
			more = deal_round(choice, need);
		}
		look_again(choice, choice->chosen, choice->chosen_groups, choice->nchosen);
	}
}

/* Note how far the way of groups was blocked, so that the next claim need not go it. */
static void
save_passed(Choice *choice)
{
	const BbfPair *pair = choice->turn.handout->pair;
	ListCell   *lc;

	/* what came back is looked up by its group's text */
	if (pair->group_by && !pair->group_has_one_text)
		return;
	foreach(lc, choice->turn.groups)
	{
		BbfTurnGroup  *group = lfirst(lc);

		if (group->in_the_way > PASS_AFTER)
			bbf_attempt_pass(choice->turn.handout->job->name, group->text, group->in_the_way_upto);
	}
}

/*
 * Choose rows of a handout, at most so many.  note: remember where the way was
 * blocked, which takes the job's lock and a claim that goes with it.
 */
void
bbf_choice_run(BbfHandout *handout, BbfLeases *leases, int want, bool note)
{
	Choice		choice = {.leases = leases, .want = want};

	handout->last_group = leases->last_group;
	handout->n = 0;
	handout->rows = palloc(sizeof(BbfLeased) * Max(want, 1));
	handout->keys = palloc(sizeof(Datum) * Max(want, 1));
	choice.chosen = palloc(sizeof(BbfCandidate *) * Max(want, 1));
	choice.chosen_groups = palloc(sizeof(char *) * Max(want, 1));
	choice.any_attempts = bbf_attempt_any(handout->job->name);
	bbf_turn_begin(&choice.turn, handout, leases->last_group);
	choose(&choice);
	bbf_turn_end(&choice.turn);
	if (note)
	{
		save_passed(&choice);
		bbf_turn_note_stretches(&choice.turn);
	}
}
