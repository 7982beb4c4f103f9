/*
 * choice.h
 *		Choosing the pending rows that are handed out next.
 */
#ifndef BBF_CHOICE_H
#define BBF_CHOICE_H

#include "handout.h"

extern void bbf_choice_run(BbfHandout *handout, BbfLeases *leases, int want, bool note);

#endif							/* BBF_CHOICE_H */
