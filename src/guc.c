/*
 * guc.c
 *		Every setting: its name, unit, range and default, once.
 *
 * The same table serves the server's settings and the per-job values of
 * configure(): a value that one refuses, the other refuses in the same words.
 * Nothing here may size shared memory: all of it can change by a reload.
 */
#include "postgres.h"

#include <limits.h>

#include "guc.h"
#include "shmem.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"

typedef struct BbfSettingDef
{
	const char *name;			/* without the prefix */
	const char *description;
	const char *detail;
	int			boot;
	int			min;
	int			max;
	int			flags;			/* GUC_UNIT_*, or 0 */
	int			value;			/* the server's */
} BbfSettingDef;

bool		bbf_guc_enabled = true;

static BbfSettingDef settings[BBF_SETTINGS] = {
	[BBF_BATCH_SIZE] = {"batch_size",
		"Sets the most rows of a source that one transaction of a worker covers.",
		NULL, 10000, 1, 1000000, 0, 0},
	[BBF_BATCH_SLEEP] = {"batch_sleep",
		"Sets how long a worker sleeps between two batches of a job.",
		"No transaction is open meanwhile.",
		100, 0, 3600 * 1000, GUC_UNIT_MS, 0},
	[BBF_LOCK_TIMEOUT] = {"lock_timeout",
		"Sets the longest a worker waits for a lock before it backs off and tries again.",
		NULL, 500, 1, 60 * 1000, GUC_UNIT_MS, 0},
	[BBF_STATEMENT_TIMEOUT] = {"statement_timeout",
		"Sets the longest a statement of a batch may take.",
		"A batch that takes longer is undone and halved.",
		30 * 1000, 10, INT_MAX, GUC_UNIT_MS, 0},
	[BBF_SCAN_INTERVAL] = {"scan_interval",
		"Sets how often the pending rows of a live job are scanned.",
		NULL, 60, 1, 7 * 86400, GUC_UNIT_S, 0},
	[BBF_SCAN_TIMEOUT] = {"scan_timeout",
		"Sets the longest a pending scan may take.",
		"A scan that takes longer is skipped and counted.",
		5 * 1000, 10, INT_MAX, GUC_UNIT_MS, 0},
	[BBF_VERIFY_INTERVAL] = {"verify_interval",
		"Sets how often a live job is compared with the truth, row by row.",
		"-1 turns the periodic sweep off.",
		86400, -1, INT_MAX / 1000, GUC_UNIT_S, 0},
	[BBF_LOOKBACK] = {"lookback",
		"Sets how many rows below the watermark each pass looks at again.",
		"Keys that come later than that many others wait for the next sweep. Mode watermark only.",
		10000, 0, 1000000, 0, 0},
	[BBF_MAX_ATTEMPTS] = {"max_attempts",
		"Sets how often a row is handed out before it is quarantined.",
		"A failure and an expired lease count alike.",
		5, 1, 1000, 0, 0},
	[BBF_MAX_LEASED] = {"max_leased",
		"Sets the most rows of a job that are handed out and not yet answered.",
		"A claim returns fewer rows, or none, rather than exceed it.",
		300, 1, 1000000, 0, 0},
	[BBF_HANDOFF_ROWS] = {"handoff_rows",
		"Sets the most rows that one call of a job's handler is given.",
		NULL, 100, 1, 10000, 0, 0},
	[BBF_HANDOFF_GROUPS] = {"handoff_groups",
		"Sets the most calls of a job's handler after one pending scan.",
		"Each call has the rows of one group.",
		100, 1, 10000, 0, 0},
	[BBF_HANDOFF_LEASE] = {"handoff_lease",
		"Sets how long the rows that a handler was given are its own.",
		"Rows that have no target row by then are handed out again, and one failure is counted.",
		300, 1, 86400, GUC_UNIT_S, 0},
	[BBF_MAX_WORKERS] = {"max_workers",
		"Sets the most workers at once, over all databases.",
		NULL, 2, 1, BBF_MAX_WORKER_SLOTS, 0, 0},
	[BBF_RETRY_DELAY] = {"retry_delay",
		"Sets the first delay before a failed batch is tried again.",
		"It doubles with each failure in a row, up to five minutes.",
		1000, 10, 300 * 1000, GUC_UNIT_MS, 0},
};

/* Define all settings with the server. */
void
bbf_guc_define(void)
{
	DefineCustomBoolVariable("bgw_backfill.enabled",
							 "Lets the workers of bgw_backfill run.",
							 "When off, workers finish their batch and stop.",
							 &bbf_guc_enabled, true, PGC_SIGHUP, 0,
							 NULL, NULL, NULL);
	for (int i = 0; i < BBF_SETTINGS; i++)
	{
		BbfSettingDef *def = &settings[i];

		DefineCustomIntVariable(bbf_guc_name(i), def->description, def->detail,
								&def->value, def->boot, def->min, def->max,
								PGC_SIGHUP, def->flags, NULL, NULL, NULL);
	}
	MarkGUCPrefixReserved("bgw_backfill");
}

/* The full name of a setting. */
const char *
bbf_guc_name(BbfSetting setting)
{
	static char *names[BBF_SETTINGS];

	if (names[setting] == NULL)
		names[setting] = MemoryContextStrdup(TopMemoryContext,
											 psprintf("bgw_backfill.%s",
													  settings[setting].name));
	return names[setting];
}

/* The server's value of a setting, in the setting's own unit. */
int
bbf_guc_server_value(BbfSetting setting)
{
	return settings[setting].value;
}

/*
 * Find a per-job setting by name, with or without the prefix.  Returns false
 * if there is no such setting.
 */
bool
bbf_guc_find_per_job(const char *name, BbfSetting *setting)
{
	if (pg_strncasecmp(name, "bgw_backfill.", 13) == 0)
		name += 13;
	for (int i = 0; i < BBF_PER_JOB_SETTINGS; i++)
	{
		if (pg_strcasecmp(name, settings[i].name) == 0)
		{
			*setting = i;
			return true;
		}
	}
	return false;
}

/*
 * Read a setting's value with its unit.  Errors as the server does for a
 * setting of its own.
 */
int
bbf_guc_parse(BbfSetting setting, const char *value)
{
	BbfSettingDef *def = &settings[setting];
	const char *hint = NULL;
	int			result;

	if (!parse_int(value, &result, def->flags, &hint))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for parameter \"%s\": \"%s\"",
						bbf_guc_name(setting), value),
				 hint ? errhint("%s", hint) :
				 errhint("The value is a whole number%s.",
						 (def->flags & GUC_UNIT_TIME) ? ", with a unit of time if any" : "")));
	if (result < def->min || result > def->max)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s is outside the valid range for parameter \"%s\"",
						bbf_guc_show(setting, result), bbf_guc_name(setting)),
				 errdetail("The range is %s .. %s.",
						   bbf_guc_show(setting, def->min),
						   bbf_guc_show(setting, def->max))));
	return result;
}

/* A setting's value as text with its unit. */
char *
bbf_guc_show(BbfSetting setting, int value)
{
	const char *unit = "";

	if (settings[setting].flags == GUC_UNIT_MS)
		unit = "ms";
	else if (settings[setting].flags == GUC_UNIT_S)
		unit = "s";
	if (value <= 0)
		unit = "";
	return psprintf("%d%s", value, unit);
}
