/*
 * RAM joined from pieces of several kinds of memory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef SYSTEM_HOSTMEM_CONTAINER_H
#define SYSTEM_HOSTMEM_CONTAINER_H

#include "qemu/queue.h"
#include "system/hostmem.h"

#define TYPE_MEMORY_BACKEND_CONTAINER "memory-backend-container"
#define TYPE_MEMORY_BACKEND_DEVMEM "memory-backend-devmem"

typedef struct HostMemoryContainer HostMemoryContainer;
DECLARE_INSTANCE_CHECKER(HostMemoryContainer, MEMORY_BACKEND_CONTAINER,
                         TYPE_MEMORY_BACKEND_CONTAINER)

/* Where the memory of a piece comes from. */
typedef enum HostMemoryKind {
    HOST_MEMORY_FILE,
    HOST_MEMORY_DEV_MEM,
    HOST_MEMORY_TIERMEM,
} HostMemoryKind;

/* A piece, mapped.  Does not change while it is in a container. */
typedef struct HostMemoryPiece {
    Object *owner;     /* who keeps it from going before the piece does */
    const char *id;
    HostMemoryKind kind;
    uint64_t offset;   /* in the container, bytes */
    uint64_t size;
    int fd;            /* the piece's; of tiermem, all pieces' are one file */
    uint64_t fd_offset;
    QLIST_ENTRY(HostMemoryPiece) next;
} HostMemoryPiece;

/*
 * Maps @piece into the container.  Errors name what overlaps or does not fit,
 * and what to change.  Needs the BQL, as all that follows unless it says
 * otherwise.
 */
bool host_memory_container_add(HostMemoryContainer *container,
                               HostMemoryPiece *piece, Error **errp);
/*
 * Leaves a hole; but if the container is in use, as when QEMU ends, what is
 * mapped stays.
 */
void host_memory_container_remove(HostMemoryContainer *container,
                                  HostMemoryPiece *piece);
/* A machine or a device has it as its memory. */
bool host_memory_container_in_use(HostMemoryContainer *container);
/*
 * Which page's memory each page now has, where that is not its own: page + 1 to
 * page + 1.  Whoever maps the memory anew keeps it true; it lives as long as
 * the mappings do.
 */
GHashTable *host_memory_container_moved(HostMemoryContainer *container);
/* The file by which pieces have tiermem's memory, or -1. */
int host_memory_container_tiermem(HostMemoryContainer *container);
/* The pieces by offset. */
const HostMemoryPiece *
host_memory_container_first(HostMemoryContainer *container);

/*
 * Says whether @backend may be used: anything but a container with holes, which
 * the error names.
 */
bool host_memory_container_check(HostMemoryBackend *backend, Error **errp);

/*
 * False, with an error, if a container exists, as @what cannot be had beside
 * one.
 */
bool host_memory_container_allows(const char *what, Error **errp);
bool host_memory_container_allows_caps(const bool *caps, Error **errp);

#endif
