/*
 * Memory tiering: pages of any container, swapped while the VM is stopped
 *
 * Contents are exchanged, and then what is mapped where: to the guest nothing
 * has changed.  Each swapped page is a mapping of its own, of which the kernel
 * allows so many (vm.max_map_count).
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "memory-tiering-internal.h"
#include "migration/migration.h"
#include "migration/misc.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/madvise.h"
#include "qemu/main-loop.h"
#include "qemu/memalign.h"
#include "qemu/mmap-alloc.h"
#include "system/cpus.h"
#include "system/runstate.h"

/* Mappings that the rest of QEMU may have. */
#define SPARE_MAPPINGS 4096

/*
 * The backing of a page at the start is its frame; of the same number.  Only
 * frames that are not where they began are in the table.
 */
typedef struct StopSwap {
    const TieringMemory *memory;
    GHashTable *frame_of; /* page + 1 to frame + 1; the container's */
    unsigned max_moved;
    void *buffer; /* a page */
} StopSwap;

static const char *stop_suits(const TieringMemory *memory)
{
    return memory->container
        ? "a piece is not of /dev/tiermem, whose pages the host's kernel swaps"
        : NULL;
}

/* A piece of huge pages cannot be mapped page by page. */
static bool check_page_sizes(const TieringMemory *memory, Error **errp)
{
    const HostMemoryPiece *piece;

    for (piece = host_memory_container_first(memory->container); piece;
         piece = QLIST_NEXT(piece, next)) {
        if (qemu_fd_getpagesize(piece->fd) != KS_PAGE_SIZE) {
            error_setg(errp, "piece '%s' is of huge pages, which cannot be "
                       "swapped one by one: map it from memory of small pages",
                       piece->id);
            return false;
        }
    }
    return true;
}

static unsigned max_map_count(void)
{
    g_autofree char *text = NULL;

    if (!g_file_get_contents("/proc/sys/vm/max_map_count", &text, NULL, NULL)) {
        return 65530;
    }
    return MIN(g_ascii_strtoull(text, NULL, 10), UINT_MAX);
}

static bool is_fast_frame(const TieringMemory *memory, uint64_t frame)
{
    return tiering_is_fast(memory, tiering_piece(memory, frame * KS_PAGE_SIZE));
}

static void tell_fast(StopSwap *s, TieringSetFast *set_fast, void *opaque)
{
    const TieringMemory *m = s->memory;
    GHashTableIter iter;
    gpointer page, frame;

    for (unsigned i = 0; i < m->fast->len; i++) {
        const HostMemoryPiece *piece = m->fast->pdata[i];

        set_fast(opaque, piece->offset / KS_PAGE_SIZE,
                 piece->size / KS_PAGE_SIZE, true);
    }
    g_hash_table_iter_init(&iter, s->frame_of);
    while (g_hash_table_iter_next(&iter, &page, &frame)) {
        set_fast(opaque, (uintptr_t)page - 1, 1,
                 is_fast_frame(m, (uintptr_t)frame - 1));
    }
}

static void *stop_start(const TieringMemory *memory, TieringSetFast *set_fast,
                        void *opaque, Error **errp)
{
    unsigned maps = max_map_count();
    StopSwap *s;

    if (!check_page_sizes(memory, errp)) {
        return NULL;
    }
    s = g_new0(StopSwap, 1);
    s->memory = memory;
    s->frame_of = host_memory_container_moved(memory->container);
    /* A page that is mapped alone divides a mapping in three. */
    s->max_moved = maps > SPARE_MAPPINGS ? (maps - SPARE_MAPPINGS) / 2 : 0;
    s->buffer = qemu_memalign(KS_PAGE_SIZE, KS_PAGE_SIZE);
    tell_fast(s, set_fast, opaque);
    return s;
}

static void stop_stop(void *opaque)
{
    StopSwap *s = opaque;

    qemu_vfree(s->buffer);
    g_free(s);
}

static uint64_t frame_of(StopSwap *s, uint64_t page)
{
    gpointer frame = g_hash_table_lookup(s->frame_of,
                                         GUINT_TO_POINTER(page + 1));

    return frame ? (uintptr_t)frame - 1 : page;
}

