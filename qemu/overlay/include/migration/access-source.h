/*
 * Access source: where an access tracker gets accessed bits from
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_ACCESS_SOURCE_H
#define MIGRATION_ACCESS_SOURCE_H

#include "migration/access-tracker.h"

/*
 * All functions but check() are called by the tracker's thread, without the
 * BQL.  @opaque is what start() has returned.
 */
typedef struct AccessSourceOps {
    AccessSource source;
    const char *sees;
    const char *misses;
    /* Whether this host and accelerator have it; without side effects. */
    bool (*check)(Error **errp);
    /* Begins to watch the RAM of @layout, which lives until stop(). */
    void *(*start)(const SplitLayout *layout, Error **errp);
    /*
     * Begins a scan: from here on accesses belong to the next one, as exactly
     * as the source can tell.  False: the source cannot go on.  May be NULL.
     */
    bool (*begin)(void *opaque, Error **errp);
    /*
     * Sets in @words, which are zero, the bit of each page of @block from
     * @page on that was accessed since the last scan.  @page is a multiple of
     * 64; @pages is too, but at the block's end.  Each page is asked for once
     * a scan, in ascending order.
     */
    bool (*harvest)(void *opaque, const SplitBlock *block, uint64_t page,
                    uint64_t pages, uint64_t *words, Error **errp);
    /* May be NULL. */
    void (*end)(void *opaque);
    void (*stop)(void *opaque);
} AccessSourceOps;

extern const AccessSourceOps access_source_tcg;
extern const AccessSourceOps access_source_kvm;
extern const AccessSourceOps access_source_idle;
extern const AccessSourceOps access_source_wp_async;
extern const AccessSourceOps access_source_dirty_log;

/* Pages that one harvest() is for, at most. */
#define ACCESS_SOURCE_PAGES 65536

#endif
