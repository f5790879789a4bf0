/*
 * Which RAM can be split, and how its pages are numbered
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "exec/ramblock.h"
#include "exec/target_page.h"
#include "migration/access-tracker.h"
#include "migration/misc.h"
#include "migration/split.h"
#include "system/hostmem.h"
#include "system/system.h"

/*
 * Guest memory proper comes from memory backends (the machine's default RAM
 * too).  Firmware, video memory and the like is small, and devices of the
 * host write to it, so it stays with the devices.
 */
static bool block_can_be_split(RAMBlock *rb)
{
    return rb->used_length && !migrate_ram_is_ignored(rb) &&
           rb->mr && memory_region_is_ram(rb->mr) &&
           rb->mr->owner &&
           object_dynamic_cast(rb->mr->owner, TYPE_MEMORY_BACKEND);
}

SplitLayout *split_layout_new(void)
{
    SplitLayout *layout;
    RAMBlock *rb;
    unsigned count = 0;

    RCU_READ_LOCK_GUARD();
    RAMBLOCK_FOREACH(rb) {
        count += block_can_be_split(rb);
    }
    layout = g_malloc0(sizeof(*layout) + count * sizeof(layout->blocks[0]));
    RAMBLOCK_FOREACH(rb) {
        if (block_can_be_split(rb) && layout->count < count) {
            SplitBlock *block = &layout->blocks[layout->count++];

            memory_region_ref(rb->mr);
            block->rb = rb;
            block->ram_page = rb->offset >> qemu_target_page_bits();
            block->first_page = layout->pages;
            block->pages = rb->used_length >> qemu_target_page_bits();
            layout->pages += block->pages;
        }
    }
    return layout;
}

void split_layout_free(SplitLayout *layout)
{
    if (!layout) {
        return;
    }
    for (unsigned i = 0; i < layout->count; i++) {
        memory_region_unref(layout->blocks[i].rb->mr);
    }
    g_free(layout);
}

bool split_layout_equal(const SplitLayout *a, const SplitLayout *b)
{
    return a->count == b->count &&
           !memcmp(a->blocks, b->blocks, a->count * sizeof(a->blocks[0]));
}

const SplitBlock *split_layout_find(const SplitLayout *layout,
                                    const RAMBlock *rb)
{
    for (unsigned i = 0; i < layout->count; i++) {
        if (layout->blocks[i].rb == rb) {
            return &layout->blocks[i];
        }
    }
    return NULL;
}

static bool block_check(RAMBlock *rb, Error **errp)
{
    if (qemu_ram_pagesize(rb) != KS_PAGE_SIZE) {
        error_setg(errp, "RAM block '%s' has pages of %zu bytes, remote paging "
                   "works on %u: start the VM without huge page files",
                   rb->idstr, qemu_ram_pagesize(rb), KS_PAGE_SIZE);
        return false;
    }
    if (qemu_ram_is_shared(rb)) {
        error_setg(errp, "RAM block '%s' is shared, remote paging needs "
                   "private memory: start the VM with share=off", rb->idstr);
        return false;
    }
    if (memory_region_has_ram_discard_manager(rb->mr)) {
        error_setg(errp, "RAM block '%s' is managed by a device that discards "
                   "parts of it (virtio-mem): remote memory needs plain RAM",
                   rb->idstr);
        return false;
    }
    if (qemu_ram_get_fd(rb) >= 0) {
        error_setg(errp, "RAM block '%s' is backed by a file, remote paging "
                   "needs anonymous memory: use memory-backend-ram",
                   rb->idstr);
        return false;
    }
    return true;
}

static int find_balloon(Object *obj, void *opaque)
{
    return object_dynamic_cast(obj, "virtio-balloon-device") != NULL;
}

bool split_layout_check(const SplitLayout *layout, Error **errp)
{
    if (qemu_target_page_size() != KS_PAGE_SIZE) {
        error_setg(errp, "remote memory needs a target with pages of %u bytes",
                   KS_PAGE_SIZE);
        return false;
    }
    if (!layout->pages) {
        error_setg(errp, "this machine has no RAM from memory backends that "
                   "could be split");
        return false;
    }
    for (unsigned i = 0; i < layout->count; i++) {
        if (!block_check(layout->blocks[i].rb, errp)) {
            return false;
        }
    }
    if (should_mlock(mlock_state)) {
        error_setg(errp, "locked memory cannot be paged out: start the VM "
                   "without -overcommit mem-lock");
        return false;
    }
    if (ram_block_discard_is_disabled()) {
        error_setg(errp, "a device (VFIO, vDPA or the like) has the guest's "
                   "memory pinned, so it cannot be paged remotely: unplug it");
        return false;
    }
    if (object_child_foreach_recursive(object_get_root(), find_balloon, NULL)) {
        error_setg(errp, "a balloon and remote memory would both discard "
                   "guest pages: start the VM without virtio-balloon");
        return false;
    }
    return true;
}
