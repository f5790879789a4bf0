/*
 * Access source: asynchronous write protection
 *
 * Guest memory is write-protected by userfaultfd in the mode in which the
 * kernel lifts the protection by itself (Linux 6.7).  A scan asks PAGEMAP_SCAN
 * for what has been written, which protects it again in the same step.  No
 * vCPU and no lock of QEMU takes part.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/ioctl.h>
#include <linux/userfaultfd.h>
#include "qapi/error.h"
#include "qemu/units.h"
#include "qemu/userfaultfd.h"
#include "exec/ramblock.h"
#include "migration/access-source.h"

/* linux/fs.h; headers before Linux 6.7 lack them. */
struct pagemap_scan_region {
    uint64_t start;
    uint64_t end;
    uint64_t categories;
};

struct pagemap_scan_arg {
    uint64_t size;
    uint64_t flags;
    uint64_t start;
    uint64_t end;
    uint64_t walk_end;
    uint64_t vec;
    uint64_t vec_len;
    uint64_t max_pages;
    uint64_t category_inverted;
    uint64_t category_mask;
    uint64_t category_anyof_mask;
    uint64_t return_mask;
};

#define PAGEMAP_SCAN_IOCTL _IOWR('f', 16, struct pagemap_scan_arg)
#define SCAN_WP_MATCHING   (1 << 0)
#define SCAN_CHECK_WPASYNC (1 << 1)
#define SCAN_IS_WRITTEN    (1 << 1)

#define FEATURES (UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED)
#define SCAN_REGIONS 256

typedef struct WpAsync {
    int uffd;
    int pagemap;
    const SplitLayout *layout;
    struct pagemap_scan_region regions[SCAN_REGIONS];
} WpAsync;

static bool wp_async_check(Error **errp)
{
    uint64_t features = 0;

    if (uffd_query_features(&features) ||
        (features & FEATURES) != FEATURES) {
        error_setg(errp, "userfaultfd cannot write-protect asynchronously: "
                   "Linux 6.7 and permission to use userfaultfd are needed "
                   "(sysctl vm.unprivileged_userfaultfd)");
        return false;
    }
    return true;
}

static bool wp_async_scan(WpAsync *w, uint8_t *host, uint64_t pages,
                          uint64_t *words, Error **errp)
{
    uint64_t end = (uintptr_t)host + pages * KS_PAGE_SIZE;
    struct pagemap_scan_arg arg = {
        .size = sizeof(arg),
        .flags = SCAN_WP_MATCHING | SCAN_CHECK_WPASYNC,
        .start = (uintptr_t)host,
        .end = end,
        .vec = (uintptr_t)w->regions,
        .vec_len = SCAN_REGIONS,
        .category_mask = SCAN_IS_WRITTEN,
        .return_mask = SCAN_IS_WRITTEN,
    };

    while (arg.start < end) {
        int n = RETRY_ON_EINTR(ioctl(w->pagemap, PAGEMAP_SCAN_IOCTL, &arg));

        if (n < 0) {
            error_setg_errno(errp, errno, "PAGEMAP_SCAN");
            return false;
        }
        for (int i = 0; words && i < n; i++) {
            const struct pagemap_scan_region *r = &w->regions[i];
            uint64_t first = (r->start - (uintptr_t)host) / KS_PAGE_SIZE;

            bitmap_set((unsigned long *)words, first,
                       (r->end - r->start) / KS_PAGE_SIZE);
        }
        arg.start = arg.walk_end;
    }
    return true;
}

static void wp_async_stop(void *opaque)
{
    WpAsync *w = opaque;

    for (unsigned i = 0; i < w->layout->count; i++) {
        const SplitBlock *block = &w->layout->blocks[i];

        uffd_unregister_memory(w->uffd, block->rb->host,
                               block->pages * KS_PAGE_SIZE);
    }
    close(w->pagemap);
    close(w->uffd);
    g_free(w);
}

static void *wp_async_start(const SplitLayout *layout, Error **errp)
{
    WpAsync *w = g_new0(WpAsync, 1);

    w->layout = layout;
    w->uffd = uffd_create_fd(FEATURES, true);
    w->pagemap = qemu_open("/proc/self/pagemap", O_RDONLY, errp);
    if (w->uffd < 0 || w->pagemap < 0) {
        if (w->uffd < 0 && w->pagemap >= 0) {
            error_setg_errno(errp, errno, "userfaultfd");
        }
        goto fail;
    }
    for (unsigned i = 0; i < layout->count; i++) {
        const SplitBlock *block = &layout->blocks[i];

        if (uffd_register_memory(w->uffd, block->rb->host,
                                 block->pages * KS_PAGE_SIZE,
                                 UFFDIO_REGISTER_MODE_WP, NULL)) {
            error_setg_errno(errp, errno, "RAM block '%s' cannot be "
                             "write-protected (remote memory and postcopy do "
                             "so for themselves)", block->rb->idstr);
            goto fail;
        }
    }
    /* Everything was written once: protect it. */
    for (unsigned i = 0; i < layout->count; i++) {
        const SplitBlock *block = &layout->blocks[i];

        if (!wp_async_scan(w, block->rb->host, block->pages, NULL, errp)) {
            wp_async_stop(w);
            return NULL;
        }
    }
    return w;

fail:
    if (w->uffd >= 0) {
        close(w->uffd);
    }
    if (w->pagemap >= 0) {
        close(w->pagemap);
    }
    g_free(w);
    return NULL;
}

static bool wp_async_harvest(void *opaque, const SplitBlock *block,
                             uint64_t page, uint64_t pages, uint64_t *accessed,
                             uint64_t *written, Error **errp)
{
    return wp_async_scan(opaque, block->rb->host + page * KS_PAGE_SIZE, pages,
                         accessed, errp);
}

const AccessSourceOps access_source_wp_async = {
    .source = ACCESS_SOURCE_WP_ASYNC,
    .writes = true,
    .sees = "writes, by vCPUs and by QEMU's devices",
    .misses = "reads; writes by devices that have pages pinned",
    .check = wp_async_check,
    .start = wp_async_start,
    .harvest = wp_async_harvest,
    .stop = wp_async_stop,
};