static void set_frame(StopSwap *s, uint64_t page, uint64_t frame)
{
    if (page == frame) {
        g_hash_table_remove(s->frame_of, GUINT_TO_POINTER(page + 1));
    } else {
        g_hash_table_insert(s->frame_of, GUINT_TO_POINTER(page + 1),
                            GUINT_TO_POINTER(frame + 1));
    }
}

static bool map_frame(StopSwap *s, uint64_t page, uint64_t frame)
{
    uint8_t *host = tiering_page(s->memory, page);
    uint64_t offset = frame * KS_PAGE_SIZE;
    const HostMemoryPiece *piece = tiering_piece(s->memory, offset);

    if (mmap(host, KS_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
             piece->fd, piece->fd_offset + offset - piece->offset) ==
        MAP_FAILED) {
        return false;
    }
    qemu_madvise(host, KS_PAGE_SIZE, QEMU_MADV_DONTFORK);
    if (!s->memory->backend->dump) {
        qemu_madvise(host, KS_PAGE_SIZE, QEMU_MADV_DONTDUMP);
    }
    return true;
}

static void swap_contents(StopSwap *s, const KsTieringPair *pair)
{
    uint8_t *slow = tiering_page(s->memory, pair->slow_page);
    uint8_t *fast = tiering_page(s->memory, pair->fast_page);

    memcpy(s->buffer, slow, KS_PAGE_SIZE);
    memcpy(slow, fast, KS_PAGE_SIZE);
    memcpy(fast, s->buffer, KS_PAGE_SIZE);
}

static TieringResult swap_pair(StopSwap *s, const KsTieringPair *pair)
{
    uint64_t slow_frame = frame_of(s, pair->slow_page);
    uint64_t fast_frame = frame_of(s, pair->fast_page);

    if (g_hash_table_size(s->frame_of) + 2 > s->max_moved) {
        return "too many pages have been swapped: raise vm.max_map_count";
    }
    swap_contents(s, pair);
    if (!map_frame(s, pair->slow_page, fast_frame)) {
        swap_contents(s, pair);
        return "the host's kernel maps no more";
    }
    if (!map_frame(s, pair->fast_page, slow_frame)) {
        if (!map_frame(s, pair->slow_page, slow_frame)) {
            error_report("memory-tiering: guest memory cannot be mapped again");
            abort();
        }
        swap_contents(s, pair);
        return "the host's kernel maps no more";
    }
    set_frame(s, pair->slow_page, fast_frame);
    set_frame(s, pair->fast_page, slow_frame);
    return NULL;
}

/*
 * Nobody may look at the memory meanwhile: not vCPUs, nor devices, nor a
 * migration, which reads it by a thread of its own.  A VM that does not run
 * writes nothing, so its pages can stay where they are.
 */
static const char *why_not_now(void)
{
    if (!runstate_is_running() || migration_is_running()) {
        return "the VM is stopped or migrates";
    }
    if (migration_is_blocked(NULL)) {
        return "a device goes on while the VM is stopped, as it does not "
               "migrate either";
    }
    return NULL;
}

static bool stop_swap(void *opaque, const KsTieringPair *pairs, unsigned count,
                      TieringResult *results, Error **errp)
{
    const char *reason = why_not_now();
    RunState state;
    bool asked;

    /* A vCPU that polls the main loop's events would only ask for a stop. */
    assert(!qemu_in_vcpu_thread());
    if (!reason) {
        /* Drains the block layer too.  What cannot be flushed fails later. */
        vm_stop(RUN_STATE_PAUSED);
    }
    for (unsigned i = 0; i < count; i++) {
        results[i] = reason ?: swap_pair(opaque, &pairs[i]);
    }
    if (!reason) {
        /* Somebody may have asked for a stop meanwhile, which this forgets. */
        asked = qemu_vmstop_requested(&state);
        vm_start();
        if (asked) {
            qemu_system_vmstop_request_prepare();
            qemu_system_vmstop_request(state);
        }
    }
    return true;
}

const TieringSwapOps tiering_swap_stop = {
    .swapper = MEMORY_TIERING_SWAPPER_STOP,
    .suits = stop_suits,
    .start = stop_start,
    .swap = stop_swap,
    .stop = stop_stop,
    .needs_bql = true,
};
