/*
 * identity.h
 *		Can a worker connect as a role?
 */
#ifndef BBF_IDENTITY_H
#define BBF_IDENTITY_H

extern char *bbf_identity_problem(Oid owner, char **hint);

#endif							/* BBF_IDENTITY_H */
