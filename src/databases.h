/*
 * databases.h
 *		The databases that the launcher knows of.
 */
#ifndef BBF_DATABASES_H
#define BBF_DATABASES_H

extern void bbf_databases_look(void);
extern void bbf_databases_mark_all(void);

#endif							/* BBF_DATABASES_H */
