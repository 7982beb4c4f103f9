/*
 * mode_sidecar.h
 *		The table of pending keys: what modes "sidecar" and "watermark" share.
 */
#ifndef BBF_MODE_SIDECAR_H
#define BBF_MODE_SIDECAR_H

#include "mode.h"

/* the column of the time at which a row came */
#define BBF_ENQUEUED_AT "enqueued_at"

extern char *bbf_sidecar_table(const BbfJob *job, const BbfPair *pair);
extern char *bbf_sidecar_key(const BbfJob *job);
extern char *bbf_sidecar_candidates(const BbfJob *job, const BbfPair *pair, bool sweep, bool bounded);
extern char *bbf_sidecar_decide(const BbfJob *job, const BbfPair *pair);
extern char *bbf_sidecar_undecided(const BbfJob *job, const BbfPair *pair);
extern char *bbf_sidecar_write_lacking(const BbfJob *job, const BbfPair *pair);
extern char *bbf_sidecar_write_at_once(const BbfJob *job, const BbfPair *pair, bool sweep);
extern char *bbf_sidecar_put_right(const BbfJob *job, const BbfPair *pair);
extern char *bbf_sidecar_queue_from(const BbfJob *job, const BbfPair *pair);
extern char *bbf_sidecar_stale(const BbfJob *job, const BbfPair *pair);

extern void bbf_sidecar_check(const BbfJob *job, Relation source, Relation target);
extern char *bbf_sidecar_describe(const BbfJob *job, Relation source);
extern BbfMissing bbf_sidecar_missing(const BbfJob *job, const BbfPair *pair, char **what);
extern void bbf_sidecar_sync_readers(const BbfJob *job, const BbfPair *pair);
extern void bbf_sidecar_remove_strange(const BbfJob *job, const BbfPair *pair);
extern char *bbf_sidecar_strange(const BbfJob *job, const BbfPair *pair);
extern List *bbf_sidecar_triggers(const BbfJob *job, const BbfPair *pair);
extern LOCKMODE bbf_sidecar_source_lock(const BbfJob *job, const BbfPair *pair);
extern void bbf_sidecar_install(BbfJob *job, const BbfPair *pair);
extern void bbf_sidecar_uninstall(const BbfJob *job, const BbfPair *pair);

#endif							/* BBF_MODE_SIDECAR_H */
