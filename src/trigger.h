/*
 * trigger.h
 *		The trigger functions on sources and targets.
 */
#ifndef BBF_TRIGGER_H
#define BBF_TRIGGER_H

extern void bbf_trigger_init(void);

#endif							/* BBF_TRIGGER_H */
