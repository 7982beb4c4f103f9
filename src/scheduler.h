/*
 * scheduler.h
 *		The scheduler.
 */
#ifndef BBF_SCHEDULER_H
#define BBF_SCHEDULER_H

extern PGDLLEXPORT void bbf_scheduler_main(Datum main_arg);

#endif							/* BBF_SCHEDULER_H */
