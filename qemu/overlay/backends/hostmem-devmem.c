/*
 * memory-backend-devmem: a piece of a memory-backend-container
 *
 * A range of physical memory, by /dev/tiermem or /dev/mem, or of a file.  It is
 * not a memory backend, as all who use one expect it to have a RAM block of its
 * own.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/ioctl.h>
#include "qapi/error.h"
#include "qapi/visitor.h"
#include "exec/ramblock.h"
#include "qemu/mmap-alloc.h"
#include "qemu/module.h"
#include "qemu/units.h"
#include "qom/object_interfaces.h"
#include "system/hostmem-container.h"

#ifndef TIERMEM_IOC_MAGIC
/* linux/tiermem.h of Kintsugi's Linux patch series */
struct tiermem_grant {
    uint64_t offset;
    uint64_t size;
    uint64_t flags;
};
#define TIERMEM_IOC_GRANT _IOW(0xBB, 0x03, struct tiermem_grant)
#endif

#define DEV_MEM "/dev/mem"
#define DEV_TIERMEM "/dev/tiermem"

OBJECT_DECLARE_SIMPLE_TYPE(HostMemoryDevmem, MEMORY_BACKEND_DEVMEM)

struct HostMemoryDevmem {
    Object parent_obj;

    /* Properties */
    char *parent;
    char *path;
    char *memdev;
    uint64_t offset;
    uint64_t size;
    uint64_t phy_offset;

    HostMemoryContainer *container; /* set while it is mapped there */
    HostMemoryBackend *backend;     /* what memdev names, marked as in use */
    HostMemoryPiece piece;
};

static const char *my_id(HostMemoryDevmem *d)
{
    return object_get_canonical_path_component(OBJECT(d));
}

static Object *find_object(const char *id, const char *type, const char *name,
                           Error **errp)
{
    Object *root = object_get_objects_root();
    Object *obj = object_resolve_path_component(root, id);

    if (!obj) {
        error_setg(errp, "%s '%s' does not exist: create it before", name, id);
    } else if (!object_dynamic_cast(obj, type)) {
        error_setg(errp, "%s '%s' is a %s and not a %s", name, id,
                   object_get_typename(obj), type);
        obj = NULL;
    }
    return obj;
}

/* Whether the words of @what are those of a line of /proc/iomem. */
static bool is_set_aside(const char *what)
{
    return g_str_has_prefix(what, "Reserved") ||
           g_str_has_prefix(what, "Soft Reserved") ||
           g_str_has_prefix(what, "Persistent Memory");
}

/* A line of /proc/iomem. */
typedef struct IomemLine {
    uint64_t from, to;
    const char *what;
} IomemLine;

/* What is indented lies within a line before it, and is not told. */
static bool parse_line(const char *text, IomemLine *line)
{
    const char *what = strstr(text, " : ");
    uint64_t last;

    if (!what || *text == ' ' ||
        sscanf(text, "%" SCNx64 "-%" SCNx64, &line->from, &last) != 2) {
        return false;
    }
    line->to = last + 1;
    line->what = what + strlen(" : ");
    return true;
}

/*
 * What the kernel takes for one: if a part is RAM, it takes the rest to be in
 * its map of memory as well, and KVM crashes the host when a guest's clock lies
 * there.
 */
#define SECTION (128 * MiB)

static bool check_line(const IomemLine *line, uint64_t from, uint64_t to,
                       Error **errp)
{
    bool overlaps = line->from < to && line->to > from;

    if (overlaps && !is_set_aside(line->what)) {
        error_setg(errp, "the host has '%s' at 0x%" PRIx64 " to 0x%" PRIx64
                   ": set the range aside with memmap= on its kernel's command "
                   "line", line->what, line->from, line->to);
        return false;
    }
    if (g_str_equal(line->what, "System RAM") &&
        line->from < QEMU_ALIGN_UP(to, SECTION) &&
        line->to > QEMU_ALIGN_DOWN(from, SECTION)) {
        error_setg(errp, "the host's kernel uses memory from 0x%" PRIx64
                   " to 0x%" PRIx64 ", in the same 128 MiB as this: set aside "
                   "with memmap= multiples of 128 MiB", line->from, line->to);
        return false;
    }
    return true;
}

/*
 * Whether the host's kernel leaves @from to @to alone.  /dev/mem may let
 * through what it uses, depending on how it was built.
 */
