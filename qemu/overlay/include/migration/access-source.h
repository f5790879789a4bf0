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
    /* What it tells; one of them at least. */
    bool reads;
    bool writes;
    const char *sees;
    const char *misses;
    /* Whether this host and accelerator have it; without side effects. */
    bool (*check)(Error **errp);
    /* Begins to watch the RAM of @layout, which lives until stop(). */
    void *(*start)(const SplitLayout *layout, Error **errp);
    /*
     * Begins a scan: from here on accesses belong to the next one, as exactly
     * as the source can tell.  Without @writes, nobody asks which of them were
     * writes, in this scan and until the next one.  False: the source cannot go
     * on.  May be NULL.
     */
    bool (*begin)(void *opaque, bool writes, Error **errp);
    /*
     * Sets in @accessed, whose words are zero, the bit of each page of @block
     * from @page on that was accessed since the last scan; in @written, which
     * are zero too, of each that was written.  A source that tells reads or
     * writes only sets @accessed.  @page is a multiple of 64; @pages is too,
     * but at the block's end.  Each page is asked for once a scan, in ascending
     * order.
     */
    bool (*harvest)(void *opaque, const SplitBlock *block, uint64_t page,
                    uint64_t pages, uint64_t *accessed, uint64_t *written,
                    Error **errp);
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
