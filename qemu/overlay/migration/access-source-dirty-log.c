/*
 * Access source: the accelerator's dirty log
 *
 * What migration uses, and works everywhere.  It keeps KVM from mapping huge
 * pages, needs the BQL for each block, and rests while a migration runs, whose
 * bits these are.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "exec/memory.h"
#include "exec/ramblock.h"
#include "migration/access-source.h"
#include "migration/misc.h"

typedef struct DirtyLog {
    const SplitLayout *layout;
    DirtyBitmapSnapshot **snapshots; /* [block]; NULL while a migration runs */
} DirtyLog;

static bool dirty_log_check(Error **errp)
{
    return true;
}

static void *dirty_log_start(const SplitLayout *layout, Error **errp)
{
    DirtyLog *d;

    BQL_LOCK_GUARD();
    if (!memory_global_dirty_log_start(GLOBAL_DIRTY_ACCESS_TRACKER, errp)) {
        return NULL;
    }
    d = g_new0(DirtyLog, 1);
    d->layout = layout;
    d->snapshots = g_new0(DirtyBitmapSnapshot *, layout->count);
    return d;
}

static void drop_snapshots(DirtyLog *d)
{
    for (unsigned i = 0; i < d->layout->count; i++) {
        g_clear_pointer(&d->snapshots[i], g_free);
    }
}

static bool dirty_log_begin(void *opaque, bool writes, Error **errp)
{
    DirtyLog *d = opaque;

    drop_snapshots(d);
    for (unsigned i = 0; i < d->layout->count; i++) {
        const SplitBlock *block = &d->layout->blocks[i];

        BQL_LOCK_GUARD();
        if (migration_is_running()) {
            return true;
        }
        d->snapshots[i] = memory_region_snapshot_and_clear_dirty(
            block->rb->mr, 0, block->pages * KS_PAGE_SIZE,
            DIRTY_MEMORY_MIGRATION);
    }
    return true;
}

static bool is_dirty(MemoryRegion *mr, DirtyBitmapSnapshot *snapshot,
                     uint64_t page, uint64_t pages)
{
    return memory_region_snapshot_get_dirty(mr, snapshot, page * KS_PAGE_SIZE,
                                            pages * KS_PAGE_SIZE);
}

static bool dirty_log_harvest(void *opaque, const SplitBlock *block,
                              uint64_t page, uint64_t pages, uint64_t *accessed,
                              uint64_t *written, Error **errp)
{
    DirtyLog *d = opaque;
    DirtyBitmapSnapshot *snapshot = d->snapshots[block - d->layout->blocks];

    if (!snapshot) {
        return true;
    }
    for (uint64_t group = 0; group < pages; group += 64) {
        uint64_t n = MIN(pages - group, 64);

        if (!is_dirty(block->rb->mr, snapshot, page + group, n)) {
            continue;
        }
        for (uint64_t i = 0; i < n; i++) {
            if (is_dirty(block->rb->mr, snapshot, page + group + i, 1)) {
                accessed[group / 64] |= 1ULL << i;
            }
        }
    }
    return true;
}

static void dirty_log_stop(void *opaque)
{
    DirtyLog *d = opaque;

    BQL_LOCK_GUARD();
    memory_global_dirty_log_stop(GLOBAL_DIRTY_ACCESS_TRACKER);
    drop_snapshots(d);
    g_free(d->snapshots);
    g_free(d);
}

const AccessSourceOps access_source_dirty_log = {
    .source = ACCESS_SOURCE_DIRTY_LOG,
    .writes = true,
    .sees = "writes, by vCPUs and by devices",
    .misses = "reads; everything while a migration runs. Keeps KVM from "
              "mapping huge pages",
    .check = dirty_log_check,
    .start = dirty_log_start,
    .begin = dirty_log_begin,
    .harvest = dirty_log_harvest,
    .stop = dirty_log_stop,
};
