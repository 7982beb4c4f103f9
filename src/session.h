/*
 * session.h
 *		The settings that our statements rely on.
 */
#ifndef BBF_SESSION_H
#define BBF_SESSION_H

extern void bbf_session_set_owner(Oid owner);
extern Oid	bbf_session_owner(void);
extern bool bbf_session_is_of(Oid role);
extern void bbf_session_set(const char *name, const char *value);
extern void bbf_session_harden(void);
extern int	bbf_session_pin(void);
extern int	bbf_session_pin_waits(int timeout_ms);
extern void bbf_session_pin_by_index(void);
extern int	bbf_session_pin_plan(bool pin_path);
extern void bbf_session_pin_text(void);
extern void bbf_session_pin_keys(void);
extern void bbf_session_unpin(int nestlevel);

#endif							/* BBF_SESSION_H */
