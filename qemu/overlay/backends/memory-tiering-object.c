/*
 * Memory tiering: the object and its properties
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/qdev-core.h"
#include "memory-tiering-object.h"
#include "qapi/error.h"
#include "qapi/qapi-builtin-visit.h"
#include "qapi/visitor.h"
#include "qemu/cutils.h"
#include "qemu/lockable.h"
#include "qemu/module.h"
#include "qom/object_interfaces.h"
#include "system/system.h"

#define DEFAULT_POLICY "kintsugi"

/* @list is of NAME=VALUE. */
static bool apply_parameters(MemoryTiering *t, const strList *list,
                             Error **errp)
{
    for (; list; list = list->next) {
        const char *equals = strchr(list->value, '=');
        g_autofree char *name = NULL;
        KsError err = {};
        double value;

        if (!equals || qemu_strtod_finite(equals + 1, NULL, &value)) {
            error_setg(errp, "parameter '%s' is not NAME=NUMBER", list->value);
            return false;
        }
        name = g_strndup(list->value, equals - list->value);
        if (g_str_equal(name, "limit")) {
            error_setg(errp, "limit is a property of its own");
            return false;
        }
        if (ks_tiering_set(t->policy, name, value, &err)) {
            error_setg(errp, "%s", err.message);
            return false;
        }
    }
    return true;
}

static bool check_nodes(MemoryTiering *t, Error **errp)
{
    TieringMemory *m = &t->memory;

    if (bitmap_empty(m->fast_nodes, MAX_NODES) ||
        bitmap_empty(m->slow_nodes, MAX_NODES)) {
        error_setg(errp, "fast-nodes and slow-nodes are needed: name the NUMA "
                   "nodes of both tiers, or a memory-backend-container as "
                   "memdev");
        return false;
    }
    if (bitmap_intersects(m->fast_nodes, m->slow_nodes, MAX_NODES)) {
        error_setg(errp, "a NUMA node is in fast-nodes and in slow-nodes");
        return false;
    }
    if (phase_check(PHASE_MACHINE_READY) || m->backend->prealloc) {
        error_setg(errp, "memory of NUMA nodes is bound before it is used: "
                   "give the object on the command line, and no prealloc=on");
        return false;
    }
    if (!m->fast_size || m->fast_size >= m->backend->size ||
        !QEMU_IS_ALIGNED(m->fast_size, KS_PAGE_SIZE)) {
        error_setg(errp, "fast-size must be a multiple of %u, more than 0 and "
                   "less than the memory's 0x%" PRIx64, KS_PAGE_SIZE,
                   m->backend->size);
        return false;
    }
    return true;
}

/* Pieces that are deleted meanwhile stay until the object is, too. */
static void keep_pieces(TieringMemory *m)
{
    const HostMemoryPiece *piece;

    for (piece = host_memory_container_first(m->container); piece;
         piece = QLIST_NEXT(piece, next)) {
        object_ref(piece->owner);
        g_ptr_array_add(m->pieces, (gpointer)piece);
    }
}

static void drop_pieces(TieringMemory *m)
{
    for (unsigned i = 0; i < m->pieces->len; i++) {
        object_unref(((HostMemoryPiece *)m->pieces->pdata[i])->owner);
    }
    g_ptr_array_free(m->pieces, true);
    g_ptr_array_free(m->fast, true);
}

static const HostMemoryPiece *find_piece(const TieringMemory *m, const char *id)
{
    for (unsigned i = 0; i < m->pieces->len; i++) {
        const HostMemoryPiece *piece = m->pieces->pdata[i];

        if (g_str_equal(piece->id, id)) {
            return piece;
        }
    }
    return NULL;
}

static bool check_pieces(MemoryTiering *t, Error **errp)
{
    TieringMemory *m = &t->memory;

    if (!bitmap_empty(m->fast_nodes, MAX_NODES) ||
        !bitmap_empty(m->slow_nodes, MAX_NODES) || m->fast_size) {
        error_setg(errp, "fast-nodes, slow-nodes and fast-size are not for a "
                   "memory-backend-container: set fast");
        return false;
    }
    if (!t->fast) {
        error_setg(errp, "fast is missing: name the pieces of '%s' that are "
                   "fast memory", t->memdev);
        return false;
    }
    for (strList *l = t->fast; l; l = l->next) {
        const HostMemoryPiece *piece = find_piece(m, l->value);

        if (!piece) {
            error_setg(errp, "'%s' is not a piece of '%s'", l->value,
                       t->memdev);
            return false;
        }
        if (!tiering_is_fast(m, piece)) {
            g_ptr_array_add(m->fast, (gpointer)piece);
            m->fast_size += piece->size;
        }
    }
    if (m->fast_size >= m->backend->size) {
        error_setg(errp, "all of '%s' is fast", t->memdev);
        return false;
    }
    return true;
}

