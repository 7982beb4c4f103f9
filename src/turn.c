/*
 * turn.c
 *		Whose turn it is: the groups in order, and their rows.
 *
 * A turn begins with the group after the one that the last claim ended with, goes up
 * to the last group and the nulls, then from the first group on to the one that it
 * began with.  A group costs one look at the index, which brings its first few rows.
 *
 * Where many groups one after the other have nothing that can be handed out (all of
 * it is in quarantine, say), a claim that went by them notes the stretch, and others
 * step over it: for twenty times as long as the look took, so that such looks take
 * a twentieth of the time at most, and what has changed there meanwhile is seen with
 * a delay that is short where there is little to look at, and a minute at most.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "portability/instr_time.h"
#include "sql.h"
#include "turn.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "value.h"

#define ROWS_AT_FIRST	4		/* of each group, where there are several */
#define STRETCH			16		/* groups without anything, to be stepped over */
#define REST			20		/* times as long as the look took */
#define MAX_REST_MS		60000.0

/* groups to step over: those after one, up to another */
typedef struct Stretch
{
	bool		from_first;		/* from the first group on */
	Datum		after;
	Datum		upto;
	char	   *upto_text;
} Stretch;

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

/* Read the stretches that are to be stepped over. */
static void
read_stretches(BbfTurn *turn)
{
	const BbfPair *pair = turn->handout->pair;
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(turn->handout->job->name)};
	uint64		n = bbf_sql_catalog_kept("SELECT after_group, upto_group FROM bgw_backfill.stretch"
									" WHERE job OPERATOR(pg_catalog.=) $1"
									" AND until OPERATOR(pg_catalog.>) pg_catalog.clock_timestamp()",
									1, types, values, NULL, SPI_OK_SELECT);

	for (uint64 i = 0; i < n; i++)
	{
		Stretch    *stretch;
		char	   *after = bbf_sql_text(i, 1);
		char	   *upto = bbf_sql_text(i, 2);

		if ((after && !bbf_value_is_readable(pair->owner, pair->group_type, after)) ||
			!bbf_value_is_readable(pair->owner, pair->group_type, upto))
			continue;			/* its end is near */
		stretch = palloc0(sizeof(Stretch));
		stretch->from_first = after == NULL;
		if (after)
			stretch->after = bbf_pair_group_in(pair, after);
		stretch->upto_text = upto;
		stretch->upto = bbf_pair_group_in(pair, stretch->upto_text);
		turn->stretches = lappend(turn->stretches, stretch);
	}
	SPI_freetuptable(SPI_tuptable);
}

/* Is a group to be stepped over?  Returns the last of its stretch, or NULL. */
static char *
stretch_end(const BbfTurn *turn, Datum group)
{
	const BbfPair *pair = turn->handout->pair;
	ListCell   *lc;

	foreach(lc, turn->stretches)
	{
		Stretch    *stretch = lfirst(lc);

		if ((stretch->from_first || bbf_pair_compare_groups(pair, group, stretch->after) > 0) &&
			bbf_pair_compare_groups(pair, group, stretch->upto) <= 0)
			return stretch->upto_text;
	}
	return NULL;
}

