/*
 * shmem.h
 *		What the launcher, the schedulers, the workers and the backends share.
 */
#ifndef BBF_SHMEM_H
#define BBF_SHMEM_H

#include "datatype/timestamp.h"
#include "storage/latch.h"
#include "storage/lwlock.h"

#define BBF_MAX_DATABASES		512
#define BBF_MAX_WORKER_SLOTS	32	/* upper bound of max_workers */
#define BBF_MAX_SCHEDULERS		2
#define BBF_MAX_SLOTS			(BBF_MAX_WORKER_SLOTS + BBF_MAX_SCHEDULERS)
#define BBF_MAX_DUE				256
#define BBF_MAX_ENDED			64

#define BBF_GRACE_MS			10000	/* from a cancel to the end of the process */

typedef enum BbfSlotKind
{
	BBF_SLOT_FREE,
	BBF_SLOT_SCHEDULER,
	BBF_SLOT_WORKER
} BbfSlotKind;

typedef enum BbfActivity
{
	BBF_ACT_STARTING,
	BBF_ACT_RUNNING,
	BBF_ACT_SLEEPING
} BbfActivity;

/* what others may do about the statement that a worker is at */
typedef enum BbfStatement
{
	BBF_STATEMENT_PLAIN,		/* it has a time limit, or runs no user's code */
	BBF_STATEMENT_CANCELLABLE,	/* pause() cancels it */
	BBF_STATEMENT_LONG			/* so it does; there is no limit: an index build, a vacuum */
} BbfStatement;

/* a database that has been seen to have the extension, or was woken */
typedef struct BbfDatabase
{
	Oid			datid;			/* InvalidOid: free entry */
	bool		dirty;			/* something changed: schedule now */
	bool		recheck;		/* a change may commit unseen: look again */
	TimestampTz looked_at;		/* when a scheduler was last started */
	TimestampTz next_due;		/* 0: nothing is due */
	int			drained_by;		/* pid of a backend about to drop it, or 0 */
	bool		only_drained;	/* we know it for no other reason */
} BbfDatabase;

/* an owner's jobs that a scheduler found to be due */
typedef struct BbfDue
{
	Oid			datid;
	Oid			owner;
	TimestampTz since;
} BbfDue;

/* a job whose worker had to be terminated, until that is recorded with it */
typedef struct BbfEnded
{
	Oid			datid;			/* InvalidOid: free entry */
	char		job[NAMEDATALEN];
} BbfEnded;

/* one scheduler or worker */
typedef struct BbfSlot
{
	BbfSlotKind kind;
	uint64		generation;		/* raised by each launch in this slot */
	Oid			datid;
	Oid			owner;
	pid_t		pid;			/* 0 until it has attached */
	bool		exited;			/* it has left the slot */
	bool		clean;			/* having said when it wants to be back */
	TimestampTz launched_at;
	Latch	   *latch;
	bool		woken;			/* a job has changed; waits of the server's own reset the latch */
	/* what a worker is at */
	char		job[NAMEDATALEN];
	BbfActivity activity;
	BbfStatement statement;
	TimestampTz step_since;		/* when the step under way began, or 0 */
	TimestampTz waits_since;	/* in a long statement, for a lock; or 0 */
	TimestampTz terminate_at;	/* it must be over by then, or 0 */
	bool		gave_way;		/* cancelled for somebody who waits for its place */
	bool		paused;			/* cancelled by pause() or untrack() */
	bool		terminated;
	double		index_percent;	/* the most shown so far in this index phase */
	char		waiting_for[NAMEDATALEN];
	TimestampTz waiting_since;
} BbfSlot;

typedef struct BbfShared
{
	LWLock	   *lock;
	pid_t		launcher_pid;
	Latch	   *launcher_latch;
	TimestampTz no_slots_since; /* max_worker_processes is used up; or 0 */
	pid_t		index_builder_pid;
	Oid			index_builder_owner;
	TimestampTz index_builder_since;
	int			ndue;
	BbfDatabase databases[BBF_MAX_DATABASES];
	BbfDue		due[BBF_MAX_DUE];
	BbfEnded	ended[BBF_MAX_ENDED];
	BbfSlot		slots[BBF_MAX_SLOTS];
} BbfShared;

extern BbfShared *bbf_shared;

extern void bbf_shmem_init(void);

/* all processes */
extern bool bbf_shmem_wake(Oid datid);
extern void bbf_shmem_recheck(Oid datid);
extern void bbf_shmem_cancel(Oid datid, const char *job);
extern void bbf_shmem_drain(Oid datid, bool terminate);
extern void bbf_shmem_undrain(Oid datid);

/* for those who hold the lock */
extern BbfDatabase *bbf_shmem_database(Oid datid);
extern void bbf_shmem_drop_due(int i);
extern bool bbf_shmem_is_drained(Oid datid);
extern bool bbf_shmem_has_worker(Oid datid, Oid owner);
extern uint32 bbf_shmem_wait_class(pid_t pid);
extern bool bbf_shmem_waits_for_lock(pid_t pid);
extern int	bbf_shmem_count(BbfSlotKind kind, Oid datid, Oid owner);

/* a launched process, for its own slot: shmem_slot.c */
extern BbfSlot *bbf_shmem_attach(int slotno, uint64 generation);
extern void bbf_shmem_report(const char *job, BbfActivity activity, const char *waiting_for);
extern bool bbf_shmem_was_woken(void);
extern void bbf_shmem_set_statement(BbfStatement statement);
extern void bbf_shmem_set_limit(TimestampTz at);
extern bool bbf_shmem_gave_way(void);
extern bool bbf_shmem_was_ended(const char *job);
extern void bbf_shmem_forget_ended(const char *job);
extern double bbf_shmem_index_percent(void);
extern bool bbf_shmem_claim_index_build(void);
extern void bbf_shmem_release_index_build(void);
extern bool bbf_shmem_others_wait(void);
extern void bbf_shmem_say_goodbye(void);

/* the answer of a scheduler, or what a worker leaves at its exit */
extern void bbf_shmem_add_due(Oid datid, Oid owner);
extern void bbf_shmem_set_next_due(Oid datid, TimestampTz when);
extern void bbf_shmem_set_owner_due(Oid datid, Oid owner, TimestampTz when);
extern void bbf_shmem_forget_database(Oid datid);
extern void bbf_shmem_remove_database(Oid datid);
extern void bbf_shmem_clear_recheck(Oid datid);

#endif							/* BBF_SHMEM_H */
