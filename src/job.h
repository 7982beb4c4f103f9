/*
 * job.h
 *		A job: its configuration and its state.
 */
#ifndef BBF_JOB_H
#define BBF_JOB_H

#include "datatype/timestamp.h"
#include "guc.h"
#include "nodes/pg_list.h"

/* "<job>_sidecar_idx" must be a name */
#define BBF_MAX_JOB_NAME 51

/* the most characters of an error that are kept */
#define BBF_MAX_ERROR 1000

/* in the order that a job goes through them; uninstall comes at any time */
typedef enum BbfPhase
{
	BBF_PHASE_INSTALL,
	BBF_PHASE_FILL,
	BBF_PHASE_INDEX,
	BBF_PHASE_VERIFY,
	BBF_PHASE_LIVE,
	BBF_PHASE_UNINSTALL
} BbfPhase;

typedef enum BbfHealth
{
	BBF_HEALTH_OK,
	BBF_HEALTH_FAILED,
	BBF_HEALTH_HELD
} BbfHealth;

/* a pending scan, and what follows it; the view progress has their names */
typedef enum BbfStage
{
	BBF_STAGE_SCAN,
	BBF_STAGE_PRUNE,
	BBF_STAGE_CLAIMS,
	BBF_STAGE_ATTEMPTS,
	BBF_STAGE_PASSED,
	BBF_STAGE_NOTIFY,
	BBF_STAGE_HANDLER,
	BBF_STAGES
} BbfStage;

/* the relations that a job makes; see objects.c */
typedef enum BbfObject
{
	BBF_VIEW,
	BBF_SIDECAR,
	BBF_SIDECAR_KEY,
	BBF_SIDECAR_IDX,
	BBF_PENDING_IDX,
	BBF_OBJECTS
} BbfObject;

typedef struct BbfJob
{
	/* configuration: table job */
	char	   *name;
	char	   *owner;
	Oid			role_oid;		/* the same, if the job is at home here */
	Oid			database_oid;
	int64		system_id;
	Oid			source_oid;
	Oid			target_oid;
	char	   *source_schema;
	char	   *source_name;
	char	   *target_schema;
	char	   *target_name;
	char	   *mode;
	char	   *source_key;
	char	   *target_key;
	char	   *flag_column;
	char	   *pending_where;	/* canonical text, or NULL */
	char	   *match_where;
	char	   *group_by;
	char	   *handler;		/* signature with its schema, or NULL */
	bool		changing;		/* the two conditions below are to take effect */
	char	   *new_pending_where;
	char	   *new_match_where;
	char	   *successor_of;	/* the job whose place it takes; NULL: none */
	char	   *becomes;		/* a successor's: the mode that its job gets; NULL: its own */
	List	   *source_columns; /* of BbfColumn: the names that the above knows them by */
	List	   *target_columns;
	List	   *source_was;		/* those of them that have another name now, which the above has already, but
								 * for the conditions */
	List	   *target_was;
	Oid			objects[BBF_OBJECTS];	/* 0: not there, or not recorded yet */
	char	   *settings;		/* "name=value,...", or NULL */
	bool		paused;
	bool		uninstall;
	bool		drop_objects;
	int64		verify_requests;

	/* progress: table job_state */
	BbfPhase	phase;
	int64		generation;
	BbfHealth	health;
	bool		flag_added;		/* the flag column is ours */
	char	   *cursor;			/* NULL: at the start */
	char	   *high_mark;		/* NULL: no walk is under way */
	bool		has_skipped;	/* rows of the walk are left that were locked */
	int64		rows_done;
	int64		rows_total;
	int32		batch_size;		/* current one; 0: the setting's */
	double		rows_per_second;
	TimestampTz batch_at;		/* end of the last batch, or 0 */
	TimestampTz verified_at;
	int64		sweep_request;	/* the verify request that is being served */
	TimestampTz sweep_started_at;	/* 0: no sweep is under way */
	int64		sweep_mismatches;
	char	   *prune_cursor;	/* NULL: at the start */
	char	   *attempt_cursor; /* NULL: at the start */
	char	   *claim_cursor;	/* a token; NULL: at the first */
	char	   *watermark;		/* NULL: none yet */
	char	   *next_mark;		/* where it rises to next; NULL: not known yet */
	char	   *next_mark_xid;
	char	   *pass_mark;		/* where it rises to after this pass; NULL: it stays */
	char	   *pass_cursor;
	char	   *pass_end;		/* NULL: no pass is under way */
	TimestampTz pass_at;		/* end of the last pass, or 0 */
	char	   *switch_xid;		/* a successor's: snapshots before it must end */
	char	   *key_order;		/* what the keys and groups here rest on; NULL: not known yet */
	char	   *files;			/* of the tables, at the last pass */
	TimestampTz scan_at;
	TimestampTz part_at;		/* end of the last part of a round */
	double		scan_ms;		/* how long it took */
	TimestampTz handoff_at;		/* when the handler is due before the next scan; 0: after it */
	char	   *quiet_mark;		/* how the tables stood before the last scan; NULL: not known */
	int32		cut_short;		/* a bit for each BbfStage that the last scan, and what follows it, cut short */
	int64		scan_cycle;
	char	   *scan_group;		/* where the next scan begins; NULL: at the start */
	int32		retries;		/* errors in a row */
	int32		waits;			/* waits for a lock and the like in a row */
	TimestampTz retry_at;
} BbfJob;

