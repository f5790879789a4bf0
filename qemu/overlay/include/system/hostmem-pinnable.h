/*
 * What guest memory direct I/O can be done to
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef SYSTEM_HOSTMEM_PINNABLE_H
#define SYSTEM_HOSTMEM_PINNABLE_H

/*
 * False if the kernel may refuse direct I/O to what lies there, with EFAULT:
 * memory without struct pages cannot be pinned.  Any thread.
 */
bool host_memory_pinnable(const void *host, size_t size);

#endif
