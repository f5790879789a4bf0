/*
 * Remote memory: what the block layer calls, for programs without a VM
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration/remote-memory.h"

bool remote_memory_allows_direct_io(Error **errp)
{
    return true;
}
