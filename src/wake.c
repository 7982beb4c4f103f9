/*
 * wake.c
 *		From a committed change of a job to the launcher's latch.
 *
 * The statement trigger on the table "job" notes that something changed; the
 * latch is set from the commit callback.  At that point the change is visible
 * to every new snapshot (the transaction has left the proc array) though its
 * locks are still held: the scheduler takes none that conflict, and a worker
 * retries.  A prepared transaction commits in another session, where no
 * callback of ours runs: its database is looked at again every minute.
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "lib/ilist.h"
#include "miscadmin.h"
#include "shmem.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "wake.h"

PG_FUNCTION_INFO_V1(bgw_backfill_job_changed);

static bool wake_pending = false;	/* a wake too many costs nothing */

/* a job whose worker is to be cancelled; in memory of the subtransaction that wants it */
typedef struct Cancel
{
	dlist_node	node;
	MemoryContextCallback forget;
	char		job[NAMEDATALEN];
} Cancel;

static dlist_head cancel_pending = DLIST_STATIC_INIT(cancel_pending);

/* The subtransaction is undone, or all is over. */
static void
forget_cancel(void *arg)
{
	dlist_delete(&((Cancel *) arg)->node);
}

static void
xact_callback(XactEvent event, void *arg)
{
	dlist_iter	iter;

	switch (event)
	{
		case XACT_EVENT_COMMIT:
			if (wake_pending)
				(void) bbf_shmem_wake(MyDatabaseId);
			dlist_foreach(iter, &cancel_pending)
				bbf_shmem_cancel(MyDatabaseId, dlist_container(Cancel, node, iter.cur)->job);
			break;
		case XACT_EVENT_PREPARE:
			if (wake_pending)
				bbf_shmem_recheck(MyDatabaseId);
			break;
		case XACT_EVENT_ABORT:
			break;
		default:
			return;
	}
	wake_pending = false;
}

/* Once per process that has the library. */
void
bbf_wake_init(void)
{
	RegisterXactCallback(xact_callback, NULL);
}

/* Wake the launcher once the current transaction is committed. */
void
bbf_wake_at_commit(void)
{
	wake_pending = true;
}

/*
 * At commit, cancel the statement that the job's worker is at, if it is one
 * that may be cancelled.
 */
void
bbf_wake_cancel_at_commit(const char *job)
{
	Cancel	   *cancel = MemoryContextAllocZero(CurTransactionContext, sizeof(Cancel));

	strlcpy(cancel->job, job, NAMEDATALEN);
	cancel->forget.func = forget_cancel;
	cancel->forget.arg = cancel;
	MemoryContextRegisterResetCallback(CurTransactionContext, &cancel->forget);
	dlist_push_tail(&cancel_pending, &cancel->node);
}

/*
 * Statement trigger on the table "job": wakes the launcher at commit, and
 * makes every backend read the jobs anew that its triggers serve.
 */
Datum
bgw_backfill_job_changed(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" was not called by trigger manager",
						"job_changed")));
	CacheInvalidateRelcache(trigdata->tg_relation);
	bbf_wake_at_commit();
	PG_RETURN_POINTER(NULL);
}
