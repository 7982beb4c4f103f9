/*
 * standbys.h
 *		How far synchronous standbys are behind a worker.
 */
#ifndef BBF_STANDBYS_H
#define BBF_STANDBYS_H

extern bool bbf_standbys_wanted(void);
extern void bbf_standbys_begin(void);
extern bool bbf_standbys_behind(void);

#endif							/* BBF_STANDBYS_H */
