/*
 * objects.h
 *		The relations that a job has made.
 */
#ifndef BBF_OBJECTS_H
#define BBF_OBJECTS_H

#include "job.h"

extern const char *bbf_object_suffix(BbfObject object);
extern const char *bbf_object_keyword(BbfObject object);
extern bool bbf_object_fits(BbfObject object, Oid relid, Oid owner);
extern bool bbf_object_is_recorded(const BbfJob *job, BbfObject object);
extern Oid	bbf_object_find(const BbfJob *job, BbfObject object);
extern char *bbf_object_name(const BbfJob *job, BbfObject object);
extern char *bbf_object_sql(const BbfJob *job, BbfObject object);
extern void bbf_objects_record(BbfJob *job);
extern void bbf_objects_move_along(const BbfJob *job, Oid schema);

#endif							/* BBF_OBJECTS_H */
