/*
 * Access source: softmmu TLB fills
 *
 * The softmmu TLB marks a page when it fills an entry, and when the first store
 * goes through it (exec/access-bits.h); a scan takes the marks and has every
 * vCPU flush its TLB, so that the next access to each page is seen again.  The
 * flush is not waited for: a vCPU may be blocked in a page fault.  An access
 * that comes between a scan and the flush through an entry filled before is not
 * seen.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "exec/access-bits.h"
#include "exec/cputlb.h"
#include "hw/core/cpu.h"
#include "migration/access-source.h"
#include "system/tcg.h"

/* More than any machine type takes. */
#define MAX_CPUS 4096

AccessBits *tcg_access_bits;

/*
 * vCPUs that have a flush to do, by index: one that is blocked in a page fault
 * gets one work item and not one a period.
 */
static unsigned long flush_pending[BITS_TO_LONGS(MAX_CPUS)];

static bool tcg_check(Error **errp)
{
    if (!tcg_enabled()) {
        error_setg(errp, "the VM does not run under TCG");
        return false;
    }
    return true;
}

static void *tcg_start(const SplitLayout *layout, Error **errp)
{
    uint64_t end = 0;
    AccessBits *bits;

    for (unsigned i = 0; i < layout->count; i++) {
        end = MAX(end, layout->blocks[i].ram_page + layout->blocks[i].pages);
    }
    end = ROUND_UP(end, BITS_PER_LONG);
    bits = g_malloc0(sizeof(*bits) + 2 * end / BITS_PER_BYTE);
    bits->pages = end;
    bits->accessed = bits->map;
    bits->written = &bits->map[BIT_WORD(end)];
    qatomic_rcu_set(&tcg_access_bits, bits);
    return bits;
}

static bool tcg_begin(void *opaque, bool writes, Error **errp)
{
    AccessBits *bits = opaque;

    qatomic_set(&bits->watch_writes, writes);
    return true;
}

static void take(unsigned long *map, uint64_t *words, uint64_t pages)
{
    for (uint64_t i = 0; i < DIV_ROUND_UP(pages, BITS_PER_LONG); i++) {
        words[i] = qatomic_read(&map[i]) ? qatomic_xchg(&map[i], 0) : 0;
    }
}

static bool tcg_harvest(void *opaque, const SplitBlock *block, uint64_t page,
                        uint64_t pages, uint64_t *accessed, uint64_t *written,
                        Error **errp)
{
    AccessBits *bits = opaque;
    /* RAM blocks start at multiples of BITS_PER_LONG pages. */
    uint64_t word = BIT_WORD(block->ram_page + page);

    take(&bits->accessed[word], accessed, pages);
    take(&bits->written[word], written, pages);
    return true;
}

static void flush_tlb(CPUState *cpu, run_on_cpu_data data)
{
    clear_bit_atomic(cpu->cpu_index, flush_pending);
    tlb_flush(cpu);
}

static void tcg_end(void *opaque)
{
    CPUState *cpu;

    cpu_list_lock();
    CPU_FOREACH(cpu) {
        if (cpu->cpu_index < MAX_CPUS &&
            !(qatomic_fetch_or(&flush_pending[BIT_WORD(cpu->cpu_index)],
                               BIT_MASK(cpu->cpu_index)) &
              BIT_MASK(cpu->cpu_index))) {
            async_run_on_cpu(cpu, flush_tlb, RUN_ON_CPU_NULL);
        }
    }
    cpu_list_unlock();
}

static void tcg_stop(void *opaque)
{
    AccessBits *bits = opaque;

    qatomic_rcu_set(&tcg_access_bits, NULL);
    g_free_rcu(bits, rcu);
}

const AccessSourceOps access_source_tcg = {
    .source = ACCESS_SOURCE_TCG,
    .reads = true,
    .writes = true,
    .sees = "reads and writes by vCPUs, once a scan and page",
    .misses = "accesses by devices; accesses through translations that a vCPU "
              "made before a scan and flushes after it",
    .check = tcg_check,
    .start = tcg_start,
    .begin = tcg_begin,
    .harvest = tcg_harvest,
    .end = tcg_end,
    .stop = tcg_stop,
};
