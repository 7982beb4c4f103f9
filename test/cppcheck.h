/*
 * PostgreSQL's statement-like macros, for cppcheck alone: it reads the sources without the server's headers,
 * and has to know what these do to the flow of control.
 */
#define DEBUG1 14
#define LOG 15
#define INFO 17
#define NOTICE 18
#define WARNING 19
#define ERROR 21
#define FATAL 22
#define PANIC 23

#define ereport(elevel, ...) do { (void) (__VA_ARGS__); if ((elevel) >= ERROR) abort(); } while (0)
#define elog(elevel, ...) do { (void) (__VA_ARGS__); if ((elevel) >= ERROR) abort(); } while (0)
#define Assert(condition) do { if (!(condition)) abort(); } while (0)

#define PG_TRY() do {
#define PG_CATCH() } while (0); if (caught()) {
#define PG_FINALLY() } while (0); {
#define PG_END_TRY() }
#define PG_ENSURE_ERROR_CLEANUP(function, argument) do {
#define PG_END_ENSURE_ERROR_CLEANUP(function, argument) } while (0)

#define foreach(cell, list) for (cell = list_head(list); cell != NULL; cell = lnext(list, cell))
#define forboth(cell1, list1, cell2, list2) \
	for (cell1 = list_head(list1), cell2 = list_head(list2); \
		 cell1 != NULL && cell2 != NULL; \
		 cell1 = lnext(list1, cell1), cell2 = lnext(list2, cell2))
#define dlist_foreach(iter, list) \
	for (iter.cur = (list)->head.next; iter.cur != &(list)->head; iter.cur = iter.cur->next)

#define PG_MODULE_MAGIC extern int pg_module_magic
#define PG_FUNCTION_ARGS FunctionCallInfo fcinfo
#define PG_FUNCTION_INFO_V1(function) extern Datum function(PG_FUNCTION_ARGS)
#define dlist_foreach_modify(iter, head) \
	for ((iter).cur = (head)->head.next, (iter).next = (iter).cur->next; (iter).cur != &(head)->head; \
		 (iter).cur = (iter).next, (iter).next = (iter).cur->next)
