/*
 * Memory tiering: pages moved between NUMA nodes
 *
 * Of the backend's memory, fast-size bytes lie on the fast nodes and the rest
 * on the slow ones; each pair that changes places keeps it so.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <numa.h>
#include <numaif.h>
#include "memory-tiering-internal.h"
#include "qapi/error.h"
#include "qemu/madvise.h"

typedef struct NodeSwap {
    const TieringMemory *memory;
    void *addresses[TIERING_MAX_PAIRS];
    int nodes[TIERING_MAX_PAIRS];
    int status[TIERING_MAX_PAIRS];
    unsigned next_fast, next_slow; /* where the next page goes */
} NodeSwap;

static const char *nodes_suits(const TieringMemory *memory)
{
    return memory->container ? NULL : "tiers are NUMA nodes";
}

static bool bind_pages(const TieringMemory *memory, uint64_t first,
                       uint64_t pages, const unsigned long *nodes, Error **errp)
{
    if (!pages) {
        return true;
    }
    if (mbind(tiering_page(memory, first), pages * KS_PAGE_SIZE, MPOL_BIND,
              nodes, MAX_NODES + 1, MPOL_MF_MOVE | MPOL_MF_STRICT)) {
        error_setg_errno(errp, errno, "cannot bind memory to the tiers' NUMA "
                         "nodes");
        return false;
    }
    return true;
}

/* Taking more than there is would end QEMU by the kernel's hand. */
static bool check_free(const TieringMemory *memory, Error **errp)
{
    uint64_t free_bytes = 0;

    for (unsigned node = find_first_bit(memory->fast_nodes, MAX_NODES);
         node < MAX_NODES;
         node = find_next_bit(memory->fast_nodes, MAX_NODES, node + 1)) {
        long long bytes = 0;

        if (numa_node_size64(node, &bytes) < 0) {
            error_setg(errp, "the host has no NUMA node %u", node);
            return false;
        }
        free_bytes += bytes;
    }
    if (free_bytes < memory->fast_size) {
        error_setg(errp, "the fast nodes have 0x%" PRIx64 " bytes free, less "
                   "than fast-size", free_bytes);
        return false;
    }
    return true;
}

/*
 * Only small pages can be exchanged one by one, and only those that are there:
 * what is to lie on the fast nodes is taken at once.
 */
static void *nodes_start(const TieringMemory *memory, TieringSetFast *set_fast,
                         void *opaque, Error **errp)
{
    uint64_t fast = memory->fast_size / KS_PAGE_SIZE;
    NodeSwap *s;

    if (qemu_ram_pagesize(memory->backend->mr.ram_block) != KS_PAGE_SIZE) {
        error_setg(errp, "the memory is of huge pages, which cannot be moved "
                   "one by one: use a backend of small pages");
        return NULL;
    }
    if (!check_free(memory, errp)) {
        return NULL;
    }
    qemu_madvise(memory->host, memory->pages * KS_PAGE_SIZE,
                 QEMU_MADV_NOHUGEPAGE);
    if (!bind_pages(memory, 0, fast, memory->fast_nodes, errp) ||
        !bind_pages(memory, fast, memory->pages - fast, memory->slow_nodes,
                    errp)) {
        return NULL;
    }
    if (qemu_madvise(memory->host, memory->fast_size,
                     QEMU_MADV_POPULATE_WRITE)) {
        error_setg_errno(errp, errno, "cannot have 0x%" PRIx64 " bytes of the "
                         "fast nodes' memory", memory->fast_size);
        return NULL;
    }
    set_fast(opaque, 0, fast, true);
    s = g_new0(NodeSwap, 1);
    s->memory = memory;
    s->next_fast = find_first_bit(memory->fast_nodes, MAX_NODES);
    s->next_slow = find_first_bit(memory->slow_nodes, MAX_NODES);
    return s;
}

static unsigned take_node(unsigned *next, const unsigned long *nodes)
{
    unsigned node = *next;

    *next = find_next_bit(nodes, MAX_NODES, node + 1);
    if (*next >= MAX_NODES) {
        *next = find_first_bit(nodes, MAX_NODES);
    }
    return node;
}

static const char *reason(int status)
{
    switch (-status) {
    case ENOENT:
        return "the guest has not used a page yet";
    case EBUSY:
        return "a page is in use by the host's kernel or by a device";
    case ENOMEM:
        return "a node has no free memory";
    case EACCES:
        return "a page is shared";
    default:
        return "the host's kernel does not move a page";
    }
}

/* Each page's status then tells what became of it. */
static bool move(NodeSwap *s, unsigned count, Error **errp)
{
    if (move_pages(0, count, s->addresses, s->nodes, s->status,
                   MPOL_MF_MOVE) < 0) {
        error_setg_errno(errp, errno, "move_pages() to the tiers' NUMA nodes");
        return false;
    }
    return true;
}

static bool nodes_swap(void *opaque, const KsTieringPair *pairs, unsigned count,
                       TieringResult *results, Error **errp)
{
    NodeSwap *s = opaque;
    const TieringMemory *m = s->memory;
    unsigned demoted = 0;
    g_autofree unsigned *pair_of = g_new(unsigned, count);

    /* First make room. */
    for (unsigned i = 0; i < count; i++) {
        s->addresses[i] = tiering_page(m, pairs[i].fast_page);
        s->nodes[i] = take_node(&s->next_slow, m->slow_nodes);
        s->status[i] = -ENOENT;
    }
    if (!move(s, count, errp)) {
        return false;
    }
    for (unsigned i = 0; i < count; i++) {
        results[i] = s->status[i] < 0 ? reason(s->status[i]) : NULL;
        if (!results[i]) {
            pair_of[demoted++] = i;
        }
    }
    for (unsigned j = 0; j < demoted; j++) {
        s->addresses[j] = tiering_page(m, pairs[pair_of[j]].slow_page);
        s->nodes[j] = take_node(&s->next_fast, m->fast_nodes);
        s->status[j] = -ENOENT;
        results[pair_of[j]] = "the fast nodes take no page";
    }
    if (demoted && !move(s, demoted, errp)) {
        return false;
    }
    /* What could not follow: the other one comes back. */
    count = demoted;
    demoted = 0;
    for (unsigned j = 0; j < count; j++) {
        unsigned i = pair_of[j];

        results[i] = NULL;
        if (s->status[j] < 0) {
            results[i] = reason(s->status[j]);
            s->addresses[demoted] = tiering_page(m, pairs[i].fast_page);
            s->nodes[demoted] = take_node(&s->next_fast, m->fast_nodes);
            s->status[demoted++] = -ENOENT;
        }
    }
    return !demoted || move(s, demoted, errp);
}

const TieringSwapOps tiering_swap_nodes = {
    .swapper = MEMORY_TIERING_SWAPPER_MOVE_PAGES,
    .suits = nodes_suits,
    .start = nodes_start,
    .swap = nodes_swap,
    .stop = g_free,
};
