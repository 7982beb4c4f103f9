/*
 * mode_watermark.c
 *		Mode "watermark": the table of pending keys of mode "sidecar", without any
 *		trigger on either table.
 *
 * The worker alone writes it: passes over the newest keys add what is pending
 * (watermark.c), pruning takes out what has got a match, and the sweep finds the
 * rest.  The view hides matched rows, because nobody takes them out when they
 * get their match.
 */
#include "postgres.h"

#include "executor/spi.h"
#include "mode_sidecar.h"

static List *
watermark_triggers(const BbfJob *job, const BbfPair *pair)
{
	return NIL;
}

static char *
watermark_describe(const BbfJob *job, Relation source)
{
	return psprintf("table \"%s\" would be created; tables \"%s\" and \"%s\" get no trigger and are never updated",
					bbf_job_object(job, "sidecar"), job->source_name, job->target_name);
}

/* Nothing is done to the tables: no lock. */
static LOCKMODE
watermark_source_lock(const BbfJob *job, const BbfPair *pair)
{
	return NoLock;
}

static int
watermark_settle(const BbfJob *job, const BbfPair *pair, BbfEvent event, BbfStep *steps)
{
	return 0;
}

/* The sidecar's rows without a match; never the source. */
static char *
watermark_pending_from(const BbfJob *job, const BbfPair *pair)
{
	return psprintf("FROM ONLY %s s WHERE NOT EXISTS (SELECT FROM ONLY %s m WHERE m.%s %s s.%s%s%s)",
					bbf_sidecar_table(job, pair), pair->target_sql, pair->target_key,
					pair->target_key_op[BTEqualStrategyNumber], pair->source_key,
					pair->match_where ? " AND " : "", pair->match_where ? pair->match_where : "");
}

const BbfMode bbf_mode_watermark = {
	.name = "watermark",
	.index = "sidecar_idx",
	.passes = true,
	.check = bbf_sidecar_check,
	.describe = watermark_describe,
	.missing = bbf_sidecar_missing,
	.triggers = watermark_triggers,
	.source_lock = watermark_source_lock,
	.install = bbf_sidecar_install,
	.uninstall = bbf_sidecar_uninstall,
	.table = bbf_sidecar_table,
	.stale = bbf_sidecar_stale,
	.strange = bbf_sidecar_strange,
	.sync_readers = bbf_sidecar_sync_readers,
	.candidates = bbf_sidecar_candidates,
	.lock = bbf_mode_lock_source,
	.decide = bbf_sidecar_decide,
	.undecided = bbf_sidecar_undecided,
	.write_lacking = bbf_sidecar_write_lacking,
	.write_at_once = bbf_sidecar_write_at_once,
	.put_right = bbf_sidecar_put_right,
	.decide_code = SPI_OK_INSERT,
	.write_code = SPI_OK_INSERT_RETURNING,
	.right_code = SPI_OK_DELETE,
	.settle = watermark_settle,
	.pending_from = watermark_pending_from,
	.queue_from = bbf_sidecar_queue_from,
};