static bool check_iomem(uint64_t from, uint64_t to, Error **errp)
{
    g_autofree char *text = NULL;
    g_auto(GStrv) lines = NULL;
    uint64_t covered = from;

    if (!g_file_get_contents("/proc/iomem", &text, NULL, NULL)) {
        error_setg(errp, "cannot read /proc/iomem, which tells what the host "
                   "uses");
        return false;
    }
    lines = g_strsplit(text, "\n", -1);
    for (char **l = lines; *l; l++) {
        IomemLine line;

        if (!parse_line(*l, &line)) {
            continue;
        }
        if (!check_line(&line, from, to, errp)) {
            return false;
        }
        if (line.from <= covered && line.to > covered) {
            covered = line.to; /* lines ascend */
        }
    }
    if (covered < to) {
        error_setg(errp, "the host has no memory at 0x%" PRIx64, covered);
        return false;
    }
    return true;
}

/* What the piece is mapped from must not be taken by another, here or there. */
static bool lock_range(HostMemoryDevmem *d, Error **errp)
{
    int ret = qemu_lock_fd(d->piece.fd, d->piece.fd_offset, d->piece.size,
                           true);

    if (ret == -EAGAIN || ret == -EACCES) {
        error_setg(errp, "0x%" PRIx64 " to 0x%" PRIx64 " of %s is in use, by "
                   "another piece or VM: change phy-offset or size",
                   d->piece.fd_offset, d->piece.fd_offset + d->piece.size,
                   d->path);
        return false;
    }
    if (ret < 0) {
        error_setg_errno(errp, -ret, "cannot lock %s", d->path);
        return false;
    }
    return true;
}

static void not_mappable(HostMemoryDevmem *d, Error **errp)
{
    error_setg(errp, "%s is neither /dev/mem, /dev/tiermem nor a file",
               d->path);
}

static bool check_file(HostMemoryDevmem *d, const struct stat *st, Error **errp)
{
    if (!S_ISREG(st->st_mode)) {
        not_mappable(d, errp);
        return false;
    }
    if (st->st_size < d->phy_offset + d->size) {
        error_setg(errp, "%s has 0x%" PRIx64 " bytes, and phy-offset and size "
                   "ask for 0x%" PRIx64 ": make it larger, or change them",
                   d->path, (uint64_t)st->st_size, d->phy_offset + d->size);
        return false;
    }
    return true;
}

/* Which driver's a character device is tells better than its path. */
static HostMemoryKind kind_of(const struct stat *st)
{
    if (S_ISCHR(st->st_mode)) {
        return st->st_rdev == makedev(1, 1) ? HOST_MEMORY_DEV_MEM
                                            : HOST_MEMORY_TIERMEM;
    }
    return HOST_MEMORY_FILE;
}

/*
 * Whoever may not grant memory has a file with grants passed to it, of which
 * mapping will tell whether this range is among them.
 */
static bool grant(HostMemoryDevmem *d, Error **errp)
{
    struct tiermem_grant arg = {
        .offset = d->phy_offset,
        .size = d->size,
    };

    if (!ioctl(d->piece.fd, TIERMEM_IOC_GRANT, &arg) || errno == EPERM ||
        errno == EBUSY) {
        return true;
    }
    if (errno == ENOTTY) {
        not_mappable(d, errp);
        return false;
    }
    error_setg_errno(errp, errno, "%s does not give 0x%" PRIx64 " to 0x%" PRIx64
                     ": /sys/class/misc/tiermem/ranges lists what it has",
                     d->path, d->phy_offset, d->phy_offset + d->size);
    return false;
}

static bool open_path(HostMemoryDevmem *d, HostMemoryContainer *container,
                      Error **errp)
{
    int tiermem = host_memory_container_tiermem(container);
    struct stat st;

    if (!d->path) {
        d->path = g_strdup(access(DEV_TIERMEM, F_OK) ? DEV_MEM : DEV_TIERMEM);
    }
    d->piece.fd = qemu_open(d->path, O_RDWR, errp);
    if (d->piece.fd < 0) {
        return false;
    }
    if (fstat(d->piece.fd, &st)) {
        error_setg_errno(errp, errno, "cannot examine %s", d->path);
        return false;
    }
    d->piece.kind = kind_of(&st);
    switch (d->piece.kind) {
    case HOST_MEMORY_DEV_MEM:
        if (!check_iomem(d->phy_offset, d->phy_offset + d->size, errp)) {
            return false;
        }
        break;
    case HOST_MEMORY_TIERMEM:
        /* Only pages that one file owns can be swapped. */
        if (tiermem >= 0) {
            close(d->piece.fd);
            d->piece.fd = qemu_dup(tiermem);
            if (d->piece.fd < 0) {
                error_setg_errno(errp, errno, "cannot duplicate a descriptor");
                return false;
            }
        }
        return grant(d, errp);
    case HOST_MEMORY_FILE:
        if (!check_file(d, &st, errp)) {
            return false;
        }
    }
    return lock_range(d, errp);
}

