/*
 * Access tracker: what the guest has touched lately
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_ACCESS_TRACKER_H
#define MIGRATION_ACCESS_TRACKER_H

#include "qemu/queue.h"
#include "exec/cpu-common.h"
#include "kintsugi.h"

/*
 * The RAM that can be split, block after block: what libkintsugi calls the
 * VM's pages.
 */
typedef struct SplitBlock {
    RAMBlock *rb;
    uint64_t first_page;
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
bool split_layout_equal(const SplitLayout *a, const SplitLayout *b);
/* The block that @rb is, or NULL.  Fast for the block asked for last. */
const SplitBlock *split_layout_find(const SplitLayout *layout,
                                    const RAMBlock *rb);

/*
 * Feeds @history, whose pages are those of @layout, until detached.  Uses the
 * user's access-tracker object for scanning, or starts one.  Needs the BQL.
 */
void access_tracker_attach(KsHistory *history, Error **errp);
void access_tracker_detach(KsHistory *history);

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
