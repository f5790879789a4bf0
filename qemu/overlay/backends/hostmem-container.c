/*
 * memory-backend-container: RAM joined from pieces of several kinds of memory
 *
 * To the rest of QEMU it is one RAM block.  Its address range is reserved
 * without access, and each piece is mapped over its part of it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-types-migration.h"
#include "qemu/cutils.h"
#include "qemu/madvise.h"
#include "qemu/module.h"
#include "qemu/rcu.h"
#include "qemu/rcu_queue.h"
#include "qemu/units.h"
#include "qom/object_interfaces.h"
#include "hw/qdev-core.h"
#include "migration/options.h"
#include "system/hostmem-container.h"
#include "system/hostmem-pinnable.h"

/* The address range of a container, which is unmapped after the last reader. */
typedef struct AddressRange {
    struct rcu_head rcu;
    HostMemoryContainer *container; /* under the BQL */
    uint8_t *host;
    uint64_t size;
    QLIST_ENTRY(AddressRange) next;
} AddressRange;

struct HostMemoryContainer {
    HostMemoryBackend parent_obj;

    AddressRange *range; /* NULL before it is complete as an object */
    uint64_t mapped; /* bytes that pieces have filled */
    QLIST_HEAD(, HostMemoryPiece) pieces; /* by offset */
    GHashTable *moved;
};

/* Written under the BQL, read under RCU. */
static QLIST_HEAD(, AddressRange) ranges = QLIST_HEAD_INITIALIZER(ranges);

static const char *container_id(HostMemoryContainer *c)
{
    return object_get_canonical_path_component(OBJECT(c));
}

static bool complete(HostMemoryContainer *c)
{
    return c->mapped == MEMORY_BACKEND(c)->size;
}

/*
 * Memory with holes must not be used.  Who uses a backend first asks whether it
 * is taken, so one with holes counts as taken.
 */
static void holes_changed(HostMemoryContainer *c)
{
    host_memory_backend_set_mapped(MEMORY_BACKEND(c), !complete(c));
}

bool host_memory_container_in_use(HostMemoryContainer *c)
{
    return complete(c) && host_memory_backend_is_mapped(MEMORY_BACKEND(c));
}

GHashTable *host_memory_container_moved(HostMemoryContainer *c)
{
    return c->moved;
}

int host_memory_container_tiermem(HostMemoryContainer *c)
{
    HostMemoryPiece *piece;

    QLIST_FOREACH(piece, &c->pieces, next) {
        if (piece->kind == HOST_MEMORY_TIERMEM) {
            return piece->fd;
        }
    }
    return -1;
}

const HostMemoryPiece *host_memory_container_first(HostMemoryContainer *c)
{
    return QLIST_FIRST(&c->pieces);
}

bool host_memory_container_check(HostMemoryBackend *backend, Error **errp)
{
    HostMemoryContainer *c = (HostMemoryContainer *)object_dynamic_cast(
        OBJECT(backend), TYPE_MEMORY_BACKEND_CONTAINER);
    HostMemoryPiece *piece;
    uint64_t end = 0;

    if (!c || complete(c)) {
        return true;
    }
    QLIST_FOREACH(piece, &c->pieces, next) {
        if (piece->offset > end) {
            break;
        }
        end = piece->offset + piece->size;
    }
    error_setg(errp, "memory-backend-container '%s' has a hole from 0x%" PRIx64
               " to 0x%" PRIx64 ": add a memory-backend-devmem with "
               "parent=%s,offset=0x%" PRIx64 ",size=0x%" PRIx64,
               container_id(c), end, piece ? piece->offset : backend->size,
               container_id(c), end,
               (piece ? piece->offset : backend->size) - end);
    return false;
}

/* The piece after which @piece belongs, NULL for the front. */
static bool find_place(HostMemoryContainer *c, const HostMemoryPiece *piece,
                       HostMemoryPiece **after, Error **errp)
{
    HostMemoryPiece *other;

    *after = NULL;
    QLIST_FOREACH(other, &c->pieces, next) {
        if (ranges_overlap(other->offset, other->size,
                           piece->offset, piece->size)) {
            error_setg(errp, "overlaps '%s', which has 0x%" PRIx64 " to 0x%"
                       PRIx64 " of '%s': change its offset or size",
                       other->id, other->offset, other->offset + other->size,
                       container_id(c));
            return false;
        }
        if (other->kind == HOST_MEMORY_TIERMEM && piece->kind == other->kind &&
            ranges_overlap(other->fd_offset, other->size,
                           piece->fd_offset, piece->size)) {
            error_setg(errp, "'%s' has some of that memory already: change "
                       "phy-offset or size", other->id);
            return false;
        }
        if (other->offset < piece->offset) {
            *after = other;
        }
    }
    return true;
}

