/*
 * Memory tiering: pages of /dev/tiermem, swapped by the host's kernel
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/ioctl.h>
#include "memory-tiering-internal.h"
#include "qapi/error.h"

/* linux/tiermem.h of Kintsugi's Linux patch series */
struct tiermem_pair {
    uint64_t a;
    uint64_t b;
    uint32_t result;
    uint32_t reserved;
};

struct tiermem_swap {
    uint64_t pairs;
    uint32_t nr_pairs;
    uint32_t done;
    uint32_t swapped;
    uint32_t flags;
};

struct tiermem_where {
    uint64_t offset;
    uint64_t addresses;
    uint32_t nr_pages;
    uint32_t flags;
};

#define TIERMEM_IOC_SWAP  _IOWR(0xBB, 0x00, struct tiermem_swap)
#define TIERMEM_IOC_WHERE _IOW(0xBB, 0x01, struct tiermem_where)

typedef struct TiermemSwap {
    const TieringMemory *memory;
    int fd;
    struct tiermem_pair pairs[TIERING_MAX_PAIRS];
} TiermemSwap;

static const char *tiermem_suits(const TieringMemory *memory)
{
    const HostMemoryPiece *piece;

    if (!memory->container) {
        return NULL;
    }
    for (piece = host_memory_container_first(memory->container); piece;
         piece = QLIST_NEXT(piece, next)) {
        if (piece->kind != HOST_MEMORY_TIERMEM) {
            return NULL;
        }
    }
    return "all pieces are of /dev/tiermem";
}

/* Where the driver knows @page by. */
static uint64_t device_offset(const TieringMemory *memory, uint64_t page)
{
    uint64_t offset = page * KS_PAGE_SIZE;
    const HostMemoryPiece *piece = tiering_piece(memory, offset);

    return piece->fd_offset + offset - piece->offset;
}

static bool is_fast_address(const TieringMemory *memory, uint64_t address)
{
    for (unsigned i = 0; i < memory->fast->len; i++) {
        const HostMemoryPiece *piece = memory->fast->pdata[i];

        if (address - piece->fd_offset < piece->size) {
            return true;
        }
    }
    return false;
}

/* Pages of @piece may have been swapped before, so ask where they are. */
static bool tell_fast(TiermemSwap *s, const HostMemoryPiece *piece,
                      TieringSetFast *set_fast, void *opaque, Error **errp)
{
    g_autofree uint64_t *addresses = g_new(uint64_t, TIERING_MAX_PAIRS);
    uint64_t pages = piece->size / KS_PAGE_SIZE;

    for (uint64_t page = 0; page < pages; page += TIERING_MAX_PAIRS) {
        struct tiermem_where arg = {
            .offset = piece->fd_offset + page * KS_PAGE_SIZE,
            .addresses = (uintptr_t)addresses,
            .nr_pages = MIN(pages - page, TIERING_MAX_PAIRS),
        };

        if (ioctl(s->fd, TIERMEM_IOC_WHERE, &arg)) {
            error_setg_errno(errp, errno, "/dev/tiermem does not tell where "
                             "pages are");
            return false;
        }
        for (uint32_t i = 0; i < arg.nr_pages; i++) {
            if (is_fast_address(s->memory, addresses[i])) {
                set_fast(opaque, piece->offset / KS_PAGE_SIZE + page + i, 1,
                         true);
            }
        }
    }
    return true;
}

static void *tiermem_start(const TieringMemory *memory,
                           TieringSetFast *set_fast, void *opaque, Error **errp)
{
    TiermemSwap *s = g_new0(TiermemSwap, 1);

    s->memory = memory;
    s->fd = host_memory_container_tiermem(memory->container);
    for (unsigned i = 0; i < memory->pieces->len; i++) {
        if (!tell_fast(s, memory->pieces->pdata[i], set_fast, opaque, errp)) {
            g_free(s);
            return NULL;
        }
    }
    return s;
}

static TieringResult result_of(const struct tiermem_pair *pair)
{
    static const char *const reasons[] = {
        NULL,
        "a page is held",
        "a device can reach a page",
        "a page cannot be read",
    };

    return pair->result < ARRAY_SIZE(reasons) ? reasons[pair->result]
                                              : "the driver does not say why";
}

static bool tiermem_swap(void *opaque, const KsTieringPair *pairs,
                         unsigned count, TieringResult *results, Error **errp)
{
    TiermemSwap *s = opaque;
    unsigned done = 0;

    for (unsigned i = 0; i < count; i++) {
        s->pairs[i] = (struct tiermem_pair) {
            .a = device_offset(s->memory, pairs[i].slow_page),
            .b = device_offset(s->memory, pairs[i].fast_page),
        };
    }
    while (done < count) {
        struct tiermem_swap arg = {
            .pairs = (uintptr_t)&s->pairs[done],
            .nr_pairs = count - done,
        };
        int ret = ioctl(s->fd, TIERMEM_IOC_SWAP, &arg);
        int err = errno;

        for (unsigned i = done; i < done + arg.done; i++) {
            results[i] = result_of(&s->pairs[i]);
        }
        done += arg.done;
        if (ret < 0 && err != EINTR) {
            error_setg_errno(errp, err, "/dev/tiermem does not swap");
            return false;
        }
        if (ret == 0 && done < count) {
            error_setg(errp, "/dev/tiermem stopped within a swap");
            return false;
        }
    }
    return true;
}

const TieringSwapOps tiering_swap_tiermem = {
    .swapper = MEMORY_TIERING_SWAPPER_TIERMEM,
    .suits = tiermem_suits,
    .start = tiermem_start,
    .swap = tiermem_swap,
    .stop = g_free,
};
