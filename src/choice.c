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
#include "listed.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"

#define ROWS_AT_FIRST	4		/* of each group, where there are several */
#define MAX_GROUPS		500		/* in one claim that has found something */
#define PASS_AFTER		64		/* rows at the beginning of a group that were in the way */

/* a pending row that may be handed out */
typedef struct Candidate
{
	Datum		key;
	char	   *text;
	int32		attempt;
	bool		returned;		/* out of the table attempt: it may not be pending */
} Candidate;

/* a group, and how far it has been read */
typedef struct TurnGroup
{
	Datum		value;
	char	   *text;			/* NULL: the nulls, or all rows */
	bool		begun;
	Datum		last;			/* the last key read, if begun */
	bool		exhausted;
	bool		asked_passed;	/* where to begin has been asked for */
	bool		more_due;		/* there may be more rows before that whose turn has come */
	bool		open;			/* a row was found that is not in the way for good */
	int			in_the_way;		/* rows before that */
	char	   *in_the_way_upto;
	List	   *read;			/* of Candidate, not looked up yet */
	List	   *good;			/* of Candidate */
} TurnGroup;

/* a choice under way */
typedef struct Choice
{
	BbfHandout *handout;
	BbfListed	listed;
	BbfLeases  *leases;
	bool		any_attempts;
	List	   *groups;			/* of TurnGroup, in turn */
	bool		all_groups;		/* there are no more */
	bool		wrapped;		/* the last group was passed */
	char	   *start;			/* after which group the turn began; NULL: at the first */
	int			want;
} Choice;

static Datum
copy_datum(Datum value, Oid type)
{
	int16		typlen;
	bool		typbyval;

	get_typlenbyval(type, &typlen, &typbyval);
	return datumCopy(value, typbyval, typlen);
}

static Datum
result_datum(uint64 row, int column, Oid type, bool *isnull)
{
	Datum		value = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, isnull);

	return *isnull ? (Datum) 0 : copy_datum(value, type);
}

/* A row of a group that stays out of the way for good can be passed. */
static void
is_in_the_way(TurnGroup *group, char *key, bool for_good)
{
	if (!for_good)
		group->open = true;
	if (group->open)
		return;
	group->in_the_way++;
	group->in_the_way_upto = key;
}

/* The rows that a look returned, from the first on, as long as they are the group's. */
static void
add_rows(Choice *choice, TurnGroup *group, uint64 n, bool with_group, int64 limit)
{
	const BbfPair *pair = choice->handout->pair;
	uint64		i;

	for (i = 0; i < n; i++)
	{
		Candidate  *candidate;
		bool		isnull;

		if (with_group && !bbf_pair_same_group(pair, group->value,
											   SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2, &isnull)))
			break;
		candidate = palloc0(sizeof(Candidate));
		candidate->key = result_datum(i, 1, pair->key_type, &isnull);
		candidate->text = bbf_pair_key_out(pair, candidate->key);
		group->begun = true;
		group->last = candidate->key;
		group->read = lappend(group->read, candidate);
	}
	group->exhausted = i < n || n < (uint64) limit;
	SPI_freetuptable(SPI_tuptable);
}

/* Read more rows of a group. */
static void
read_group(Choice *choice, TurnGroup *group, int64 limit)
{
	bool		of_nulls = group->text == NULL;
	BbfListedFrom from = of_nulls ?
		(group->begun ? BBF_LISTED_NULLS_AFTER : BBF_LISTED_NULLS) :
		(group->begun ? BBF_LISTED_GROUP_AFTER : BBF_LISTED_GROUP);

	add_rows(choice, group, bbf_listed_read(&choice->listed, from, group->value, group->last, limit), false, limit);
}

static TurnGroup *
add_group(Choice *choice, Datum value, char *text)
{
	TurnGroup  *group = palloc0(sizeof(TurnGroup));

	group->value = value;
	group->text = text;
	choice->groups = lappend(choice->groups, group);
	return group;
}