/* The rows that a look returned, from the first on, as long as they are the group's. */
static void
add_rows(BbfTurn *turn, BbfTurnGroup *group, uint64 n, bool with_group, int64 limit)
{
	const BbfPair *pair = turn->handout->pair;
	uint64		i;

	for (i = 0; i < n; i++)
	{
		BbfCandidate *candidate;
		bool		isnull;

		if (with_group && !bbf_pair_same_group(pair, group->value,
											   SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2, &isnull)))
			break;
		candidate = palloc0(sizeof(BbfCandidate));
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
void
bbf_turn_read(BbfTurn *turn, BbfTurnGroup *group, int64 rows)
{
	int64		limit = rows + 2 * ROWS_AT_FIRST;
	bool		of_nulls = group->text == NULL;
	BbfListedFrom from = of_nulls ?
		(group->begun ? BBF_LISTED_NULLS_AFTER : BBF_LISTED_NULLS) :
		(group->begun ? BBF_LISTED_GROUP_AFTER : BBF_LISTED_GROUP);

	add_rows(turn, group, bbf_listed_read(&turn->listed, from, group->value, group->last, limit), false, limit);
}

static BbfTurnGroup *
add_group(BbfTurn *turn, Datum value, char *text)
{
	BbfTurnGroup *group = palloc0(sizeof(BbfTurnGroup));

	group->value = value;
	group->text = text;
	group->after_jump = turn->jumped;
	turn->jumped = false;
	turn->groups = lappend(turn->groups, group);
	return group;
}

static bool
is_avoided(const BbfTurn *turn, const char *text)
{
	ListCell   *lc;

	foreach(lc, turn->handout->avoid)
	{
		const char *avoided = lfirst(lc);

		if (avoided == text || (avoided && text && strcmp(avoided, text) == 0))
			return true;
	}
	return false;
}

/* Does a group that is not to be handed out stand at the end?  Then it is as good as read. */
static void
avoid(BbfTurn *turn)
{
	BbfTurnGroup *group = llast(turn->groups);

	if (!is_avoided(turn, group->text))
		return;
	group->read = NIL;
	group->exhausted = true;
	group->avoided = true;
}

/* The first rows of the next group that is not stepped over; false: there is none. */
static bool
look_for_group(BbfTurn *turn, const char *after, Datum *value, uint64 *n)
{
	const BbfPair *pair = turn->handout->pair;

	for (;;)
	{
		bool		isnull;
		char	   *end;

		*n = bbf_listed_read(&turn->listed, after ? BBF_LISTED_NEXT_GROUP : BBF_LISTED_FIRST_GROUP,
							 after ? bbf_pair_group_in(pair, after) : (Datum) 0, (Datum) 0, ROWS_AT_FIRST);
		if (*n == 0)
		{
			SPI_freetuptable(SPI_tuptable);
			return false;
		}
		*value = result_datum(0, 2, pair->group_type, &isnull);
		if ((end = stretch_end(turn, *value)) == NULL)
			return true;
		SPI_freetuptable(SPI_tuptable);
		turn->jumped = true;
		after = end;
	}
}

/* The group whose turn is next, with its first rows.  NULL: all have had theirs. */
BbfTurnGroup *
bbf_turn_next(BbfTurn *turn)
{
	const BbfPair *pair = turn->handout->pair;
	BbfTurnGroup *first = turn->groups ? linitial(turn->groups) : NULL;
	BbfTurnGroup *last = turn->groups ? llast(turn->groups) : NULL;
	const char *after = last ? last->text : turn->start;
	uint64		n;
	Datum		value;

	if (turn->all_groups)
		return NULL;
	if (!look_for_group(turn, after, &value, &n))
	{
		/* the nulls come last, and then the first group again */
		turn->all_groups = turn->wrapped;
		if (turn->wrapped)
			return NULL;
		turn->wrapped = true;
		bbf_turn_read(turn, add_group(turn, (Datum) 0, NULL), 0);
		avoid(turn);
		return llast(turn->groups);
	}
	if (turn->wrapped && ((first->text && bbf_pair_compare_groups(pair, value, first->value) >= 0) ||
						  (turn->start && bbf_pair_compare_groups(pair, value, bbf_pair_group_in(pair, turn->start)) > 0)))
	{
		SPI_freetuptable(SPI_tuptable);
		turn->all_groups = true;
		return NULL;
	}
	add_rows(turn, add_group(turn, value, bbf_pair_group_out(pair, value)), n, true, ROWS_AT_FIRST);
	avoid(turn);
	return llast(turn->groups);
}

/* Begin a turn, as the job's owner; until bbf_turn_end(), or an error. */
void
bbf_turn_begin(BbfTurn *turn, BbfHandout *handout, const char *start)
{
	const BbfPair *pair = handout->pair;

	memset(turn, 0, sizeof(BbfTurn));
	turn->handout = handout;
	INSTR_TIME_SET_CURRENT(turn->began);
	bbf_listed_begin(&turn->listed, handout->job, pair);
	if (pair->group_by && !handout->only_group)
	{
		turn->start = start && bbf_pair_group_is_readable(pair, handout->job->name, start) ? start : NULL;
		read_stretches(turn);
		return;
	}
	turn->all_groups = true;
	if (handout->group == NULL)
		add_group(turn, (Datum) 0, NULL);
	else
	{
		Datum		value = bbf_pair_group_in(pair, handout->group);

		add_group(turn, value, bbf_pair_group_out(pair, value));
	}
	avoid(turn);
}

/* The end of bbf_turn_begin(). */
void
bbf_turn_end(BbfTurn *turn)
{
	bbf_listed_end(&turn->listed);
}

/* Write down a stretch of groups without anything: after one (NULL: from the first on), up to another. */
static void
save_stretch(const BbfTurn *turn, const char *after, const char *upto, double rest_ms)
{
	Oid			types[] = {TEXTOID, TEXTOID, TEXTOID, FLOAT8OID};
	Datum		values[] = {CStringGetTextDatum(turn->handout->job->name), after ? CStringGetTextDatum(after) : (Datum) 0,
	CStringGetTextDatum(upto), Float8GetDatum(rest_ms / 1000.0)};

	bbf_sql_catalog("INSERT INTO bgw_backfill.stretch (job, after_group, upto_group, until) VALUES ($1, $2, $3,"
					" pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) pg_catalog.make_interval(secs => $4))",
					4, types, values, after ? NULL : " n  ", SPI_OK_INSERT);
}

/* Note the stretches that this turn went by in vain. */
void
bbf_turn_note_stretches(const BbfTurn *turn)
{
	const char *before = turn->start;	/* the group before the stretch */
	const char *end = NULL;
	int			n = 0;
	instr_time	took;
	ListCell   *lc;

	INSTR_TIME_SET_CURRENT(took);
	INSTR_TIME_SUBTRACT(took, turn->began);
	foreach(lc, turn->groups)
	{
		const BbfTurnGroup *group = lfirst(lc);
		bool		barren = group->text && group->exhausted && !group->gave && !group->avoided &&
			!group->after_jump && bbf_turn_has_good(group) == NULL;

		if (barren)
		{
			end = group->text;
			n++;
		}
		if (!barren || lc == list_last_cell(turn->groups))
		{
			if (n >= STRETCH)
				save_stretch(turn, before, end, Min(REST * INSTR_TIME_GET_MILLISEC(took), MAX_REST_MS));
			before = group->text;	/* after the nulls comes the first */
			n = 0;
		}
	}
}

/* Forget the stretches whose time is over. */
void
bbf_turn_forget_stretches(const char *job)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(job)};

	bbf_sql_catalog("DELETE FROM bgw_backfill.stretch WHERE job OPERATOR(pg_catalog.=) $1"
					" AND until OPERATOR(pg_catalog.<) pg_catalog.clock_timestamp()",
					1, types, values, NULL, SPI_OK_DELETE);
}

/* The next row of a group that can be handed out; NULL: none is known. */
BbfCandidate *
bbf_turn_has_good(const BbfTurnGroup *group)
{
	return group->next_good < list_length(group->good) ? list_nth(group->good, group->next_good) : NULL;
}
