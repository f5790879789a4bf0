/*
 * Access source: accessed bits of the second-level page tables
 *
 * KVM_GET_ACCESS_BITS, of Kintsugi's Linux patch series, returns and clears
 * the bits that the processor sets while the guest runs.  It stops no vCPU.
 * Accessed bits need no flush: an access that a stale TLB entry hides is seen
 * one scan later, once the entry is gone.  Dirty bits, which are fetched if
 * somebody asks for writes, do: a page that is written all the time would stay
 * in the TLB and look idle.  So such a scan ends in one flush.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/rcu.h"
#include "exec/address-spaces.h"
#include "exec/memory.h"
#include "exec/ramblock.h"
#include "migration/access-source.h"
#include "system/kvm.h"

/* Of the patch series; linux/kvm.h has it not. */
struct kvm_access_bits {
    uint64_t first_gfn;
    uint64_t num_pages;
    uint32_t flags;
    uint32_t as_id;
    uint64_t accessed_bitmap;
    uint64_t dirty_bitmap;
    uint64_t page_shifts;
    uint64_t pages_done;
    uint64_t reserved[3];
};

#ifdef CONFIG_KVM
#include <linux/kvm.h>

#define KVM_CAP_ACCESS_BITS            4200
#define KVM_GET_ACCESS_BITS            _IOWR(KVMIO, 0xdd, struct kvm_access_bits)
#define KVM_ACCESS_BITS_CLEAR_ACCESSED (1 << 0)
#define KVM_ACCESS_BITS_CLEAR_DIRTY    (1 << 1)
#define KVM_ACCESS_BITS_FLUSH          (1 << 2)

/* Guest frames that one call is for. */
#define WINDOW_GFNS 65536
/* The ioctl's unit. */
#define GFN_ALIGNMENT 64

typedef struct GfnRange {
    uint64_t first_gfn;
    uint64_t pages;
    uint64_t first_page; /* of the block */
    unsigned block;
} GfnRange;

typedef struct BlockBits {
    unsigned long *accessed;
    unsigned long *written;
} BlockBits;

typedef struct KvmSource {
    const SplitLayout *layout;
    BlockBits *found; /* [block], by the last scan */
    bool writes;      /* whether it asked for dirty bits */
    /* What was fetched last: frames [window_first, window_end) */
    uint64_t window_first;
    uint64_t window_end;
    unsigned long accessed[BITS_TO_LONGS(WINDOW_GFNS)];
    unsigned long dirty[BITS_TO_LONGS(WINDOW_GFNS)];
} KvmSource;

static bool kvm_check(Error **errp)
{
    if (!kvm_enabled()) {
        error_setg(errp, "the VM does not run under KVM");
        return false;
    }
    if (kvm_vm_check_extension(kvm_state, KVM_CAP_ACCESS_BITS) <= 0) {
        error_setg(errp, "the host's kernel has no KVM_GET_ACCESS_BITS, or its "
                   "processor no accessed bits in second-level page tables "
                   "(on Intel: kvm_intel.eptad)");
        return false;
    }
    return true;
}

static bool add_range(Int128 start, Int128 len, const MemoryRegion *mr,
                      hwaddr offset_in_region, void *opaque)
{
    void **arguments = opaque;
    const SplitLayout *layout = arguments[0];
    GArray *ranges = arguments[1];

    for (unsigned i = 0; i < layout->count; i++) {
        if (layout->blocks[i].rb->mr == mr) {
            GfnRange range = {
                .first_gfn = int128_get64(start) / KS_PAGE_SIZE,
                .pages = int128_get64(len) / KS_PAGE_SIZE,
                .first_page = offset_in_region / KS_PAGE_SIZE,
                .block = i,
            };

            g_array_append_val(ranges, range);
        }
    }
    return false;
}

/* One call of the ioctl, repeated where it was interrupted. */
static bool get_access_bits(struct kvm_access_bits *bits, Error **errp)
{
    int ret;

    do {
        ret = kvm_vm_ioctl(kvm_state, KVM_GET_ACCESS_BITS, bits);
    } while (ret == -EINTR || ret == -EAGAIN);
    if (ret < 0 || !bits->pages_done) {
        error_setg_errno(errp, ret < 0 ? -ret : EIO, "KVM_GET_ACCESS_BITS");
        return false;
    }
    return true;
}

/* Fetches the frames from @gfn on, up to @end or the window's size. */
static bool fetch(KvmSource *k, uint64_t gfn, uint64_t end, Error **errp)
{
    struct kvm_access_bits bits = {
        .first_gfn = QEMU_ALIGN_DOWN(gfn, GFN_ALIGNMENT),
        .flags = KVM_ACCESS_BITS_CLEAR_ACCESSED,
    };

    if (k->writes) {
        bits.flags |= KVM_ACCESS_BITS_CLEAR_DIRTY;
    }
    k->window_first = bits.first_gfn;
    k->window_end = MIN(ROUND_UP(end, GFN_ALIGNMENT),
                        k->window_first + WINDOW_GFNS);
    while (bits.first_gfn < k->window_end) {
        uint64_t word = BIT_WORD(bits.first_gfn - k->window_first);

        bits.num_pages = k->window_end - bits.first_gfn;
        bits.accessed_bitmap = (uintptr_t)&k->accessed[word];
        if (k->writes) {
            bits.dirty_bitmap = (uintptr_t)&k->dirty[word];
        }
        if (!get_access_bits(&bits, errp)) {
            return false;
        }
        bits.first_gfn += bits.pages_done;
    }
    return true;
}

