/*
 * lease.h
 *		What has been handed out: the rows of the table claim.
 */
#ifndef BBF_LEASE_H
#define BBF_LEASE_H

#include "access/htup.h"
#include "access/tupdesc.h"
#include "datatype/timestamp.h"
#include "utils/hsearch.h"

/* a row that is handed out: its key and group as text, which attempt it is */
typedef struct BbfLeased
{
	char	   *key;
	char	   *group;			/* NULL: none, or the group of the nulls */
	int32		attempt;
} BbfLeased;

/* what one token stands for, and was not seen answered yet */
typedef struct BbfClaim
{
	int64		token;
	Oid			claimed_by;
	TimestampTz expires_at;
	bool		committed;
	int32		granted;
	int			stored;			/* rows in the table, some of which may be known to be answered */
	int			n;
	BbfLeased  *rows;
} BbfClaim;

/* a key that may not be handed out */
typedef struct BbfTaken
{
	char	   *key;			/* hash key: the text it points at */
	bool		committed;		/* by a claim that is committed, or our own */
	bool		outstanding;	/* its lease has not ended */
} BbfTaken;

/* all that is handed out of a job, by transactions that are not committed as well */
typedef struct BbfLeases
{
	int			nclaims;
	BbfClaim   *claims;			/* by token */
	HTAB	   *taken;			/* of BbfTaken */
	int64		outstanding;	/* keys whose lease has not expired */
	char	   *last_group;		/* of the newest claim; NULL: none */
} BbfLeases;

extern void bbf_lease_lock(const char *job);
extern void bbf_lease_unlock(const char *job);
extern Datum bbf_lease_attribute(HeapTuple tuple, TupleDesc desc, const char *name);
extern BbfClaim bbf_lease_of_tuple(HeapTuple tuple, TupleDesc desc);
extern char **bbf_lease_keys(const BbfClaim *claim);
extern bool bbf_lease_any(const char *job);
extern BbfLeases *bbf_lease_read(const char *job);
extern bool bbf_lease_take(BbfLeases *leases, char *key, bool committed);
extern void bbf_lease_count(BbfLeases *leases, const char *key, bool outstanding);
extern Datum bbf_lease_taken(const BbfLeases *leases);
extern const BbfTaken *bbf_lease_find(const BbfLeases *leases, const char *key);
extern int64 bbf_lease_insert(const char *job, Oid claimed_by, const BbfLeased *rows, int n, int64 lease_ms,
							  const char *last_group, int64 stale_pruned);
extern BbfClaim *bbf_lease_lock_claim(const char *job, int64 token, bool expired);
extern int	bbf_lease_open(const char *job, const char *after, int limit, int64 **tokens);
extern void bbf_lease_keep(const BbfClaim *claim, const bool *keep);
extern void bbf_lease_empty(const char *job, int64 token, int n);
extern TimestampTz bbf_lease_extend(int64 token, int64 lease_ms);
extern void bbf_lease_forget_answered(const char *job);

extern Datum bbf_lease_text_array(char *const *texts, int n);

#endif							/* BBF_LEASE_H */
