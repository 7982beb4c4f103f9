/*
 * standbys.c
 *		How far synchronous standbys are behind a worker.
 *
 * A commit that waits for a standby keeps its row locks until that has answered, and
 * whoever wants one of those rows waits as well: for ever, if the standby is lost.  So a
 * worker's transactions commit locally, whatever the settings say (txn.c), and a walk
 * looks here, between two batches and outside any transaction, whether the standbys have
 * what it has written so far.  A fill is never more than one batch ahead of them, and
 * who pauses or ends the job meanwhile waits for nobody.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "standbys.h"
#include "storage/lwlock.h"
#include "utils/guc.h"

/* what the standbys must have, if this process has not committed anything yet */
static XLogRecPtr from = InvalidXLogRecPtr;

/*
 * What standbys are asked for: what a plain session of this role would wait for, as the
 * place of that in the server's array.  False: for nothing.
 */
static bool
wanted_of_standbys(int *mode)
{
	const char *wanted = GetConfigOptionResetString("synchronous_commit");

	if (max_wal_senders == 0 || SyncRepStandbyNames == NULL || SyncRepStandbyNames[0] == '\0')
		return false;
	if (strcmp(wanted, "remote_write") == 0)
		*mode = SYNC_REP_WAIT_WRITE;
	else if (strcmp(wanted, "on") == 0)
		*mode = SYNC_REP_WAIT_FLUSH;
	else if (strcmp(wanted, "remote_apply") == 0)
		*mode = SYNC_REP_WAIT_APPLY;
	else
		return false;
	return true;
}

/* Are there standbys that commits wait for? */
bool
bbf_standbys_wanted(void)
{
	int			mode;

	return wanted_of_standbys(&mode);
}

/* A worker begins: those before it may have left the standbys behind. */
void
bbf_standbys_begin(void)
{
	from = GetFlushRecPtr(NULL);
}

/* Do synchronous standbys lack something that this process, or one before it, has committed? */
bool
bbf_standbys_behind(void)
{
	XLogRecPtr	committed = Max(from, XactLastCommitEnd);
	XLogRecPtr	confirmed;
	int			mode;

	if (!wanted_of_standbys(&mode))
		return false;
	LWLockAcquire(SyncRepLock, LW_SHARED);
	confirmed = WalSndCtl->lsn[mode];
	LWLockRelease(SyncRepLock);
	return confirmed < committed;
}