static bool
is_avoided(const Choice *choice, const char *text)
{
	ListCell   *lc;

	foreach(lc, choice->handout->avoid)
	{
		const char *avoided = lfirst(lc);

		if (avoided == text || (avoided && text && strcmp(avoided, text) == 0))
			return true;
	}
	return false;
}

/* Does a group that is not to be handed out stand at the end?  Then it is as good as read. */
static void
avoid(Choice *choice)
{
	TurnGroup  *group = llast(choice->groups);

	if (!is_avoided(choice, group->text))
		return;
	group->read = NIL;
	group->exhausted = true;
}

/*
 * The group whose turn is next, with its first rows.  False: all have had theirs.
 * The turn goes up to the last group and the nulls, then from the first group on to
 * the one that it began with; should that be gone by then, to the end once more.
 */
static bool
next_group(Choice *choice)
{
	const BbfPair *pair = choice->handout->pair;
	TurnGroup  *first = choice->groups ? linitial(choice->groups) : NULL;
	TurnGroup  *last = choice->groups ? llast(choice->groups) : NULL;
	const char *after = last ? last->text : choice->start;
	bool		isnull;
	uint64		n;
	Datum		value;
	char	   *text;

	if (choice->all_groups)
		return false;
	if (last && last->text == NULL)
		after = NULL;			/* after the nulls comes the first */
	n = bbf_listed_read(&choice->listed, after ? BBF_LISTED_NEXT_GROUP : BBF_LISTED_FIRST_GROUP,
						after ? bbf_pair_group_in(pair, after) : (Datum) 0, (Datum) 0, ROWS_AT_FIRST);
	if (n == 0 && !choice->wrapped)
	{
		/* the nulls come last, and then the first group again */
		choice->wrapped = true;
		SPI_freetuptable(SPI_tuptable);
		read_group(choice, add_group(choice, (Datum) 0, NULL), ROWS_AT_FIRST);
		avoid(choice);
		return true;
	}
	if (n == 0)
		choice->all_groups = true;
	else
	{
		value = result_datum(0, 2, pair->group_type, &isnull);
		text = bbf_pair_group_out(pair, value);
		if (choice->wrapped && first->text && strcmp(first->text, text) == 0)
			choice->all_groups = true;
		else
		{
			add_rows(choice, add_group(choice, value, text), n, true, ROWS_AT_FIRST);
			avoid(choice);
		}
	}
	return !choice->all_groups;
}

/* How the rows that were read stand: pass by those that are not to be handed out. */
static void
look_up(Choice *choice)
{
	const char *job = choice->handout->job->name;
	List	   *all = NIL;
	ListCell   *lg;
	ListCell   *lc;
	char	  **keys;
	int32	   *attempts;
	BbfStanding *standing = NULL;
	int			i = 0;

	foreach(lg, choice->groups)
		all = list_concat(all, ((TurnGroup *) lfirst(lg))->read);
	keys = palloc(sizeof(char *) * Max(list_length(all), 1));
	attempts = palloc0(sizeof(int32) * Max(list_length(all), 1));
	foreach(lc, all)
		keys[foreach_current_index(lc)] = ((Candidate *) lfirst(lc))->text;
	if (choice->any_attempts && all != NIL)
		standing = bbf_attempt_find(job, keys, list_length(all), attempts);

	foreach(lg, choice->groups)
	{
		TurnGroup  *group = lfirst(lg);

		foreach(lc, group->read)
		{
			Candidate  *candidate = lfirst(lc);
			BbfStanding stands = standing ? standing[i] : BBF_FRESH;
			const BbfTaken *taken = bbf_lease_find(choice->leases, candidate->text);

			candidate->attempt = attempts[i++] + 1;
			if (taken)
				is_in_the_way(group, candidate->text, taken->committed);
			else if (stands == BBF_NOT_YET || stands == BBF_QUARANTINED)
				is_in_the_way(group, candidate->text, true);
			else
			{
				group->open = true;
				group->good = lappend(group->good, candidate);
			}
		}
		group->read = NIL;
	}
}

