/*
 * txn.h
 *		Transactions of a worker, and statements over SPI.
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
extern void bbf_txn_begin_utility(void);
extern void bbf_txn_utility(const char *sql);
extern void bbf_txn_end_utility(void);

/* the limits of what a transaction waits for and runs */
extern void bbf_txn_arm(int timeout_ms);
extern void bbf_txn_disarm(void);
extern bool bbf_txn_timed_out(void);
extern void bbf_txn_lock_timeout(int timeout_ms);

extern uint64 bbf_txn_ended(void);

/* statements */
extern uint64 bbf_txn_sql(const char *sql, int nargs, Oid *types, Datum *values,
						  const char *nulls, int expected);
extern uint64 bbf_txn_sql_kept(const char *sql, int nargs, Oid *types, Datum *values,
							   const char *nulls, int expected);
extern uint64 bbf_txn_sql_latest(const char *sql, int nargs, Oid *types, Datum *values,
								 const char *nulls, int expected, bool keep);
extern bool bbf_txn_query_kept(const char *sql, int nargs, Oid *types, Datum *values, const char *nulls,
							   bool (*fits) (const PlannedStmt *stmt), DestReceiver *dest);
extern void bbf_txn_ddl(const char *sql);
extern uint64 bbf_txn_catalog(const char *sql, int nargs, Oid *types, Datum *values,
							  const char *nulls, int expected);
extern uint64 bbf_txn_catalog_kept(const char *sql, int nargs, Oid *types, Datum *values,
								   const char *nulls, int expected);

#endif							/* BBF_TXN_H */