static bool find_memory(MemoryTiering *t, Error **errp)
{
    TieringMemory *m = &t->memory;
    Object *obj;

    if (!t->memdev) {
        error_setg(errp, "memdev is missing: name a memory backend");
        return false;
    }
    obj = object_resolve_path_component(object_get_objects_root(), t->memdev);
    obj = obj ? object_dynamic_cast(obj, TYPE_MEMORY_BACKEND) : NULL;
    if (!obj) {
        error_setg(errp, "memdev '%s' is not a memory backend: create it "
                   "before", t->memdev);
        return false;
    }
    object_ref(obj);
    m->backend = MEMORY_BACKEND(obj);
    m->container = (HostMemoryContainer *)
        object_dynamic_cast(obj, TYPE_MEMORY_BACKEND_CONTAINER);
    m->host = memory_region_get_ram_ptr(&m->backend->mr);
    m->pages = m->backend->size / KS_PAGE_SIZE;
    if (!host_memory_container_check(m->backend, errp)) {
        return false;
    }
    if (m->container) {
        keep_pieces(m);
    }
    return true;
}

static bool make_policy(MemoryTiering *t, Error **errp)
{
    KsError err = {};

    t->policy = ks_tiering_new(t->memory.pages, t->policy_name, &err);
    if (!t->policy || ks_tiering_set(t->policy, "limit", t->limit, &err)) {
        error_setg(errp, "%s", err.message);
        return false;
    }
    return !t->parameters || apply_parameters(t, t->parameters, errp);
}

static void machine_done(Notifier *n, void *data)
{
    MemoryTiering *t = container_of(n, MemoryTiering, machine_done);

    memory_tiering_start(t, &error_fatal);
}

static void tiering_complete(UserCreatable *uc, Error **errp)
{
    MemoryTiering *t = MEMORY_TIERING(uc);
    ERRP_GUARD();

    if (find_memory(t, errp) && make_policy(t, errp) &&
        (t->memory.container ? check_pieces(t, errp) : check_nodes(t, errp))) {
        if (phase_check(PHASE_MACHINE_READY)) {
            memory_tiering_start(t, errp);
        } else {
            t->machine_done.notify = machine_done;
            qemu_add_machine_init_done_notifier(&t->machine_done);
        }
    }
    if (*errp) {
        error_prepend(errp, "memory-tiering: ");
    }
}

static void tiering_init(Object *obj)
{
    MemoryTiering *t = MEMORY_TIERING(obj);

    t->policy_name = g_strdup(DEFAULT_POLICY);
    t->interval_ms = 5000;
    t->limit = 1000;
    t->memory.pieces = g_ptr_array_new();
    t->memory.fast = g_ptr_array_new();
    t->refused = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    qemu_mutex_init(&t->lock);
    qemu_sem_init(&t->wake, 0);
}

static void tiering_finalize(Object *obj)
{
    MemoryTiering *t = MEMORY_TIERING(obj);

    if (t->machine_done.notify) {
        qemu_remove_machine_init_done_notifier(&t->machine_done);
    }
    memory_tiering_stop(t);
    ks_tiering_free(t->policy);
    drop_pieces(&t->memory);
    if (t->memory.backend) {
        object_unref(OBJECT(t->memory.backend));
    }
    qapi_free_strList(t->fast);
    qapi_free_strList(t->parameters);
    g_hash_table_destroy(t->refused);
    g_free(t->gave_up);
    g_free(t->memdev);
    g_free(t->policy_name);
    qemu_sem_destroy(&t->wake);
    qemu_mutex_destroy(&t->lock);
}

/* Properties of which pages lie where are set before the object is complete. */
static bool check_unset(MemoryTiering *t, Error **errp)
{
    if (t->policy) {
        error_setg(errp, "cannot be changed: delete the object and make "
                   "another");
    }
    return !t->policy;
}

