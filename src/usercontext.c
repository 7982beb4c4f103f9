/*
 * usercontext.c
 *		Whose rights our code runs with.
 *
 * Everything of ours that can run a user's code has one of two identities: that of
 * the owner of the job's tables, or, on the extension's own tables, that of the
 * extension's owner.  A user's code is all that the types, operators, conditions and
 * triggers of a job's tables bring along: input, output and comparison of a key, a
 * domain's check, an index expression that the planner folds.
 *
 * In somebody else's session such code runs in a restricted operation: it can
 * leave nothing behind there, neither a temporary object nor a cursor, and it cannot
 * change the role.  Names are looked up under the pinned path, so that nobody who
 * calls decides what an owner's function finds.  Settings are as before when it is
 * over, whatever that code has set.
 *
 * A worker is connected as the owner: his session is the owner's own, and nothing
 * has to be changed in it.
 *
 * There is one door for a value of a user's type (value.c) and one for a statement
 * (sql.c).  Both ask here, each time, whether they are called as they must be; an
 * error is better than somebody's code run as somebody else.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "session.h"
#include "usercontext.h"
#include "utils/guc.h"

/*
 * From here on with a role's rights, restricted, until bbf_usercontext_end() or an
 * error.  pin_path: false only where no user's code can run.
 */
void
bbf_usercontext_begin(Oid userid, bool pin_path, BbfUserContext *before)
{
	GetUserIdAndSecContext(&before->userid, &before->sec_context);
	SetUserIdAndSecContext(userid, before->sec_context | SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_NOFORCE_RLS |
						   (bbf_session_is_of(userid) ? 0 : SECURITY_RESTRICTED_OPERATION));
	before->nestlevel = pin_path ? bbf_session_pin() : NewGUCNestLevel();
}

/* Back to the user and the settings of before. */
void
bbf_usercontext_end(const BbfUserContext *before)
{
	bbf_session_unpin(before->nestlevel);
	SetUserIdAndSecContext(before->userid, before->sec_context);
}

/*
 * Is this the owner's session, or a restricted operation as the owner?  In his own
 * session a trigger of his may have taken another role, which is over now.
 */
void
bbf_usercontext_check(Oid owner)
{
	Oid			userid;
	int			sec_context;

	GetUserIdAndSecContext(&userid, &sec_context);
	if (bbf_session_is_of(owner) && sec_context == 0)
	{
		SetUserIdAndSecContext(owner, 0);
		return;
	}
	if (userid == owner && OidIsValid(owner) &&
		((sec_context & SECURITY_RESTRICTED_OPERATION) != 0 || bbf_session_is_of(owner)))
		return;
	elog(ERROR, "code of role %u would run as role %u", owner, userid);
}

/*
 * For one statement that writes the owner's own table, whose deferrable triggers a
 * restricted operation would refuse: as free as who called us, but for the role.
 * Returns what bbf_usercontext_restrict() goes back to.
 */
int
bbf_usercontext_unrestrict(const BbfUserContext *before)
{
	Oid			userid;
	int			sec_context;

	GetUserIdAndSecContext(&userid, &sec_context);
	SetUserIdAndSecContext(userid, before->sec_context | SECURITY_LOCAL_USERID_CHANGE | SECURITY_NOFORCE_RLS);
	return sec_context;
}

/* The end of bbf_usercontext_unrestrict(). */
void
bbf_usercontext_restrict(int sec_context)
{
	SetUserIdAndSecContext(GetUserId(), sec_context);
}
