/*
 * Hybrid memory: what the block layer asks, for programs without a VM
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "system/hostmem-pinnable.h"

bool host_memory_pinnable(const void *host, size_t size)
{
    return true;
}
