/*
 * usercontext.h
 *		Whose rights our code runs with.
 */
#ifndef BBF_USERCONTEXT_H
#define BBF_USERCONTEXT_H

/* what to go back to */
typedef struct BbfUserContext
{
	Oid			userid;
	int			sec_context;
	int			nestlevel;
} BbfUserContext;

extern void bbf_usercontext_begin(Oid userid, bool pin_path, BbfUserContext *before);
extern void bbf_usercontext_end(const BbfUserContext *before);
extern void bbf_usercontext_check(Oid owner);
extern int	bbf_usercontext_unrestrict(const BbfUserContext *before);
extern void bbf_usercontext_restrict(int sec_context);

#endif							/* BBF_USERCONTEXT_H */
