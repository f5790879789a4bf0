/*
 * Access source: idle page tracking
 *
 * The host kernel's idle flags (CONFIG_IDLE_PAGE_TRACKING), one a folio: a
 * scan reads which are still set, and sets them again.  Clearing the flag
 * looks at the accessed bits of all mappings, KVM's among them.  Flags are
 * by host page frame, which needs CAP_SYS_ADMIN.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "exec/ramblock.h"
#include "migration/access-source.h"

#define IDLE_BITMAP "/sys/kernel/mm/page_idle/bitmap"
/* Documentation/admin-guide/mm/pagemap.rst */
#define PAGEMAP_PRESENT (1ULL << 63)
#define PAGEMAP_PFN     ((1ULL << 55) - 1)
#define KPF_LRU         (1ULL << 5)
#define KPF_TAIL        (1ULL << 16)
#define KPF_THP         (1ULL << 22)
/* Pages of a transparent huge page */
#define THP_PAGES 512
#define ENTRIES 4096
#define NO_PFN UINT64_MAX

typedef struct IdleSource {
    int bitmap;
    int pagemap;
    int flags;
    /* The bitmap's word that is being looked at, and what to set in it. */
    uint64_t word_index;
    uint64_t word;
    uint64_t to_set;
    bool word_valid;
    /* What was found out about the huge page that starts here */
    uint64_t head;
    bool head_accessed;
    /* Flags of 64 page frames from here on */
    uint64_t flags_first;
    uint64_t page_flags[64];
    uint64_t pagemap_entries[ENTRIES];
} IdleSource;

static bool idle_check(Error **errp)
{
    if (access(IDLE_BITMAP, R_OK | W_OK)) {
        error_setg_errno(errp, errno, "no idle page tracking (%s; the kernel "
                         "needs CONFIG_IDLE_PAGE_TRACKING, QEMU needs root)",
                         IDLE_BITMAP);
        return false;
    }
    return true;
}

/* Sets the flags of the word that is being left. */
static bool leave_word(IdleSource *s)
{
    if (s->word_valid && s->to_set &&
        pwrite(s->bitmap, &s->to_set, sizeof(s->to_set),
               s->word_index * sizeof(s->to_set)) != sizeof(s->to_set)) {
        return false;
    }
    s->to_set = 0;
    s->word_valid = false;
    return true;
}

static bool enter_word(IdleSource *s, uint64_t index)
{
    if (s->word_valid && s->word_index == index) {
        return true;
    }
    if (!leave_word(s) ||
        pread(s->bitmap, &s->word, sizeof(s->word),
              index * sizeof(s->word)) != sizeof(s->word)) {
        return false;
    }
    s->word_index = index;
    s->word_valid = true;
    return true;
}

static uint64_t flags_of(IdleSource *s, uint64_t pfn)
{
    uint64_t first = QEMU_ALIGN_DOWN(pfn, 64);

    if (s->flags_first != first) {
        s->flags_first = first;
        if (pread(s->flags, s->page_flags, sizeof(s->page_flags),
                  first * sizeof(uint64_t)) != sizeof(s->page_flags)) {
            memset(s->page_flags, 0, sizeof(s->page_flags));
        }
    }
    return s->page_flags[pfn - first];
}

/*
 * Tells whether a page was accessed, and sets its idle flag.  Only the first
 * page of a huge one has a flag, and only pages that reclaim knows: not the
 * zero page.
 */
static bool idle_page(IdleSource *s, uint64_t pfn, bool *accessed)
{
    uint64_t flags = flags_of(s, pfn);
    bool tail = (flags & KPF_TAIL) && (flags & KPF_THP);
    uint64_t bit;

    *accessed = false;
    if (tail) {
        pfn = QEMU_ALIGN_DOWN(pfn, THP_PAGES);
    } else if (!(flags & KPF_LRU)) {
        return true;
    }
    if (pfn != s->head) {
        if (!enter_word(s, pfn / 64)) {
            return false;
        }
        bit = 1ULL << (pfn % 64);
        s->head_accessed = !(s->word & bit);
        s->head = pfn;
        s->to_set |= bit;
    }
    *accessed = s->head_accessed;
    return true;
}

