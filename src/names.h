/*
 * names.h
 *		The names of jobs and of their objects: who may have them.
 */
#ifndef BBF_NAMES_H
#define BBF_NAMES_H

#include "job.h"

#define BBF_SUCCESSOR_PREFIX	'~'

extern void bbf_names_check_job(const char *name);
extern const char *bbf_names_hint(const char *object, Oid schema);
extern void bbf_names_check_object(const char *object, Oid schema, Oid owner, const char *hint);
extern void bbf_names_check_installed(const BbfJob *job, Oid schema, const BbfObject *objects, int n);

#endif							/* BBF_NAMES_H */
