/*
 * launcher.h
 *		The launcher.
 */
#ifndef BBF_LAUNCHER_H
#define BBF_LAUNCHER_H

#include "postmaster/bgworker.h"
#include "shmem.h"

/* what the launcher hands to a process in bgw_extra */
typedef struct BbfLaunch
{
	uint64		generation;
	Oid			datid;
	Oid			owner;			/* workers only */
} BbfLaunch;

StaticAssertDecl(sizeof(BbfLaunch) <= BGW_EXTRALEN, "BbfLaunch must fit into bgw_extra");

extern void bbf_launcher_register(void);
extern PGDLLEXPORT void bbf_launcher_main(Datum main_arg);
extern BbfSlot *bbf_launcher_attach(Datum main_arg, BbfLaunch *launch);

#endif							/* BBF_LAUNCHER_H */