static char *get_memdev(Object *obj, Error **errp)
{
    return g_strdup(MEMORY_TIERING(obj)->memdev);
}

static void set_memdev(Object *obj, const char *value, Error **errp)
{
    MemoryTiering *t = MEMORY_TIERING(obj);

    if (check_unset(t, errp)) {
        g_free(t->memdev);
        t->memdev = g_strdup(value);
    }
}

static char *get_policy(Object *obj, Error **errp)
{
    return g_strdup(MEMORY_TIERING(obj)->policy_name);
}

static void set_policy(Object *obj, const char *value, Error **errp)
{
    MemoryTiering *t = MEMORY_TIERING(obj);
    KsError err = {};

    if (t->policy) {
        QEMU_LOCK_GUARD(&t->lock);
        if (ks_tiering_set_policy(t->policy, value, &err)) {
            error_setg(errp, "%s", err.message);
            return;
        }
    }
    g_free(t->policy_name);
    t->policy_name = g_strdup(value);
}

static void get_fast(Object *obj, Visitor *v, const char *name, void *opaque,
                     Error **errp)
{
    visit_type_strList(v, name, &MEMORY_TIERING(obj)->fast, errp);
}

static void set_fast(Object *obj, Visitor *v, const char *name, void *opaque,
                     Error **errp)
{
    MemoryTiering *t = MEMORY_TIERING(obj);
    strList *list;

    if (check_unset(t, errp) && visit_type_strList(v, name, &list, errp)) {
        qapi_free_strList(t->fast);
        t->fast = list;
    }
}

/* @opaque: where in TieringMemory the bitmap lies. */
static unsigned long *nodes_of(Object *obj, void *opaque)
{
    return (void *)&MEMORY_TIERING(obj)->memory + (uintptr_t)opaque;
}

static void get_nodes(Object *obj, Visitor *v, const char *name, void *opaque,
                      Error **errp)
{
    unsigned long *nodes = nodes_of(obj, opaque);
    uint16List *list = NULL, **tail = &list;

    for (unsigned n = find_first_bit(nodes, MAX_NODES); n < MAX_NODES;
         n = find_next_bit(nodes, MAX_NODES, n + 1)) {
        QAPI_LIST_APPEND(tail, n);
    }
    visit_type_uint16List(v, name, &list, errp);
    qapi_free_uint16List(list);
}

static void set_nodes(Object *obj, Visitor *v, const char *name, void *opaque,
                      Error **errp)
{
    uint16List *list;

    if (!check_unset(MEMORY_TIERING(obj), errp) ||
        !visit_type_uint16List(v, name, &list, errp)) {
        return;
    }
    for (uint16List *l = list; l; l = l->next) {
        if (l->value >= MAX_NODES) {
            error_setg(errp, "there is no NUMA node %u", l->value);
        } else {
            set_bit(l->value, nodes_of(obj, opaque));
        }
    }
    qapi_free_uint16List(list);
}

static void get_fast_size(Object *obj, Visitor *v, const char *name,
                          void *opaque, Error **errp)
{
    visit_type_size(v, name, &MEMORY_TIERING(obj)->memory.fast_size, errp);
}

static void set_fast_size(Object *obj, Visitor *v, const char *name,
                          void *opaque, Error **errp)
{
    MemoryTiering *t = MEMORY_TIERING(obj);

    if (check_unset(t, errp)) {
        visit_type_size(v, name, &t->memory.fast_size, errp);
    }
}

static void get_number(Object *obj, Visitor *v, const char *name, void *opaque,
                       Error **errp)
{
    visit_type_uint32(v, name, (void *)obj + (uintptr_t)opaque, errp);
}

static void set_interval(Object *obj, Visitor *v, const char *name,
                         void *opaque, Error **errp)
{
    MemoryTiering *t = MEMORY_TIERING(obj);
    uint32_t value;

    if (!visit_type_uint32(v, name, &value, errp)) {
        return;
    }
    if (!value) {
        error_setg(errp, "interval must be at least 1 ms");
        return;
    }
    QEMU_LOCK_GUARD(&t->lock);
    t->interval_ms = value;
    t->next_decision_ms = MIN(t->next_decision_ms, t->now_ms + value);
}

