/*
 * mode.c
 *		The modes there are.
 */
#include "postgres.h"

#include "mode.h"

/* The mode of that name; an error if there is none. */
const BbfMode *
bbf_mode_lookup(const char *name)
{
	if (strcmp(name, bbf_mode_column.name) == 0)
		return &bbf_mode_column;
	if (strcmp(name, "sidecar") == 0 || strcmp(name, "watermark") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("mode \"%s\" is not supported yet", name),
				 errhint("Use mode => 'column'.")));
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unrecognized mode: \"%s\"", name),
			 errhint("The modes are column, sidecar and watermark.")));
}
