/*
 * value.c
 *		Values of a user's types: the only place that calls the functions of such a
 *		type.
 *
 * The input of a range runs the check of the domain that it ranges over, its
 * comparison the functions of its subtype's operator class: anybody can put code of
 * his own there, behind functions that are the server's.  So each call has to be
 * made as the owner of the tables (usercontext.c).
 */
#include "postgres.h"

#include "access/nbtree.h"
#include "access/transam.h"
#include "catalog/pg_type.h"
#include "txn.h"
#include "usercontext.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "value.h"

/* A value from its text. */
Datum
bbf_value_in(Oid owner, Oid type, const char *text)
{
	Oid			input;
	Oid			ioparam;

	bbf_usercontext_check(owner);
	getTypeInputInfo(type, &input, &ioparam);
	return OidInputFunctionCall(input, unconstify(char *, text), ioparam, -1);
}

/* Does an error say that a text is no value of its type, and nothing of the server or the session? */
bool
bbf_value_error_is_of_text(int sqlerrcode)
{
	switch (ERRCODE_TO_CATEGORY(sqlerrcode))
	{
		case ERRCODE_DATA_EXCEPTION:
		case ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION:	/* a domain's check */
			return true;
		default:
			/* a check's function that raises; a name that the input of regclass and the like looks up */
			return sqlerrcode == ERRCODE_RAISE_EXCEPTION ||
				sqlerrcode == ERRCODE_UNDEFINED_OBJECT ||
				sqlerrcode == ERRCODE_UNDEFINED_TABLE ||
				sqlerrcode == ERRCODE_UNDEFINED_FUNCTION ||
				sqlerrcode == ERRCODE_UNDEFINED_SCHEMA;
	}
}

/* texts to be read */
typedef struct Texts
{
	Oid			owner;
	Oid			type;
	char	   *const *texts;
	int			n;
	Datum	   *values;
} Texts;

static void
read_texts(void *arg)
{
	Texts	   *texts = arg;

	for (int i = 0; i < texts->n; i++)
		texts->values[i] = bbf_value_in(texts->owner, texts->type, texts->texts[i]);
}

/*
 * Values from texts that were stored.  False: one of them can no longer be read, and
 * none counts: their type may have changed since, a domain got a check, an enum's label
 * another name.  Other errors, a cancel among them, are passed on.
 */
static bool
read_all(Oid owner, Oid type, char *const *texts, int n, Datum *values)
{
	Texts		all = {owner, type, texts, n, values};
	ErrorData  *error = bbf_txn_try(read_texts, &all);

	if (error && !bbf_value_error_is_of_text(error->sqlerrcode))
		ReThrowError(error);
	return error == NULL;
}

/* Can text that was stored still be read? */
bool
bbf_value_is_readable(Oid owner, Oid type, const char *text)
{
	char	   *texts[] = {unconstify(char *, text)};
	Datum		value;

	return read_all(owner, type, texts, 1, &value);
}

/*
 * Values from texts that were stored, as far as they can still be read: returns how many,
 * and of each which text it is.
 */
int
bbf_value_in_readable(Oid owner, Oid type, char *const *texts, int n, Datum *values, int *which)
{
	int			found = 0;
	bool		all = n == 0 || read_all(owner, type, texts, n, values);

	for (int i = 0; i < n; i++)
	{
		if (all || read_all(owner, type, texts + i, 1, values + found))
			which[found++] = i;
	}
	return found;
}

/* The text of a value. */
char *
bbf_value_out(Oid owner, Oid type, Datum value)
{
	Oid			output;
	bool		isvarlena;

	bbf_usercontext_check(owner);
	getTypeOutputInfo(type, &output, &isvarlena);
	return OidOutputFunctionCall(output, value);
}

/* A comparison or an operator's function, of two values. */
Datum
bbf_value_call(Oid owner, FmgrInfo *function, Oid collation, Datum a, Datum b)
{
	bbf_usercontext_check(owner);
	return FunctionCall2Coll(function, collation, a, b);
}

/*
 * Does no function of a type, its operator classes apart, run anybody's code but the
 * server's?  The server's own types have only each other as elements; an enum has no
 * code.
 */
bool
bbf_value_type_is_plain(Oid type)
{
	return type < FirstNormalObjectId || get_typtype(type) == TYPTYPE_ENUM;
}

/*
 * Are equal values of a type written alike, as its operator family says?  The
 * server's two answers are known here; a family with a function of its own is not
 * asked, for that would run it.
 */
bool
bbf_value_equal_is_image(Oid opfamily, Oid type, Oid collation)
{
	switch (get_opfamily_proc(opfamily, type, type, BTEQUALIMAGE_PROC))
	{
		case F_BTEQUALIMAGE:
			return true;
		case F_BTVARSTREQUALIMAGE:
			return !OidIsValid(collation) || get_collation_isdeterministic(collation);
		default:
			return false;
	}
}
