/*
 * worker.h
 *		A worker.
 */
#ifndef BBF_WORKER_H
#define BBF_WORKER_H

extern PGDLLEXPORT void bbf_worker_main(Datum main_arg);

#endif							/* BBF_WORKER_H */