static bool map_piece(HostMemoryContainer *c, const HostMemoryPiece *piece,
                      Error **errp)
{
    void *host = c->range->host + piece->offset;

    if (mmap(host, piece->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
             piece->fd, piece->fd_offset) == MAP_FAILED) {
        int err = errno;

        error_setg_errno(errp, err, "cannot map 0x%" PRIx64 " to 0x%" PRIx64
                         " of it", piece->fd_offset,
                         piece->fd_offset + piece->size);
        if (piece->kind == HOST_MEMORY_TIERMEM && err == EACCES) {
            error_append_hint(errp, "Another VM has it, or QEMU may not take "
                              "it: run QEMU with CAP_SYS_ADMIN, or pass it a "
                              "file that was granted the range, by path="
                              "/dev/fdset/N.\n");
        }
        return false;
    }
    /* As for all RAM, but lost with the mapping that was replaced. */
    qemu_madvise(host, piece->size, QEMU_MADV_DONTFORK);
    if (!MEMORY_BACKEND(c)->dump) {
        qemu_madvise(host, piece->size, QEMU_MADV_DONTDUMP);
    }
    return true;
}

bool host_memory_container_add(HostMemoryContainer *c, HostMemoryPiece *piece,
                               Error **errp)
{
    uint64_t size = MEMORY_BACKEND(c)->size;
    HostMemoryPiece *after;

    if (piece->size > size || piece->offset > size - piece->size) {
        error_setg(errp, "0x%" PRIx64 " to 0x%" PRIx64 " is outside of '%s', "
                   "whose size is 0x%" PRIx64 ": change its offset or size",
                   piece->offset, piece->offset + piece->size, container_id(c),
                   size);
        return false;
    }
    if (!find_place(c, piece, &after, errp) || !map_piece(c, piece, errp)) {
        return false;
    }
    if (after) {
        QLIST_INSERT_AFTER(after, piece, next);
    } else {
        QLIST_INSERT_HEAD(&c->pieces, piece, next);
    }
    c->mapped += piece->size;
    holes_changed(c);
    return true;
}

/* Reserves address space, or with @host makes a hole in it. */
static void *map_nothing(void *host, uint64_t size)
{
    return mmap(host, size, PROT_NONE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE |
                (host ? MAP_FIXED : 0), -1, 0);
}

void host_memory_container_remove(HostMemoryContainer *c,
                                  HostMemoryPiece *piece)
{
    /* When QEMU ends, objects go in any order. */
    if (host_memory_container_in_use(c)) {
        QLIST_REMOVE(piece, next);
        return;
    }
    if (map_nothing(c->range->host + piece->offset, piece->size) ==
        MAP_FAILED) {
        abort(); /* a range that is mapped can be mapped over */
    }
    QLIST_REMOVE(piece, next);
    c->mapped -= piece->size;
    holes_changed(c);
}

bool host_memory_container_allows(const char *what, Error **errp)
{
    AddressRange *range = QLIST_FIRST(&ranges);

    if (!range) {
        return true;
    }
    error_setg(errp, "memory of memory-backend-container '%s' cannot be used "
               "with %s", container_id(range->container), what);
    return false;
}

/*
 * They pin memory, as direct I/O to a file of mapped RAM does, register it with
 * userfaultfd, or need two copies of it.
 */
static const struct {
    MigrationCapability cap;
    bool (*enabled)(void);
} refused_caps[] = {
    { MIGRATION_CAPABILITY_POSTCOPY_RAM, migrate_postcopy_ram },
    { MIGRATION_CAPABILITY_BACKGROUND_SNAPSHOT, migrate_background_snapshot },
    { MIGRATION_CAPABILITY_ZERO_COPY_SEND, migrate_zero_copy_send },
    { MIGRATION_CAPABILITY_RDMA_PIN_ALL, migrate_rdma_pin_all },
    { MIGRATION_CAPABILITY_MAPPED_RAM, migrate_mapped_ram },
    { MIGRATION_CAPABILITY_X_COLO, migrate_colo },
};

bool host_memory_container_allows_caps(const bool *caps, Error **errp)
{
    for (unsigned i = 0; i < ARRAY_SIZE(refused_caps); i++) {
        g_autofree char *what = NULL;

        if (!caps[refused_caps[i].cap]) {
            continue;
        }
        what = g_strdup_printf("migration capability '%s': turn it off",
                               MigrationCapability_str(refused_caps[i].cap));
        if (!host_memory_container_allows(what, errp)) {
            return false;
        }
    }
    return true;
}

bool host_memory_pinnable(const void *host, size_t size)
{
    AddressRange *range;

    RCU_READ_LOCK_GUARD();
    QLIST_FOREACH_RCU(range, &ranges, next) {
        if (ranges_overlap((uintptr_t)host, MAX(size, 1),
                           (uintptr_t)range->host, range->size)) {
            return false;
        }
    }
    return true;
}

