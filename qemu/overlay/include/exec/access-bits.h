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
 * One bit a target page, by ram_addr_t.  The softmmu TLB sets a bit when it
 * fills an entry, so after a TLB flush the first access of each vCPU to each
 * page is seen.
 */
typedef struct AccessBits {
    struct rcu_head rcu;
    uint64_t pages;
    unsigned long map[];
} AccessBits;

/* NULL while nobody tracks. */
extern AccessBits *tcg_access_bits;

/* Called by vCPUs. */
static inline void tcg_access_bits_mark(uint64_t page)
{
    AccessBits *bits;

    if (likely(!qatomic_read(&tcg_access_bits))) {
        return;
    }
    /* Not every way to execute guest code is in a critical section. */
    RCU_READ_LOCK_GUARD();
    bits = qatomic_rcu_read(&tcg_access_bits);
    if (bits && page < bits->pages &&
        !(qatomic_read(&bits->map[BIT_WORD(page)]) & BIT_MASK(page))) {
        set_bit_atomic(page, bits->map);
    }
}

#endif