/* @words may be NULL: flags are set and what they were is not told. */
static bool idle_scan(IdleSource *s, uint8_t *host, uint64_t pages,
                      uint64_t *words, Error **errp)
{
    uint64_t first_entry = (uintptr_t)host / KS_PAGE_SIZE;

    /* Frames may have changed hands since the last scan. */
    s->head = s->flags_first = NO_PFN;
    for (uint64_t page = 0; page < pages; page += ENTRIES) {
        uint64_t n = MIN(pages - page, ENTRIES);
        ssize_t bytes = n * sizeof(uint64_t);

        if (pread(s->pagemap, s->pagemap_entries, bytes,
                  (first_entry + page) * sizeof(uint64_t)) != bytes) {
            error_setg_errno(errp, errno, "/proc/self/pagemap");
            return false;
        }
        for (uint64_t i = 0; i < n; i++) {
            uint64_t pfn = s->pagemap_entries[i] & PAGEMAP_PFN;
            bool accessed;

            if (!(s->pagemap_entries[i] & PAGEMAP_PRESENT) || !pfn) {
                continue;
            }
            if (!idle_page(s, pfn, &accessed)) {
                error_setg_errno(errp, errno, IDLE_BITMAP);
                return false;
            }
            if (words && accessed) {
                set_bit(page + i, (unsigned long *)words);
            }
        }
    }
    if (!leave_word(s)) {
        error_setg_errno(errp, errno, IDLE_BITMAP);
        return false;
    }
    return true;
}

static void idle_stop(void *opaque)
{
    IdleSource *s = opaque;

    close(s->bitmap);
    close(s->pagemap);
    close(s->flags);
    g_free(s);
}

static void *idle_start(const SplitLayout *layout, Error **errp)
{
    IdleSource *s = g_new0(IdleSource, 1);
    uint64_t entry = 0;

    s->bitmap = qemu_open(IDLE_BITMAP, O_RDWR, errp);
    s->pagemap = s->bitmap < 0 ? -1 :
                 qemu_open("/proc/self/pagemap", O_RDONLY, errp);
    s->flags = s->pagemap < 0 ? -1 :
               qemu_open("/proc/kpageflags", O_RDONLY, errp);
    if (s->flags < 0) {
        goto fail;
    }
    for (unsigned i = 0; i < layout->count; i++) {
        const SplitBlock *block = &layout->blocks[i];

        if (!idle_scan(s, block->rb->host, block->pages, NULL, errp)) {
            goto fail;
        }
        entry |= s->pagemap_entries[0];
    }
    if ((entry & PAGEMAP_PRESENT) && !(entry & PAGEMAP_PFN)) {
        error_setg(errp, "page frame numbers are hidden from this process: "
                   "CAP_SYS_ADMIN is needed");
        goto fail;
    }
    return s;

fail:
    if (s->bitmap >= 0) {
        close(s->bitmap);
    }
    if (s->pagemap >= 0) {
        close(s->pagemap);
    }
    if (s->flags >= 0) {
        close(s->flags);
    }
    g_free(s);
    return NULL;
}

static bool idle_harvest(void *opaque, const SplitBlock *block, uint64_t page,
                         uint64_t pages, uint64_t *accessed, uint64_t *written,
                         Error **errp)
{
    return idle_scan(opaque, block->rb->host + page * KS_PAGE_SIZE, pages,
                     accessed, errp);
}

const AccessSourceOps access_source_idle = {
    .source = ACCESS_SOURCE_IDLE,
    .reads = true,
    .sees = "reads and writes, by vCPUs and by QEMU's devices",
    .misses = "which page of a transparent huge page it was; accesses by "
              "devices that have pages pinned",
    .check = idle_check,
    .start = idle_start,
    .harvest = idle_harvest,
    .stop = idle_stop,
};