/* What pieces decide is not for the container. */
static bool check_properties(HostMemoryBackend *backend, Error **errp)
{
    const char *refused = NULL;

    if (!backend->size) {
        error_setg(errp, "size is missing: set it to what the pieces have "
                   "together");
        return false;
    }
    if (backend->size > INT64_MAX) {
        error_setg(errp, "size 0x%" PRIx64 " is too large", backend->size);
        return false;
    }
    if (!QEMU_IS_ALIGNED(backend->size, qemu_real_host_page_size())) {
        error_setg(errp, "size 0x%" PRIx64 " is not a multiple of the host's "
                   "page size, %zu", backend->size,
                   (size_t)qemu_real_host_page_size());
        return false;
    }
    if (backend->prealloc) {
        refused = "prealloc=on";
    } else if (!bitmap_empty(backend->host_nodes, MAX_NODES) ||
               backend->policy != HOST_MEM_POLICY_DEFAULT) {
        refused = "host-nodes and policy";
    } else if (backend->share) {
        refused = "share=on";
    } else if (!backend->reserve) {
        refused = "reserve=off";
    } else if (backend->guest_memfd) {
        refused = "confidential guests' memory";
    }
    if (refused) {
        error_setg(errp, "a memory-backend-container cannot have %s: its "
                   "pieces decide where memory comes from, so set it on the "
                   "backends that they are mapped from", refused);
        return false;
    }
    /* Before, there is no migration object; it checks when it is made. */
    for (unsigned i = 0;
         phase_check(PHASE_MACHINE_READY) && i < ARRAY_SIZE(refused_caps);
         i++) {
        if (refused_caps[i].enabled()) {
            error_setg(errp, "a memory-backend-container cannot be used with "
                       "migration capability '%s': turn it off",
                       MigrationCapability_str(refused_caps[i].cap));
            return false;
        }
    }
    return true;
}

static bool container_alloc(HostMemoryBackend *backend, Error **errp)
{
    HostMemoryContainer *c = MEMORY_BACKEND_CONTAINER(backend);
    g_autofree char *name = host_memory_backend_get_name(backend);
    /* Pieces of huge pages have to lie at multiples of them. */
    uint64_t align = MIN(pow2floor(backend->size), GiB);
    uint8_t *mapped, *host;

    if (!check_properties(backend, errp)) {
        return false;
    }
    mapped = map_nothing(NULL, backend->size + align);
    if (mapped == MAP_FAILED) {
        error_setg_errno(errp, errno, "cannot reserve 0x%" PRIx64 " bytes of "
                         "address space", backend->size);
        return false;
    }
    host = (uint8_t *)QEMU_ALIGN_PTR_UP(mapped, align);
    munmap(mapped, host - mapped);
    munmap(host + backend->size, mapped + align - host);

    memory_region_init_ram_ptr(&backend->mr, OBJECT(backend), name,
                               backend->size, host);
    backend->mr.align = MIN(align, QEMU_VMALLOC_ALIGN); /* in guest memory */
    c->range = g_new(AddressRange, 1);
    *c->range = (AddressRange) {
        .container = c,
        .host = host,
        .size = backend->size,
    };
    QLIST_INSERT_HEAD_RCU(&ranges, c->range, next);
    holes_changed(c);
    return true;
}

static bool container_can_be_deleted(UserCreatable *uc)
{
    return QLIST_EMPTY(&MEMORY_BACKEND_CONTAINER(uc)->pieces);
}

static void container_init(Object *obj)
{
    HostMemoryContainer *c = MEMORY_BACKEND_CONTAINER(obj);

    QLIST_INIT(&c->pieces);
    c->moved = g_hash_table_new(NULL, NULL);
}

static void free_range(AddressRange *range)
{
    munmap(range->host, range->size);
    g_free(range);
}

static void container_finalize(Object *obj)
{
    HostMemoryContainer *c = MEMORY_BACKEND_CONTAINER(obj);

    if (c->range) {
        QLIST_REMOVE_RCU(c->range, next);
        call_rcu(c->range, free_range, rcu);
    }
    g_hash_table_destroy(c->moved);
}

static void container_class_init(ObjectClass *oc, void *data)
{
    MEMORY_BACKEND_CLASS(oc)->alloc = container_alloc;
    USER_CREATABLE_CLASS(oc)->can_be_deleted = container_can_be_deleted;
}

static const TypeInfo container_info = {
    .name = TYPE_MEMORY_BACKEND_CONTAINER,
    .parent = TYPE_MEMORY_BACKEND,
    .instance_size = sizeof(HostMemoryContainer),
    .instance_init = container_init,
    .instance_finalize = container_finalize,
    .class_init = container_class_init,
};

static void register_types(void)
{
    type_register_static(&container_info);
}

type_init(register_types);
