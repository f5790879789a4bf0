/*
 * Memory tiering: what its parts share
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BACKENDS_MEMORY_TIERING_INTERNAL_H
#define BACKENDS_MEMORY_TIERING_INTERNAL_H

#include "qapi/qapi-types-memory-tiering.h"
#include "qemu/bitmap.h"
#include "system/hostmem-container.h"
#include "kintsugi.h"

#define TIERING_MAX_PAIRS 4096

/* The memory whose pages are swapped.  Does not change. */
typedef struct TieringMemory {
    HostMemoryBackend *backend;
    HostMemoryContainer *container; /* NULL with NUMA nodes */
    GPtrArray *pieces; /* all of the container's, kept; by offset */
    GPtrArray *fast;   /* those of them that are fast */
    uint8_t *host;
    uint64_t pages;
    /* mbind() takes one node less than it is told. */
    DECLARE_BITMAP(fast_nodes, MAX_NODES + 1);
    DECLARE_BITMAP(slow_nodes, MAX_NODES + 1);
    uint64_t fast_size;
} TieringMemory;

/* What became of a pair: NULL, it was swapped; else a literal, why not. */
typedef const char *TieringResult;

typedef void TieringSetFast(void *opaque, uint64_t page, uint64_t pages,
                            bool fast);

/* A way to swap pages. */
typedef struct TieringSwapOps {
    MemoryTieringSwapper swapper;
    /* Why it is the one for this memory; NULL if it is not. */
    const char *(*suits)(const TieringMemory *memory);
    /*
     * Makes ready, and calls @set_fast for what lies on the fast tier now: an
     * object before may have changed it.  Needs the BQL.
     */
    void *(*start)(const TieringMemory *memory, TieringSetFast *set_fast,
                   void *opaque, Error **errp);
    /*
     * Swaps pairs and sets each one's result.  False: it will not work again,
     * and the pairs without a result are as they were; results were set to
     * something before.
     */
    bool (*swap)(void *opaque, const KsTieringPair *pairs, unsigned count,
                 TieringResult *results, Error **errp);
    void (*stop)(void *opaque);
    /* swap() is to be called by the main loop, with the BQL. */
    bool needs_bql;
} TieringSwapOps;

extern const TieringSwapOps tiering_swap_tiermem;
extern const TieringSwapOps tiering_swap_nodes;
extern const TieringSwapOps tiering_swap_stop;

/* The piece at @offset of the container. */
static inline const HostMemoryPiece *tiering_piece(const TieringMemory *memory,
                                                   uint64_t offset)
{
    for (unsigned i = 0; i < memory->pieces->len; i++) {
        const HostMemoryPiece *piece = memory->pieces->pdata[i];

        if (offset - piece->offset < piece->size) {
            return piece;
        }
    }
    g_assert_not_reached(); /* pieces leave no hole */
}

static inline bool tiering_is_fast(const TieringMemory *memory,
                                   const HostMemoryPiece *piece)
{
    return g_ptr_array_find(memory->fast, piece, NULL);
}

static inline uint8_t *tiering_page(const TieringMemory *memory, uint64_t page)
{
    return memory->host + page * KS_PAGE_SIZE;
}

#endif
