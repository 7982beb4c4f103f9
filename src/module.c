/*
 * module.c
 *		What happens when the library is loaded, in order.
 */
#include "postgres.h"

#include "compat.h"
#include "fmgr.h"
#include "guc.h"
#include "launcher.h"
#include "miscadmin.h"
#include "served.h"
#include "shmem.h"
#include "utility.h"
#include "wake.h"

BBF_MODULE_MAGIC;

extern PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	/* pg_upgrade's servers have no use for workers, nor may they write */
	if (IsBinaryUpgrade)
		return;

	bbf_guc_define();
	bbf_wake_init();
	bbf_served_init();

	if (!process_shared_preload_libraries_in_progress)
		return;

	bbf_shmem_init();
	bbf_utility_init();
	bbf_launcher_register();
}
