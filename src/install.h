/*
 * install.h
 *		Phases install and uninstall, and the check of both.
 */
#ifndef BBF_INSTALL_H
#define BBF_INSTALL_H

#include "job.h"
#include "pair.h"

extern void bbf_install_run(BbfJob *job);
extern void bbf_install_forget_conditions(const BbfJob *job);
extern bool bbf_install_check(BbfJob *job);
extern void bbf_install_undo(BbfJob *job);
extern void bbf_install_lock_alone(const BbfJob *job);
extern void bbf_install_switch(const BbfJob *before, const BbfJob *successor, const BbfJob *after,
							   const BbfPair *pair);
extern char *bbf_install_view_sql(const BbfJob *job, const BbfPair *pair);

#endif							/* BBF_INSTALL_H */