/* what a batch has done */
typedef struct BbfBatch
{
	const char *cursor;			/* the key range's end */
	int64		rows;			/* source rows it covered */
	int64		changed;		/* rows written */
	int64		eligible;		/* in a sweep: rows that satisfy pending_where */
	int64		pending;		/* and those that are pending now */
	double		ms;
	int32		next_size;		/* batch size from now on */
} BbfBatch;

extern BbfJob *bbf_job_load(const char *name);
extern void bbf_job_lock(const char *name);
extern bool bbf_job_try_lock(const char *name);
extern BbfJob *bbf_job_begin(const char *name);
extern List *bbf_job_names(void);
extern const char *bbf_job_phase_name(BbfPhase phase);
extern bool bbf_job_phase_from_name(const char *name, BbfPhase *phase);
extern int	bbf_job_setting(const BbfJob *job, BbfSetting setting);
extern bool bbf_job_same_place(const BbfJob *job);
extern Oid	bbf_job_source(const BbfJob *job);
extern Oid	bbf_job_target(const BbfJob *job);
extern bool bbf_job_belongs_to(const BbfJob *job, Oid role);
extern char *bbf_job_successor(const char *name);
extern const char *bbf_job_display_name(const BbfJob *job);
extern char *bbf_job_object(const BbfJob *job, const char *suffix);
extern TimestampTz bbf_job_next_batch(const BbfJob *job);
extern TimestampTz bbf_job_next_scan(const BbfJob *job);
extern TimestampTz bbf_job_next_part(const BbfJob *job);
extern bool bbf_job_sweep_is_due(const BbfJob *job, TimestampTz now);
extern TimestampTz bbf_job_next_due(const BbfJob *job);

extern bool bbf_job_enter_phase(BbfJob *job, BbfPhase phase);
extern bool bbf_job_begin_walk(BbfJob *job, const char *high_mark, int64 rows_total);
extern bool bbf_job_save_batch(BbfJob *job, const BbfBatch *batch, bool sweep);
extern void bbf_job_change_conditions(const BbfJob *job);
extern void bbf_job_ask_sweep(const char *name);
extern void bbf_job_end_sweep(BbfJob *job);
extern void bbf_job_keep_percent(BbfJob *job, double percent);
extern void bbf_job_set_flag_added(BbfJob *job, bool added);
extern void bbf_job_set_batch_size(BbfJob *job, int32 size);
extern void bbf_job_rename(BbfJob *job, Oid source, Oid target);
extern void bbf_job_adopt(BbfJob *job, Oid source, Oid target, Oid owner);
extern void bbf_job_record_error(const char *name, const char *message, BbfHealth health,
								 const char *waiting_for, int64 delay_ms);
extern const char *bbf_job_cut_error(const char *message);
extern void bbf_job_note_error(const char *name, const char *message);
extern void bbf_job_note_cut(const char *name, BbfStage stage);
extern void bbf_job_wait(const char *name, const char *waiting_for, int64 delay_ms);
extern void bbf_job_clear_retries(BbfJob *job);
extern void bbf_job_set_well(const char *name);
extern void bbf_job_restart_fill(const char *name);
extern void bbf_job_begin_anew(const char *name);
extern void bbf_job_forget_handouts(const char *name);
extern void bbf_job_delete(const char *name);

/* rows that a batch had to skip */
extern void bbf_job_skip(const BbfJob *job, const char *key);
extern char *bbf_job_next_skipped(const BbfJob *job);
extern void bbf_job_unskip(const BbfJob *job, const char *key);

#endif							/* BBF_JOB_H */