static bool open_memdev(HostMemoryDevmem *d, Error **errp)
{
    Object *obj = find_object(d->memdev, TYPE_MEMORY_BACKEND, "memdev", errp);
    HostMemoryBackend *backend;
    RAMBlock *rb;
    int fd;

    if (!obj) {
        return false;
    }
    backend = MEMORY_BACKEND(obj);
    if (host_memory_backend_is_mapped(backend)) {
        error_setg(errp, "memdev '%s' is in use already", d->memdev);
        return false;
    }
    rb = backend->mr.ram_block;
    if (qemu_ram_get_fd(rb) < 0 || !qemu_ram_is_shared(rb)) {
        error_setg(errp, "memdev '%s' has no file to map again: use a "
                   "memory-backend-memfd, -shm or -file with share=on",
                   d->memdev);
        return false;
    }
    if (!d->size && d->phy_offset < backend->size) {
        d->size = backend->size - d->phy_offset;
    }
    if (!d->size || d->phy_offset + d->size > backend->size) {
        error_setg(errp, "memdev '%s' has 0x%" PRIx64 " bytes, and phy-offset "
                   "and size ask for 0x%" PRIx64 ": change them", d->memdev,
                   backend->size, d->phy_offset + d->size);
        return false;
    }
    fd = qemu_dup(qemu_ram_get_fd(rb));
    if (fd < 0) {
        error_setg_errno(errp, errno, "cannot duplicate a descriptor");
        return false;
    }
    d->piece.fd = fd;
    d->piece.fd_offset = rb->fd_offset + d->phy_offset;
    d->piece.kind = HOST_MEMORY_FILE;
    d->backend = backend;
    object_ref(obj);
    host_memory_backend_set_mapped(backend, true);
    return true;
}

static bool check_alignment(HostMemoryDevmem *d, Error **errp)
{
    size_t page = qemu_fd_getpagesize(d->piece.fd);
    const struct {
        const char *name;
        uint64_t value;
    } values[] = {
        { "size", d->size },
        { "offset", d->offset },
        { "phy-offset", d->phy_offset },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(values); i++) {
        if (!QEMU_IS_ALIGNED(values[i].value, page)) {
            error_setg(errp, "%s 0x%" PRIx64 " is not a multiple of %zu, the "
                       "page size of what it is mapped from", values[i].name,
                       values[i].value, page);
            return false;
        }
    }
    return true;
}

static bool check_properties(HostMemoryDevmem *d, Error **errp)
{
    if (!d->parent) {
        error_setg(errp, "parent is missing: name a memory-backend-container");
        return false;
    }
    if (d->memdev && d->path) {
        error_setg(errp, "path and memdev exclude each other");
        return false;
    }
    if (!d->size && !d->memdev) {
        error_setg(errp, "size is missing");
        return false;
    }
    if (d->phy_offset + d->size < d->size || d->offset + d->size < d->size) {
        error_setg(errp, "size 0x%" PRIx64 " is too large", d->size);
        return false;
    }
    return true;
}

static bool join_container(HostMemoryDevmem *d, Error **errp)
{
    Object *obj = find_object(d->parent, TYPE_MEMORY_BACKEND_CONTAINER,
                              "parent", errp);
    HostMemoryContainer *container;

    if (!obj) {
        return false;
    }
    container = MEMORY_BACKEND_CONTAINER(obj);
    d->piece.fd_offset = d->phy_offset;
    d->piece.size = d->size;
    if (!(d->memdev ? open_memdev(d, errp) : open_path(d, container, errp)) ||
        !check_alignment(d, errp)) {
        return false;
    }
    d->piece.owner = OBJECT(d);
    d->piece.id = my_id(d);
    d->piece.offset = d->offset;
    d->piece.size = d->size;
    if (!host_memory_container_add(container, &d->piece, errp)) {
        return false;
    }
    d->container = container;
    object_ref(obj);
    return true;
}

static void devmem_complete(UserCreatable *uc, Error **errp)
{
    HostMemoryDevmem *d = MEMORY_BACKEND_DEVMEM(uc);
    ERRP_GUARD();

    if (!check_properties(d, errp) || !join_container(d, errp)) {
        error_prepend(errp, "memory-backend-devmem '%s': ", my_id(d));
    }
}

