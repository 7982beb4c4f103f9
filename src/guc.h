/*
 * guc.h
 *		Settings.
 */
#ifndef BBF_GUC_H
#define BBF_GUC_H

/* the settings that a job can have its own value of come first */
typedef enum BbfSetting
{
	BBF_BATCH_SIZE,
	BBF_BATCH_SLEEP,
	BBF_LOCK_TIMEOUT,
	BBF_STATEMENT_TIMEOUT,
	BBF_SCAN_INTERVAL,
	BBF_SCAN_TIMEOUT,
	BBF_VERIFY_INTERVAL,
	BBF_LOOKBACK,
	BBF_MAX_ATTEMPTS,
	BBF_MAX_LEASED,
	BBF_HANDOFF_ROWS,
	BBF_HANDOFF_GROUPS,
	BBF_HANDOFF_LEASE,
	BBF_PER_JOB_SETTINGS,
	BBF_MAX_WORKERS = BBF_PER_JOB_SETTINGS,
	BBF_RETRY_DELAY,
	BBF_SETTINGS
} BbfSetting;

extern bool bbf_guc_enabled;

extern void bbf_guc_define(void);
extern int	bbf_guc_server_value(BbfSetting setting);
extern const char *bbf_guc_name(BbfSetting setting);
extern bool bbf_guc_find_per_job(const char *name, BbfSetting *setting);
extern int	bbf_guc_parse(BbfSetting setting, const char *value);
extern char *bbf_guc_show(BbfSetting setting, int value);

#endif							/* BBF_GUC_H */
