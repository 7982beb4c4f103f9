/*
 * watch.h
 *		Ending what does not end by itself.
 */
#ifndef BBF_WATCH_H
#define BBF_WATCH_H

extern void bbf_watch_run(void);

#endif							/* BBF_WATCH_H */
