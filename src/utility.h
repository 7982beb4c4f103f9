/*
 * utility.h
 *		The utility hook.
 */
#ifndef BBF_UTILITY_H
#define BBF_UTILITY_H

extern void bbf_utility_init(void);

#endif							/* BBF_UTILITY_H */
