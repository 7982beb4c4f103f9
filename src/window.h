/*
 * window.h
 *		A source's next keys and which of them have no match, read in one go.
 */
#ifndef BBF_WINDOW_H
#define BBF_WINDOW_H

#include "settle.h"

typedef struct BbfWindow
{
	int32		size;			/* wanted */
	int64		rows;			/* read: fewer at the end of the walk only */
	Datum		end;			/* the last key of them; only if rows = size */
	int			nlacking;
	Datum	   *lacking;		/* the keys without a match */
} BbfWindow;

extern bool bbf_window_read(const BbfWalk *walk, BbfWindow *window);

#endif							/* BBF_WINDOW_H */
