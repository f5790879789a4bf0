/*
 * What a VM with remote memory cannot have, and memory that cannot be remote
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/block-global-state.h"
#include "block/block-io.h"
#include "block/block_int-common.h"
#include "block/graph-lock.h"
#include "exec/memory.h"
#include "exec/ramblock.h"
#include "migration/remote-memory.h"
#include "qapi/error.h"
#include "qapi/qapi-types-migration.h"
#include "remote-memory-internal.h"
#include "system/hostmem.h"

bool coroutine_fn remote_check_write_protection(Error **errp)
{
    GRAPH_RDLOCK_GUARD();

    for (BlockDriverState *bs = bdrv_next_node(NULL); bs;
         bs = bdrv_next_node(bs)) {
        if (bs->open_flags & BDRV_O_NOCACHE) {
            error_setg(errp, "remote memory: page-out by write protection "
                       "would lose what block node '%s' reads by direct I/O: "
                       "let page-out be 'auto', or open it with "
                       "cache.direct=off", bdrv_get_node_name(bs));
            return false;
        }
    }
    return true;
}

/*
 * Preallocated memory would be taken whole, and then given back where pages are
 * remote; whoever asked for it does not want paging.
 */
bool remote_check_prealloc(const SplitLayout *layout, Error **errp)
{
    for (unsigned i = 0; i < layout->count; i++) {
        RAMBlock *rb = layout->blocks[i].rb;
        Object *owner = rb->mr->owner;

        if (owner && object_dynamic_cast(owner, TYPE_MEMORY_BACKEND) &&
            MEMORY_BACKEND(owner)->prealloc) {
            error_setg(errp, "RAM block '%s' is preallocated here, so it takes "
                       "all of the VM's memory: start the destination with "
                       "prealloc=off, without -mem-prealloc", rb->idstr);
            return false;
        }
    }
    return true;
}

bool remote_memory_allows(const char *what, Error **errp)
{
    if (!remote_pager()) {
        return true;
    }
    error_setg(errp, "a VM with remote memory cannot have %s: merge it onto "
               "one host before", what);
    return false;
}

bool remote_memory_allows_direct_io(Error **errp)
{
    KsPagerStats stats;

    if (!remote_pager_started()) {
        return true;
    }
    ks_pager_stats(remote_pager_started(), &stats);
    if (stats.page_out != KS_PAGE_OUT_WRITE_PROTECT) {
        return true;
    }
    error_setg(errp, "this VM's memory is paged out by write protection, which "
               "would lose what a block node reads by direct I/O: open it with "
               "cache.direct=off");
    return false;
}

bool remote_memory_allows_caps(const bool *caps, Error **errp)
{
    static const MigrationCapability refused[] = {
        MIGRATION_CAPABILITY_POSTCOPY_RAM,
        MIGRATION_CAPABILITY_BACKGROUND_SNAPSHOT,
        MIGRATION_CAPABILITY_MAPPED_RAM,
        MIGRATION_CAPABILITY_X_COLO,
    };

    for (unsigned i = 0;
         remote_pager_started() && i < ARRAY_SIZE(refused); i++) {
        if (caps[refused[i]]) {
            error_setg(errp, "a VM with remote memory cannot be migrated with "
                       "capability '%s': turn it off",
                       MigrationCapability_str(refused[i]));
            return false;
        }
    }
    return true;
}
