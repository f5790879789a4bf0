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

#define TIERMEM_IOC_SWAP _IOWR(0xBB, 0x00, struct tiermem_swap)

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

static void *tiermem_start(const TieringMemory *memory,
                           void (*set_fast)(void *, uint64_t, uint64_t),
                           void *opaque, Error **errp)
{
    TiermemSwap *s = g_new0(TiermemSwap, 1);

    s->memory = memory;
    s->fd = host_memory_container_tiermem(memory->container);
    return s;
}

/* Where the driver knows @page by. */
static uint64_t device_offset(const TieringMemory *memory, uint64_t page)
{
    const HostMemoryPiece *piece;
    uint64_t offset = page * KS_PAGE_SIZE;

    for (piece = host_memory_container_first(memory->container);
         offset - piece->offset >= piece->size;
         piece = QLIST_NEXT(piece, next)) {
        /* pieces leave no hole */
    }
    return piece->fd_offset + offset - piece->offset;
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