/* Sets in @to, from bit @at on, what is set in @from in [@first, @stop). */
static void copy_bits(unsigned long *to, uint64_t at,
                      const unsigned long *from, uint64_t first, uint64_t stop)
{
    for (uint64_t bit = find_next_bit(from, stop, first); bit < stop;
         bit = find_next_bit(from, stop, bit + 1)) {
        set_bit(at + bit - first, to);
    }
}

static bool scan_range(KvmSource *k, const GfnRange *range, Error **errp)
{
    uint64_t end = range->first_gfn + range->pages;
    BlockBits *found = &k->found[range->block];

    for (uint64_t gfn = range->first_gfn; gfn < end;) {
        uint64_t page = range->first_page + gfn - range->first_gfn;
        uint64_t first, stop;

        /* A window can hold the end of one range and the start of the next. */
        if ((gfn < k->window_first || gfn >= k->window_end) &&
            !fetch(k, gfn, end, errp)) {
            return false;
        }
        first = gfn - k->window_first;
        stop = MIN(end, k->window_end) - k->window_first;
        copy_bits(found->accessed, page, k->accessed, first, stop);
        if (k->writes) {
            copy_bits(found->written, page, k->dirty, first, stop);
        }
        gfn = k->window_first + stop;
    }
    return true;
}

/* Dirty bits are exact from here on. */
static bool flush(Error **errp)
{
    struct kvm_access_bits bits = {
        .num_pages = GFN_ALIGNMENT,
        .flags = KVM_ACCESS_BITS_FLUSH,
    };

    return get_access_bits(&bits, errp);
}

static bool kvm_begin(void *opaque, bool writes, Error **errp)
{
    KvmSource *k = opaque;
    g_autoptr(GArray) ranges = g_array_new(false, false, sizeof(GfnRange));
    void *arguments[] = { (void *)k->layout, ranges };
    bool first = writes && !k->writes;

    k->writes = writes;
    for (unsigned i = 0; i < k->layout->count; i++) {
        bitmap_zero(k->found[i].accessed, k->layout->blocks[i].pages);
        bitmap_zero(k->found[i].written, k->layout->blocks[i].pages);
    }
    WITH_RCU_READ_LOCK_GUARD() {
        flatview_for_each_range(address_space_to_flatview(
                                    &address_space_memory),
                                add_range, arguments);
    }
    k->window_first = k->window_end = 0;
    for (unsigned i = 0; i < ranges->len; i++) {
        if (!scan_range(k, &g_array_index(ranges, GfnRange, i), errp)) {
            return false;
        }
    }
    if (first) {
        /* Dirty bits have gathered since pages were mapped. */
        for (unsigned i = 0; i < k->layout->count; i++) {
            bitmap_zero(k->found[i].written, k->layout->blocks[i].pages);
        }
    }
    return !writes || flush(errp);
}

static void kvm_stop(void *opaque)
{
    KvmSource *k = opaque;

    for (unsigned i = 0; i < k->layout->count; i++) {
        g_free(k->found[i].accessed);
        g_free(k->found[i].written);
    }
    g_free(k->found);
    g_free(k);
}

static void *kvm_start(const SplitLayout *layout, Error **errp)
{
    KvmSource *k = g_new0(KvmSource, 1);

    k->layout = layout;
    k->found = g_new0(BlockBits, layout->count);
    for (unsigned i = 0; i < layout->count; i++) {
        k->found[i].accessed = bitmap_new(layout->blocks[i].pages);
        k->found[i].written = bitmap_new(layout->blocks[i].pages);
    }
    /* What was touched before is not news. */
    if (!kvm_begin(k, false, errp)) {
        kvm_stop(k);
        return NULL;
    }
    return k;
}

static bool kvm_harvest(void *opaque, const SplitBlock *block, uint64_t page,
                        uint64_t pages, uint64_t *accessed, uint64_t *written,
                        Error **errp)
{
    KvmSource *k = opaque;
    const BlockBits *found = &k->found[block - k->layout->blocks];

    bitmap_copy((unsigned long *)accessed, &found->accessed[BIT_WORD(page)],
                pages);
    bitmap_copy((unsigned long *)written, &found->written[BIT_WORD(page)],
                pages);
    return true;
}

#else

static bool kvm_check(Error **errp)
{
    error_setg(errp, "this QEMU is built without KVM");
    return false;
}

#define kvm_start NULL
#define kvm_begin NULL
#define kvm_harvest NULL
#define kvm_stop NULL

#endif

const AccessSourceOps access_source_kvm = {
    .source = ACCESS_SOURCE_KVM,
    .reads = true,
    .writes = true,
    .sees = "reads and writes by vCPUs, page by page or by the mapping's size",
    .misses = "accesses by devices and in system management mode; which page "
              "of a huge mapping it was",
    .check = kvm_check,
    .start = kvm_start,
    .begin = kvm_begin,
    .harvest = kvm_harvest,
    .stop = kvm_stop,
};
