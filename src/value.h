/*
 * value.h
 *		Values of a user's types.
 */
#ifndef BBF_VALUE_H
#define BBF_VALUE_H

#include "fmgr.h"

extern Datum bbf_value_in(Oid owner, Oid type, const char *text);
extern char *bbf_value_out(Oid owner, Oid type, Datum value);
extern Datum bbf_value_call(Oid owner, FmgrInfo *function, Oid collation, Datum a, Datum b);
extern bool bbf_value_is_readable(Oid owner, Oid type, const char *text);
extern int	bbf_value_in_readable(Oid owner, Oid type, char *const *texts, int n, Datum *values, int *which);
extern bool bbf_value_error_is_of_text(int sqlerrcode);
extern bool bbf_value_type_is_plain(Oid type);
extern bool bbf_value_equal_is_image(Oid opfamily, Oid type, Oid collation);

#endif							/* BBF_VALUE_H */
