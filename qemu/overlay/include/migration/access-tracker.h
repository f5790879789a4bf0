/*
 * Access tracker: what the guest has touched lately
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_ACCESS_TRACKER_H
#define MIGRATION_ACCESS_TRACKER_H

#include "qemu/queue.h"
#include "exec/cpu-common.h"
#include "qapi/qapi-types-remote-memory.h"
#include "kintsugi.h"

/*
 * The RAM that can be split, block after block: what libkintsugi calls the
 * VM's pages.
 */
typedef struct SplitBlock {
    RAMBlock *rb;        /* the layout keeps its memory region alive */
    uint64_t ram_page;   /* where it begins in ram_addr_t space, in pages */
    uint64_t first_page; /* where it begins among the VM's pages */
    uint64_t pages;
} SplitBlock;

typedef struct SplitLayout {
    uint64_t pages;
    unsigned count;
    SplitBlock blocks[];
} SplitLayout;

/*
 * Takes the BQL or an RCU critical section.  Blocks of memory backends, in
 * RAM list order.
 */
SplitLayout *split_layout_new(void);
void split_layout_free(SplitLayout *layout);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SplitLayout, split_layout_free)
bool split_layout_equal(const SplitLayout *a, const SplitLayout *b);
/* The block that @rb is, or NULL. */
const SplitBlock *split_layout_find(const SplitLayout *layout,
                                    const RAMBlock *rb);

/*
 * Feeds @history, whose pages are those of @layout, until detached.  Uses the
 * user's access-tracker object for scanning, or starts one.  Needs the BQL.
 */
void access_tracker_attach(KsHistory *history, const SplitLayout *layout,
                           AccessPolicy policy, uint64_t chunk_size,
                           Error **errp);
void access_tracker_detach(KsHistory *history);

/*
 * Wants to know what each scan has found.  Called by the scanning thread, with
 * a lock held that access_tracker_unlisten() takes: each function has to be
 * short, and must not wait for the BQL.
 */
typedef struct AccessListener {
    /* A scan begins, at @now_ms of a clock that never goes back. */
    void (*begin)(struct AccessListener *listener, int64_t now_ms);
    /*
     * @pages pages of the layout from @first_page on, a multiple of 64: bit
     * maps of what was accessed and of what was written.  Ascending; not called
     * where there is nothing.
     */
    void (*feed)(struct AccessListener *listener, uint64_t first_page,
                 const uint64_t *accessed, const uint64_t *written,
                 uint64_t pages);
    void (*end)(struct AccessListener *listener);
} AccessListener;

/*
 * Scans for @listener too, by a source that tells writes, with the user's
 * access-tracker or one that is made.  There is one listener at most.  Needs
 * the BQL and a machine that is ready.
 */
bool access_tracker_listen(AccessListener *listener,
                           const SplitLayout *layout, Error **errp);
void access_tracker_unlisten(AccessListener *listener);
/* The source in use, or NULL, and what it misses.  Needs the BQL. */
const char *access_tracker_source(const char **misses);

/*
 * The history of the first access-tracker object whose layout is @layout, for
 * planning a split.  NULL if there is none.  Needs the BQL; the object is
 * referenced until access_tracker_put().
 */
typedef struct AccessTracker AccessTracker;
AccessTracker *access_tracker_get(const SplitLayout *layout);
void access_tracker_put(AccessTracker *tracker);
const KsHistory *access_tracker_history(AccessTracker *tracker);
KsPolicy access_tracker_policy(AccessTracker *tracker);
uint32_t access_tracker_chunk_pages(AccessTracker *tracker);

#endif