/* The highest key up to which a group has been passed; false: none. */
static bool
passed_upto(Choice *choice, TurnGroup *group, Datum *upto)
{
	const BbfPair *pair = choice->handout->pair;
	List	   *keys = bbf_attempt_passed(choice->handout->job->name, group->text);
	ListCell   *lc;
	bool		found = false;

	foreach(lc, keys)
	{
		Datum		key = bbf_pair_key_in(pair, lfirst(lc));

		if (!found || bbf_pair_compare_keys(pair, key, *upto) > 0)
			*upto = key;
		found = true;
	}
	return found;
}

/* Rows of a passed group whose turn has come again. */
static void
take_due(Choice *choice, TurnGroup *group)
{
	const BbfPair *pair = choice->handout->pair;
	BbfLeased  *due = palloc(sizeof(BbfLeased) * choice->want);
	int			n = bbf_attempt_due(choice->handout->job->name, group->text, choice->leases, choice->want, due);

	for (int i = 0; i < n; i++)
	{
		Candidate  *candidate = palloc0(sizeof(Candidate));

		candidate->text = due[i].key;
		candidate->key = bbf_pair_key_in(pair, due[i].key);
		candidate->attempt = due[i].attempt;
		candidate->returned = true;
		group->good = lappend(group->good, candidate);
	}
	group->more_due = n == choice->want;
}

/*
 * All that was read of a group so far is in the way.  Begin where an earlier claim
 * came to, and take what of the rows before that has its turn again.
 */
static void
ask_passed(Choice *choice, TurnGroup *group)
{
	Datum		upto;

	if (group->asked_passed)
	{
		if (group->more_due)
			take_due(choice, group);
		return;
	}
	group->asked_passed = true;
	if (!passed_upto(choice, group, &upto))
		return;
	take_due(choice, group);
	if (bbf_pair_compare_keys(choice->handout->pair, upto, group->last) > 0)
	{
		group->last = upto;
		group->exhausted = false;
		group->in_the_way = 0;	/* those are passed already */
	}
}

/* Look at those that were chosen once more; what is not pending is not handed out. */
static void
look_again(Choice *choice, Candidate **chosen, char **groups, int n)
{
	BbfHandout *handout = choice->handout;
	Datum	   *keys = palloc(sizeof(Datum) * Max(n, 1));
	char	  **gone = palloc(sizeof(char *) * Max(n, 1));
	bool		returned = false;
	bool	   *pending;
	int			stale = 0;
	int			forget = 0;

	for (int i = 0; i < n; i++)
	{
		keys[i] = chosen[i]->key;
		returned = returned || chosen[i]->returned;
	}
	pending = bbf_listed_among(&choice->listed, keys, n, !returned);
	for (int i = 0; i < n; i++)
	{
		if (!pending[i])
		{
			if (chosen[i]->returned)
				gone[forget++] = chosen[i]->text;
			keys[stale++] = chosen[i]->key;
			continue;
		}
		handout->rows[handout->n] = (BbfLeased) {chosen[i]->text, groups[i], chosen[i]->attempt};
		handout->keys[handout->n++] = chosen[i]->key;
		handout->last_group = groups[i];
	}
	if (forget > 0)
		bbf_attempt_forget(handout->job->name, gone, forget);
	handout->pruned += bbf_listed_prune(&choice->listed, keys, stale);
}

/* Deal out what is there, a row of each group at a time.  False: nothing is there. */
static bool
deal(Choice *choice)
{
	int			need = choice->want - choice->handout->n;
	Candidate **chosen = palloc(sizeof(Candidate *) * need);
	char	  **groups = palloc(sizeof(char *) * need);
	int			n = 0;
	bool		more = true;

	while (more && n < need)
	{
		ListCell   *lc;

		more = false;
		foreach(lc, choice->groups)
		{
			TurnGroup  *group = lfirst(lc);
			Candidate  *candidate;

			if (group->good == NIL || n == need)
				continue;
			candidate = linitial(group->good);
			group->good = list_delete_first(group->good);
			more = true;
			if (!bbf_lease_take(choice->leases, candidate->text, true))
				continue;		/* met twice */
			chosen[n] = candidate;
			groups[n++] = group->text;
		}
	}
	look_again(choice, chosen, groups, n);
	return n > 0;
}

