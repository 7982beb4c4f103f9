/*
 * window.c
 *		A source's next keys and which of them have no match, read in one go.
 *
 * To find where a range ends, and then what it lacks, reads the source's keys
 * twice.  A merge join gives both: it reads the two indexes on keys side by side
 * and in order, from the cursor on, and is stopped once it has come as far as is
 * wanted.  That is cheap for a plan that can be stopped and for no other: one
 * that hashes or sorts would read all that is left of the table first.  So the
 * plan is looked at, and if it is not such a one, the caller goes the other way.
 */
#include "postgres.h"

#include "executor/executor.h"
#include "nodes/plannodes.h"
#include "session.h"
#include "sql.h"
#include "txn.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "window.h"

/* where the rows of the join go */
typedef struct Receiver
{
	DestReceiver pub;
	BbfWindow  *window;
	MemoryContext context;		/* of the keys */
	int16		typlen;
	bool		typbyval;
	int			room;
	bool		one_match;		/* each key comes once */
	Datum		last;			/* else the one before, once there is one */
} Receiver;

static Datum
copy_key(const Receiver *receiver, Datum key)
{
	MemoryContext old = MemoryContextSwitchTo(receiver->context);

	if (receiver->typlen == -1)
		key = PointerGetDatum(PG_DETOAST_DATUM_COPY(key));
	else
		key = datumCopy(key, receiver->typbyval, receiver->typlen);
	MemoryContextSwitchTo(old);
	return key;
}

/* Is this key the same source row's as the one before? */
static bool
is_another_match(Receiver *receiver, Datum key)
{
	Datum		before = receiver->last;

	if (receiver->one_match)
		return false;
	if (receiver->window->rows > 0 && datum_image_eq(key, before, receiver->typbyval, receiver->typlen))
		return true;
	receiver->last = copy_key(receiver, key);
	if (receiver->window->rows > 0 && !receiver->typbyval)
		pfree(DatumGetPointer(before));
	return false;
}

static void
add_lacking(Receiver *receiver, Datum key)
{
	BbfWindow  *window = receiver->window;

	if (window->nlacking == receiver->room)
	{
		receiver->room *= 2;
		window->lacking = repalloc_huge(window->lacking, sizeof(Datum) * receiver->room);
	}
	window->lacking[window->nlacking++] = copy_key(receiver, key);
}

/* Take a row: a key, and whether it has no match.  False: that was enough. */
static bool
receive(TupleTableSlot *slot, DestReceiver *self)
{
	Receiver   *receiver = (Receiver *) self;
	BbfWindow  *window = receiver->window;
	Datum		key;

	slot_getallattrs(slot);
	key = slot->tts_values[0];
	if (is_another_match(receiver, key))
		return true;
	window->rows++;
	if (DatumGetBool(slot->tts_values[1]))
		add_lacking(receiver, key);
	if (window->rows < window->size)
		return true;
	window->end = copy_key(receiver, key);
	return false;
}

static void
start_receiving(DestReceiver *self, int operation, TupleDesc typeinfo)
{
}

static void
done_receiving(DestReceiver *self)
{
}

/* A scan in the order of an index, straight or by way of what lets it be wound back. */
static bool
reads_index(const Plan *plan)
{
	if (plan && IsA(plan, Material))
		plan = plan->lefttree;
	return plan && (IsA(plan, IndexOnlyScan) || IsA(plan, IndexScan));
}

/* Can the plan be stopped anywhere, having read no more than what it has given? */
static bool
can_be_stopped(const PlannedStmt *stmt)
{
	const Plan *plan = stmt->planTree;

	return IsA(plan, MergeJoin) && ((const MergeJoin *) plan)->join.jointype == JOIN_LEFT &&
		reads_index(plan->lefttree) && reads_index(plan->righttree);
}

/* The keys from the cursor ($1) to the walk's end ($2), and which have no match. */
static char *
query(const BbfWalk *walk)
{
	const BbfPair *pair = walk->pair;
	char	   *skey = psprintf("s.%s", pair->source_key);
	char	   *mkey = psprintf("m.%s", pair->target_key);

	return psprintf("SELECT %s, %s IS NOT DISTINCT FROM NULL FROM ONLY %s s LEFT JOIN ONLY %s m"
					" ON %s AND %s %s %s%s%s WHERE %s ORDER BY %s USING %s",
					skey, mkey, pair->source_sql, pair->target_sql,
					bbf_mode_range(mkey, pair->target_key_op, walk->bounded),
					skey, pair->source_eq_target, mkey,
					pair->match_where ? " AND " : "", pair->match_where ? pair->match_where : "",
					bbf_mode_range(skey, pair->key_op, walk->bounded),
					skey, pair->key_op[BTLessStrategyNumber]);
}

/*
 * Read the next keys of a walk.  False: nothing is read, there is no plan for it
 * that could be stopped.
 */
bool
bbf_window_read(const BbfWalk *walk, BbfWindow *window)
{
	static const char *const plans_out_of_order[] = {
		"enable_hashjoin", "enable_nestloop", "enable_sort", "enable_bitmapscan"
	};
	const BbfPair *pair = walk->pair;
	Oid			types[] = {pair->key_type, pair->key_type};
	Datum		values[] = {walk->low, bbf_pair_key_in(pair, walk->job->high_mark)};
	Receiver	receiver = {
		.pub = {receive, start_receiving, done_receiving, done_receiving, DestTuplestore},
		.window = window,
		.context = CurrentMemoryContext,
		.room = 1024,
		.one_match = pair->target_key_unique
	};
	bool		done;

	get_typlenbyval(pair->key_type, &receiver.typlen, &receiver.typbyval);
	window->rows = 0;
	window->nlacking = 0;
	window->lacking = palloc(sizeof(Datum) * receiver.room);

	for (int i = 0; i < (int) lengthof(plans_out_of_order); i++)
		bbf_session_set(plans_out_of_order[i], "off");
	bbf_txn_arm(bbf_job_setting(walk->job, BBF_STATEMENT_TIMEOUT));
	done = bbf_sql_query_kept(query(walk), 2, types, values, walk->bounded ? NULL : "n ",
							  can_be_stopped, &receiver.pub);
	bbf_txn_disarm();
	for (int i = 0; i < (int) lengthof(plans_out_of_order); i++)
		bbf_session_set(plans_out_of_order[i], "on");
	return done;
}
