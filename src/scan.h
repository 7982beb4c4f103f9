/*
 * scan.h
 *		Phase live: the pending scan.
 */
#ifndef BBF_SCAN_H
#define BBF_SCAN_H

#include "job.h"

extern void bbf_scan_run(BbfJob *job, bool part);
extern void bbf_scan_record_skip(const BbfJob *job);

#endif							/* BBF_SCAN_H */