static void set_limit(Object *obj, Visitor *v, const char *name, void *opaque,
                      Error **errp)
{
    MemoryTiering *t = MEMORY_TIERING(obj);
    KsError err = {};
    uint32_t value;

    if (!visit_type_uint32(v, name, &value, errp)) {
        return;
    }
    if (value > TIERING_MAX_PAIRS) {
        error_setg(errp, "limit must be at most %u", TIERING_MAX_PAIRS);
        return;
    }
    QEMU_LOCK_GUARD(&t->lock);
    if (t->policy && ks_tiering_set(t->policy, "limit", value, &err)) {
        error_setg(errp, "%s", err.message);
        return;
    }
    t->limit = value;
}

static void get_parameters(Object *obj, Visitor *v, const char *name,
                           void *opaque, Error **errp)
{
    MemoryTiering *t = MEMORY_TIERING(obj);
    strList *list = NULL, **tail = &list;
    KsTieringParameter p;

    WITH_QEMU_LOCK_GUARD(&t->lock) {
        for (unsigned i = 0;
             t->policy && ks_tiering_parameter(t->policy, i, &p); i++) {
            QAPI_LIST_APPEND(tail, g_strdup_printf("%s=%g", p.name, p.value));
        }
    }
    visit_type_strList(v, name, &list, errp);
    qapi_free_strList(list);
}

static void set_parameters(Object *obj, Visitor *v, const char *name,
                           void *opaque, Error **errp)
{
    MemoryTiering *t = MEMORY_TIERING(obj);
    strList *list;

    if (!visit_type_strList(v, name, &list, errp)) {
        return;
    }
    if (!t->policy) {
        qapi_free_strList(t->parameters);
        t->parameters = list;
        return;
    }
    WITH_QEMU_LOCK_GUARD(&t->lock) {
        apply_parameters(t, list, errp);
    }
    qapi_free_strList(list);
}

static void tiering_class_init(ObjectClass *oc, void *data)
{
    UserCreatableClass *ucc = USER_CREATABLE_CLASS(oc);
    const struct {
        const char *name, *type;
        ObjectPropertyAccessor *get, *set;
        size_t opaque;
        const char *description;
    } properties[] = {
        { "fast", "strList", get_fast, set_fast, 0,
          "pieces of the container that are fast memory" },
        { "fast-nodes", "uint16List", get_nodes, set_nodes,
          offsetof(TieringMemory, fast_nodes),
          "host NUMA nodes of fast memory" },
        { "slow-nodes", "uint16List", get_nodes, set_nodes,
          offsetof(TieringMemory, slow_nodes),
          "host NUMA nodes of slow memory" },
        { "fast-size", "size", get_fast_size, set_fast_size, 0,
          "bytes of the fast nodes' memory to use" },
        { "interval", "uint32", get_number, set_interval,
          offsetof(MemoryTiering, interval_ms),
          "milliseconds between decisions" },
        { "limit", "uint32", get_number, set_limit,
          offsetof(MemoryTiering, limit), "most pairs to swap in a decision" },
        { "parameters", "strList", get_parameters, set_parameters, 0,
          "the policy's own parameters, NAME=VALUE" },
    };

    ucc->complete = tiering_complete;
    object_class_property_add_str(oc, "memdev", get_memdev, set_memdev);
    object_class_property_set_description(oc, "memdev",
        "the memory backend whose pages are swapped");
    object_class_property_add_str(oc, "policy", get_policy, set_policy);
    object_class_property_set_description(oc, "policy",
        "what decides which pages lie where");
    for (unsigned i = 0; i < ARRAY_SIZE(properties); i++) {
        object_class_property_add(oc, properties[i].name, properties[i].type,
                                  properties[i].get, properties[i].set, NULL,
                                  (void *)properties[i].opaque);
        object_class_property_set_description(oc, properties[i].name,
                                              properties[i].description);
    }
}

static const TypeInfo tiering_info = {
    .name = TYPE_MEMORY_TIERING,
    .parent = TYPE_OBJECT,
    .instance_size = sizeof(MemoryTiering),
    .instance_init = tiering_init,
    .instance_finalize = tiering_finalize,
    .class_init = tiering_class_init,
    .interfaces = (InterfaceInfo[]) {
        { TYPE_USER_CREATABLE },
        { }
    },
};

static void register_types(void)
{
    type_register_static(&tiering_info);
}

type_init(register_types);
