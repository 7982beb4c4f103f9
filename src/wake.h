/*
 * wake.h
 *		Telling the launcher and the workers that a job has changed.
 */
#ifndef BBF_WAKE_H
#define BBF_WAKE_H

extern void bbf_wake_init(void);
extern void bbf_wake_at_commit(void);
extern void bbf_wake_cancel_at_commit(const char *job);

#endif							/* BBF_WAKE_H */
