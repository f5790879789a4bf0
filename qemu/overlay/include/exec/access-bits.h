/*
 * Accessed bits of guest RAM under TCG
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef EXEC_ACCESS_BITS_H
#define EXEC_ACCESS_BITS_H

#include "qemu/atomic.h"
#include "qemu/bitops.h"
#include "qemu/rcu.h"

/*
 * Two bits a target page, by ram_addr_t.  The softmmu TLB sets the accessed bit
 * when it fills an entry, so after a TLB flush the first access of each vCPU to
 * each page is seen.  It sets the written bit at the first store, for which it
 * makes the entry's stores slow until then.
 */
typedef struct AccessBits {
    struct rcu_head rcu;
    uint64_t pages;
    bool watch_writes;
    unsigned long *accessed;
    unsigned long *written;
    unsigned long map[];
} AccessBits;

/* NULL while nobody tracks. */
extern AccessBits *tcg_access_bits;

/* What follows is called by vCPUs. */

static inline void tcg_access_bits_set(unsigned long *map, uint64_t page)
{
    if (!(qatomic_read(&map[BIT_WORD(page)]) & BIT_MASK(page))) {
        set_bit_atomic(page, map);
    }
}

/* An entry is filled for @page: whether its stores are to be slow. */
static inline bool tcg_access_bits_fill(uint64_t page)
{
    AccessBits *bits;

    if (likely(!qatomic_read(&tcg_access_bits))) {
        return false;
    }
    /* Not every way to execute guest code is in a critical section. */
    RCU_READ_LOCK_GUARD();
    bits = qatomic_rcu_read(&tcg_access_bits);
    if (!bits || page >= bits->pages) {
        return false;
    }
    tcg_access_bits_set(bits->accessed, page);
    return qatomic_read(&bits->watch_writes) &&
           !(qatomic_read(&bits->written[BIT_WORD(page)]) & BIT_MASK(page));
}

/* A slow store to @page. */
static inline void tcg_access_bits_store(uint64_t page)
{
    AccessBits *bits;

    if (likely(!qatomic_read(&tcg_access_bits))) {
        return;
    }
    RCU_READ_LOCK_GUARD();
    bits = qatomic_rcu_read(&tcg_access_bits);
    if (bits && page < bits->pages) {
        tcg_access_bits_set(bits->written, page);
    }
}

#endif