/* Read more rows of the groups that have more.  False: none has. */
static bool
read_deeper(Choice *choice)
{
	int			need = choice->want - choice->handout->n;
	int			groups = 0;
	ListCell   *lc;

	foreach(lc, choice->groups)
		groups += ((TurnGroup *) lfirst(lc))->exhausted ? 0 : 1;
	foreach(lc, choice->groups)
	{
		TurnGroup  *group = lfirst(lc);

		if (!group->exhausted)
			read_group(choice, group, need / groups + 2 * ROWS_AT_FIRST);
	}
	return groups > 0;
}

/* Read rows, until enough of them can be handed out or there are no more. */
static void
choose(Choice *choice)
{
	BbfHandout *handout = choice->handout;

	while (handout->n < choice->want)
	{
		/* one for each row; where they give nothing, twice as many the next time */
		int			wanted_groups = list_length(choice->groups) +
			Max(choice->want - handout->n, list_length(choice->groups));
		ListCell   *lc;
		bool		read = false;

		if (handout->n > 0)
			wanted_groups = Min(wanted_groups, MAX_GROUPS);
		while (list_length(choice->groups) < wanted_groups && next_group(choice))
			read = true;
		read = read || read_deeper(choice);
		look_up(choice);
		foreach(lc, choice->groups)
		{
			TurnGroup  *group = lfirst(lc);

			if (group->good == NIL && group->begun && choice->any_attempts)
				ask_passed(choice, group);
		}
		if (!deal(choice) && !read)
			break;
	}
}

/* Note how far the way of groups was blocked, so that the next claim need not go it. */
static void
save_passed(Choice *choice)
{
	const BbfPair *pair = choice->handout->pair;
	ListCell   *lc;

	/* what came back is looked up by its group's text */
	if (pair->group_by && !pair->group_has_one_text)
		return;
	foreach(lc, choice->groups)
	{
		TurnGroup  *group = lfirst(lc);

		if (group->in_the_way > PASS_AFTER)
			bbf_attempt_pass(choice->handout->job->name, group->text, group->in_the_way_upto);
	}
}

/* Begin a choice of so many rows, at the group whose turn it is. */
static void
begin_choice(Choice *choice, BbfHandout *handout, BbfLeases *leases, int want)
{
	const BbfPair *pair = handout->pair;

	memset(choice, 0, sizeof(Choice));
	choice->handout = handout;
	choice->leases = leases;
	choice->want = want;
	handout->last_group = leases->last_group;
	handout->n = 0;
	handout->rows = palloc(sizeof(BbfLeased) * Max(want, 1));
	handout->keys = palloc(sizeof(Datum) * Max(want, 1));
	choice->any_attempts = bbf_attempt_any(handout->job->name);
	bbf_listed_begin(&choice->listed, handout->job, pair);
	if (pair->group_by && !handout->only_group)
	{
		choice->start = leases->last_group;
		return;
	}
	choice->all_groups = true;
	if (handout->group == NULL)
		add_group(choice, (Datum) 0, NULL);
	else
	{
		Datum		value = bbf_pair_group_in(pair, handout->group);

		add_group(choice, value, bbf_pair_group_out(pair, value));
	}
	avoid(choice);
}

/*
 * Choose rows of a handout, at most so many; note: remember where the way was
 * blocked, which takes the job's lock and a claim that goes with it.
 */
void
bbf_choice_run(BbfHandout *handout, BbfLeases *leases, int want, bool note)
{
	Choice		choice;

	begin_choice(&choice, handout, leases, want);
	choose(&choice);
	bbf_listed_end(&choice.listed);
	if (note)
		save_passed(&choice);
}
