/*
 * txn.h
 *		Transactions of a worker, and their limits.
 */
#ifndef BBF_TXN_H
#define BBF_TXN_H

#include "executor/spi.h"

extern Oid	bbf_txn_extension_oid(void);
extern Oid	bbf_txn_extension_owner(void);

/* transactions: background processes only */
extern bool bbf_txn_begin(void);
extern void bbf_txn_commit(void);
extern void bbf_txn_commit_async(void);
extern void bbf_txn_abort(void);
extern void bbf_txn_begin_utility(int lock_timeout_ms);
extern void bbf_txn_utility(const char *sql);
extern void bbf_txn_end_utility(void);

/* in anybody's session: something that may fail */
extern ErrorData *bbf_txn_try(void (*run) (void *arg), void *arg);

/* the limits of what a transaction waits for and runs */
extern void bbf_txn_arm(int timeout_ms);
extern void bbf_txn_disarm(void);
extern bool bbf_txn_timed_out(void);
extern void bbf_txn_lock_timeout(int timeout_ms);

/* what a snapshot makes visible */
typedef struct BbfVisible
{
	TransactionId xmax;
	bool		complete;		/* all that is running below xmax is named */
	uint32		n;
	TransactionId *running;
} BbfVisible;

extern BbfVisible *bbf_txn_visible(void);
extern bool bbf_txn_same_visible(const BbfVisible *before);

#endif							/* BBF_TXN_H */
