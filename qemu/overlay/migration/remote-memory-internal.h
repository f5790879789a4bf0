/*
 * Remote memory: between the files remote-memory*.c
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_REMOTE_MEMORY_INTERNAL_H
#define MIGRATION_REMOTE_MEMORY_INTERNAL_H

#include "migration/access-tracker.h"
#include "kintsugi.h"

/* All under the BQL but where noted. */

/* remote-memory.c */

/* From the plan on; NULL where there is no remote memory. */
KsPager *remote_pager(void);
/* The same once it pages. */
KsPager *remote_pager_started(void);

/* remote-memory-checks.c: what a VM with remote memory cannot have */

bool remote_check_prealloc(const SplitLayout *layout, Error **errp);
/*
 * Direct I/O has pages pinned that write protection cannot see: what the disk
 * writes to a page while it is paged out would be lost.
 */
bool coroutine_fn remote_check_write_protection(Error **errp);

/* remote-memory-lost.c: the VM while a memory server is lost */

void remote_lost_init(void);
/* Of KsPagerConfig; on a pager thread, without the BQL. */
void remote_lost_on_event(void *opaque, const KsServerEvent *event);
void remote_lost_begin(void);
void remote_lost_end(void);
/* Any thread. */
bool remote_lost_stopped(void);

/* remote-memory-query.c: figures, also for monitors out of band */

/* What queries are answered from, until remote_query_end(). */
void remote_query_begin(KsPager *pager, const SplitLayout *layout);
void remote_query_end(void);
/* Whether a server is lost, as its pager has it.  Any thread. */
bool remote_query_lost(void);

#endif