static bool devmem_can_be_deleted(UserCreatable *uc)
{
    HostMemoryDevmem *d = MEMORY_BACKEND_DEVMEM(uc);

    return !d->container || !host_memory_container_in_use(d->container);
}

static void devmem_init(Object *obj)
{
    MEMORY_BACKEND_DEVMEM(obj)->piece.fd = -1;
}

static void devmem_finalize(Object *obj)
{
    HostMemoryDevmem *d = MEMORY_BACKEND_DEVMEM(obj);

    if (d->container) {
        host_memory_container_remove(d->container, &d->piece);
        object_unref(OBJECT(d->container));
    }
    if (d->piece.fd >= 0) {
        close(d->piece.fd);
    }
    if (d->backend) {
        host_memory_backend_set_mapped(d->backend, false);
        object_unref(OBJECT(d->backend));
    }
    g_free(d->parent);
    g_free(d->path);
    g_free(d->memdev);
}

/* A property that is one of the strings above, until the piece is mapped. */
#define STR_PROPERTY(field)                                                  \
    static char *get_##field(Object *obj, Error **errp)                      \
    {                                                                        \
        return g_strdup(MEMORY_BACKEND_DEVMEM(obj)->field);                  \
    }                                                                        \
    static void set_##field(Object *obj, const char *value, Error **errp)    \
    {                                                                        \
        HostMemoryDevmem *d = MEMORY_BACKEND_DEVMEM(obj);                    \
                                                                             \
        if (d->container) {                                                  \
            error_setg(errp, "cannot change what is mapped already");        \
            return;                                                          \
        }                                                                    \
        g_free(d->field);                                                    \
        d->field = g_strdup(value);                                          \
    }

STR_PROPERTY(parent)
STR_PROPERTY(path)
STR_PROPERTY(memdev)

static void get_size(Object *obj, Visitor *v, const char *name, void *opaque,
                     Error **errp)
{
    uint64_t value = *(uint64_t *)((char *)obj + (uintptr_t)opaque);

    visit_type_size(v, name, &value, errp);
}

static void set_size(Object *obj, Visitor *v, const char *name, void *opaque,
                     Error **errp)
{
    uint64_t value;

    if (MEMORY_BACKEND_DEVMEM(obj)->container) {
        error_setg(errp, "cannot change what is mapped already");
    } else if (visit_type_size(v, name, &value, errp)) {
        *(uint64_t *)((char *)obj + (uintptr_t)opaque) = value;
    }
}

static void add_size(ObjectClass *oc, const char *name, size_t where,
                     const char *description)
{
    object_class_property_add(oc, name, "size", get_size, set_size, NULL,
                              (void *)where);
    object_class_property_set_description(oc, name, description);
}

static void devmem_class_init(ObjectClass *oc, void *data)
{
    UserCreatableClass *ucc = USER_CREATABLE_CLASS(oc);

    ucc->complete = devmem_complete;
    ucc->can_be_deleted = devmem_can_be_deleted;

    object_class_property_add_str(oc, "parent", get_parent, set_parent);
    object_class_property_set_description(oc, "parent",
        "the memory-backend-container that it is a piece of");
    object_class_property_add_str(oc, "path", get_path, set_path);
    object_class_property_set_description(oc, "path",
        "/dev/tiermem (the default if it is there), /dev/mem, or a file");
    object_class_property_add_str(oc, "memdev", get_memdev, set_memdev);
    object_class_property_set_description(oc, "memdev",
        "map the memory of this backend, which has a file, instead of path");
    add_size(oc, "offset", offsetof(HostMemoryDevmem, offset),
             "where in the container it begins, in bytes");
    add_size(oc, "size", offsetof(HostMemoryDevmem, size),
             "its size in bytes");
    add_size(oc, "phy-offset", offsetof(HostMemoryDevmem, phy_offset),
             "physical address, or byte of the file, at which it begins");
}

static const TypeInfo devmem_info = {
    .name = TYPE_MEMORY_BACKEND_DEVMEM,
    .parent = TYPE_OBJECT,
    .instance_size = sizeof(HostMemoryDevmem),
    .instance_init = devmem_init,
    .instance_finalize = devmem_finalize,
    .class_init = devmem_class_init,
    .interfaces = (InterfaceInfo[]) {
        { TYPE_USER_CREATABLE },
        { }
    },
};

static void register_types(void)
{
    type_register_static(&devmem_info);
}

type_init(register_types);
