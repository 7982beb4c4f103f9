/*
 * sql.h
 *		Statements over SPI.
 */
#ifndef BBF_SQL_H
#define BBF_SQL_H

#include "executor/spi.h"
#include "usercontext.h"

extern uint64 bbf_sql_run(const char *sql, int nargs, Oid *types, Datum *values,
						  const char *nulls, int expected);
extern uint64 bbf_sql_run_kept(const char *sql, int nargs, Oid *types, Datum *values,
							   const char *nulls, int expected);
extern uint64 bbf_sql_run_latest(Oid owner, const char *sql, int nargs, Oid *types, Datum *values,
								 const char *nulls, int expected, bool keep);
extern uint64 bbf_sql_run_as_seen(Oid owner, const char *sql, int nargs, Oid *types, Datum *values,
								  const char *nulls, int expected);
extern bool bbf_sql_query_kept(const char *sql, int nargs, Oid *types, Datum *values, const char *nulls,
							   bool (*fits) (const PlannedStmt *stmt), DestReceiver *dest);
extern void bbf_sql_ddl(const char *sql);
extern char *bbf_sql_text(uint64 row, int column);
extern SPIPlanPtr bbf_sql_save(Oid owner, const char *sql, int nargs, Oid *types);
extern uint64 bbf_sql_execute_saved(Oid owner, SPIPlanPtr plan, Datum *values, int expected, bool pin_path,
									const BbfUserContext *before);
extern uint64 bbf_sql_catalog(const char *sql, int nargs, Oid *types, Datum *values,
							  const char *nulls, int expected);
extern uint64 bbf_sql_catalog_kept(const char *sql, int nargs, Oid *types, Datum *values,
								   const char *nulls, int expected);

#endif							/* BBF_SQL_H */
