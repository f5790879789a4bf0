/*
 * Access tracker: the object, and who uses it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "access-tracker-internal.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-remote-memory.h"
#include "qapi/qapi-visit-remote-memory.h"
#include "qapi/visitor.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "qemu/module.h"
#include "qemu/units.h"
#include "exec/target_page.h"
#include "hw/qdev-core.h"
#include "qom/object_interfaces.h"
#include "system/system.h"

/* Of a tracker made for a listener. */
#define LISTENERS_ID "memory-tiering-tracker"

/* The machine has its accelerator and its RAM: start. */
static void start_scanning(Notifier *n, void *data)
{
    AccessTracker *t = container_of(n, AccessTracker, machine_done);
    KsError err = {};

    /* Plugged into a running VM, this was checked before. */
    access_tracker_check_source(t, &error_fatal);
    t->layout = split_layout_new();
    if (!t->layout->pages) {
        warn_report("access-tracker: this machine has no RAM from memory "
                    "backends to track");
        return;
    }
    if (!t->history) {
        t->owns_history = true;
        t->history = ks_history_new(t->layout->pages,
                                    t->chunk_size / KS_PAGE_SIZE,
                                    (KsPolicy)t->policy, t->shift_ticks, &err);
        if (!t->history) {
            error_report("access-tracker: %s", err.message);
            return;
        }
    }
    access_tracker_start(t);
}

static void access_tracker_complete(UserCreatable *uc, Error **errp)
{
    AccessTracker *t = ACCESS_TRACKER(uc);

    if (the_access_tracker) {
        error_setg(errp, "there is an access-tracker already: one serves the "
                   "whole VM");
        return;
    }
    if (phase_check(PHASE_MACHINE_READY) &&
        !access_tracker_check_source(t, errp)) {
        return;
    }
    if (qemu_target_page_size() != KS_PAGE_SIZE) {
        error_setg(errp, "access-tracker needs a target with pages of %u "
                   "bytes", KS_PAGE_SIZE);
        return;
    }
    if (!is_power_of_2(t->chunk_size) || t->chunk_size < KS_PAGE_SIZE ||
        t->chunk_size > 128 * MiB) {
        error_setg(errp, "chunk-size must be a power of two from %u to 128M",
                   KS_PAGE_SIZE);
        return;
    }
    if (t->record) {
        t->record_file = fopen(t->record, "w");
        if (!t->record_file) {
            error_setg_errno(errp, errno, "cannot record accesses to '%s'",
                             t->record);
            return;
        }
    }
    the_access_tracker = t;
    t->machine_done.notify = start_scanning;
    qemu_add_machine_init_done_notifier(&t->machine_done);
}

static bool access_tracker_can_be_deleted(UserCreatable *uc)
{
    AccessTracker *t = ACCESS_TRACKER(uc);

    return !t->attached && !t->listener && (t->owns_history || !t->history);
}

static void access_tracker_init(Object *obj)
{
    AccessTracker *t = ACCESS_TRACKER(obj);

    t->period_ms = 1000;
    t->shift_ticks = 4;
    t->chunk_size = 64 * KiB;
    t->policy = ACCESS_POLICY_AGING;
    qemu_mutex_init(&t->lock);
    qemu_sem_init(&t->wake, 0);
}

static void access_tracker_finalize(Object *obj)
{
    AccessTracker *t = ACCESS_TRACKER(obj);

    access_tracker_stop(t);
    for (unsigned i = 0; i < ACCESS_SOURCES; i++) {
        g_free(t->refusals[i]);
    }
    if (the_access_tracker == t) {
        qemu_remove_machine_init_done_notifier(&t->machine_done);
        the_access_tracker = NULL;
    }
    if (t->owns_history) {
        ks_history_free(t->history);
    }
    if (t->record_file) {
        fclose(t->record_file);
    }
    g_free(t->record);
    split_layout_free(t->layout);
    qemu_sem_destroy(&t->wake);
    qemu_mutex_destroy(&t->lock);
}

static void get_uint32(Object *obj, Visitor *v, const char *name, void *opaque,
                       Error **errp)
{
    visit_type_uint32(v, name, (void *)obj + (uintptr_t)opaque, errp);
}

static void set_positive(Object *obj, Visitor *v, const char *name,
                         void *opaque, Error **errp)
{
    uint32_t value;

    if (!visit_type_uint32(v, name, &value, errp)) {
        return;
    }
    if (!value) {
        error_setg(errp, "%s must be at least 1", name);
        return;
    }
    *(uint32_t *)((void *)obj + (uintptr_t)opaque) = value;
}

static void get_chunk_size(Object *obj, Visitor *v, const char *name,
                           void *opaque, Error **errp)
{
    visit_type_size(v, name, &ACCESS_TRACKER(obj)->chunk_size, errp);
}

static void set_chunk_size(Object *obj, Visitor *v, const char *name,
                           void *opaque, Error **errp)
{
    visit_type_size(v, name, &ACCESS_TRACKER(obj)->chunk_size, errp);
}

static int get_policy(Object *obj, Error **errp)
{
    return ACCESS_TRACKER(obj)->policy;
}

static void set_policy(Object *obj, int value, Error **errp)
{
    ACCESS_TRACKER(obj)->policy = value;
}

static int get_source(Object *obj, Error **errp)
{
    return ACCESS_TRACKER(obj)->source;
}

static void set_source(Object *obj, int value, Error **errp)
{
    ACCESS_TRACKER(obj)->has_source = true;
    ACCESS_TRACKER(obj)->source = value;
}

static char *get_record(Object *obj, Error **errp)
{
    return g_strdup(ACCESS_TRACKER(obj)->record);
}

static void set_record(Object *obj, const char *value, Error **errp)
{
    AccessTracker *t = ACCESS_TRACKER(obj);

    g_free(t->record);
    t->record = g_strdup(value);
}

static void access_tracker_class_init(ObjectClass *oc, void *data)
{
    UserCreatableClass *ucc = USER_CREATABLE_CLASS(oc);

    ucc->complete = access_tracker_complete;
    ucc->can_be_deleted = access_tracker_can_be_deleted;

    object_class_property_add(oc, "period", "uint32", get_uint32, set_positive,
                              NULL, (void *)offsetof(AccessTracker, period_ms));
    object_class_property_set_description(oc, "period",
                                          "milliseconds between scans");
    object_class_property_add(oc, "shift-ticks", "uint32", get_uint32,
                              set_positive, NULL,
                              (void *)offsetof(AccessTracker, shift_ticks));
    object_class_property_set_description(oc, "shift-ticks",
                                          "scans between shifts (aging)");
    object_class_property_add(oc, "chunk-size", "size", get_chunk_size,
                              set_chunk_size, NULL, NULL);
    object_class_property_set_description(oc, "chunk-size",
                                          "bytes ranked as one");
    object_class_property_add_enum(oc, "policy", "AccessPolicy",
                                   &AccessPolicy_lookup, get_policy,
                                   set_policy);
    object_class_property_add_enum(oc, "source", "AccessSource",
                                   &AccessSource_lookup, get_source,
                                   set_source);
    object_class_property_set_description(oc, "source",
                                          "where accessed bits come from");
    object_class_property_add_str(oc, "record", get_record, set_record);
    object_class_property_set_description(oc, "record",
                                          "file to record accesses to");
}

static const TypeInfo access_tracker_info = {
    .name = TYPE_ACCESS_TRACKER,
    .parent = TYPE_OBJECT,
    .instance_size = sizeof(AccessTracker),
    .instance_init = access_tracker_init,
    .instance_finalize = access_tracker_finalize,
    .class_init = access_tracker_class_init,
    .interfaces = (InterfaceInfo[]) {
        { TYPE_USER_CREATABLE },
        { }
    },
};

static void access_tracker_register_types(void)
{
    type_register_static(&access_tracker_info);
}

type_init(access_tracker_register_types);

/* The VM's tracker must be for the RAM of @layout. */
static bool check_layout(const SplitLayout *layout, Error **errp)
{
    if (!split_layout_equal(the_access_tracker->layout, layout)) {
        error_setg(errp, "the VM's memory was changed since the access-tracker "
                   "was made: delete it");
        return false;
    }
    return true;
}

/* Completes a tracker that nobody but the caller has asked for. */
static bool make_tracker(AccessTracker *t, const char *id, Error **errp)
{
    if (!user_creatable_complete(USER_CREATABLE(t), errp)) {
        object_unref(OBJECT(t));
        return false;
    }
    object_property_add_child(object_get_objects_root(), id, OBJECT(t));
    object_unref(OBJECT(t));
    return true;
}

void access_tracker_attach(KsHistory *history, const SplitLayout *layout,
                           AccessPolicy policy, uint64_t chunk_size,
                           Error **errp)
{
    AccessTracker *t = the_access_tracker;

    if (t && t->running) {
        if (check_layout(layout, errp)) {
            QEMU_LOCK_GUARD(&t->lock);
            t->attached = history;
        }
        return;
    }
    t = ACCESS_TRACKER(object_new(TYPE_ACCESS_TRACKER));
    t->history = history;
    t->policy = policy;
    t->chunk_size = chunk_size;
    make_tracker(t, "remote-memory", errp);
}

bool access_tracker_listen(AccessListener *listener,
                           const SplitLayout *layout, Error **errp)
{
    AccessTracker *t = the_access_tracker;

    if (!t) {
        t = ACCESS_TRACKER(object_new(TYPE_ACCESS_TRACKER));
        t->listener = listener;
        return make_tracker(t, LISTENERS_ID, errp);
    }
    if (t->layout && !t->running) {
        error_setg(errp, "the access-tracker does not run");
        return false;
    }
    if (t->listener) {
        error_setg(errp, "there is a memory-tiering already: one serves the "
                   "whole VM");
        return false;
    }
    /* One that is about to start has none yet. */
    if (t->layout && !check_layout(layout, errp)) {
        return false;
    }
    if (t->has_source && !access_tracker_source_writes(t->source)) {
        error_setg(errp, "the access-tracker's source '%s' does not tell "
                   "writes: choose another, or none",
                   AccessSource_str(t->source));
        return false;
    }
    WITH_QEMU_LOCK_GUARD(&t->lock) {
        t->listener = listener;
    }
    return true;
}

void access_tracker_unlisten(AccessListener *listener)
{
    AccessTracker *t = the_access_tracker;

    if (!t || t->listener != listener) {
        return;
    }
    WITH_QEMU_LOCK_GUARD(&t->lock) {
        t->listener = NULL;
    }
    if (!t->attached &&
        g_str_equal(object_get_canonical_path_component(OBJECT(t)),
                    LISTENERS_ID)) {
        object_unparent(OBJECT(t));
    }
}

const char *access_tracker_source(const char **misses)
{
    const AccessSourceOps *ops;

    if (!the_access_tracker) {
        return NULL;
    }
    WITH_QEMU_LOCK_GUARD(&the_access_tracker->lock) {
        ops = the_access_tracker->ops;
    }
    if (!ops) {
        return NULL;
    }
    *misses = ops->misses;
    return AccessSource_str(ops->source);
}

void access_tracker_detach(KsHistory *history)
{
    AccessTracker *t = the_access_tracker;

    if (!t) {
        return;
    }
    if (t->history == history) {
        object_unparent(OBJECT(t));
        return;
    }
    WITH_QEMU_LOCK_GUARD(&t->lock) {
        if (t->attached == history) {
            t->attached = NULL;
        }
    }
}

AccessTracker *access_tracker_get(const SplitLayout *layout)
{
    AccessTracker *t = the_access_tracker;

    if (!t || !t->running || !split_layout_equal(t->layout, layout)) {
        return NULL;
    }
    object_ref(OBJECT(t));
    return t;
}

void access_tracker_put(AccessTracker *t)
{
    object_unref(OBJECT(t));
}

const KsHistory *access_tracker_history(AccessTracker *t)
{
    return t->history;
}

KsPolicy access_tracker_policy(AccessTracker *t)
{
    return (KsPolicy)t->policy;
}

uint32_t access_tracker_chunk_pages(AccessTracker *t)
{
    return t->chunk_size / KS_PAGE_SIZE;
}

static AccessSourceRefusalList *collect_refusals(const AccessTracker *t)
{
    AccessSourceRefusalList *list = NULL, **tail = &list;

    for (unsigned i = 0; i < ACCESS_SOURCES; i++) {
        if (t->refusals[i]) {
            AccessSourceRefusal *refusal = g_new0(AccessSourceRefusal, 1);

            refusal->source = access_sources[i]->source;
            refusal->reason = g_strdup(t->refusals[i]);
            QAPI_LIST_APPEND(tail, refusal);
        }
    }
    return list;
}

AccessTrackerInfoList *qmp_query_access_tracker(Error **errp)
{
    AccessTracker *t = the_access_tracker;
    AccessTrackerInfoList *list = NULL;
    AccessTrackerInfo *info;

    if (!t || !t->running) {
        return NULL;
    }
    info = g_new0(AccessTrackerInfo, 1);
    info->id = g_strdup(object_get_canonical_path_component(OBJECT(t)));
    info->period = t->period_ms;
    info->policy = t->policy;
    info->chunk_size = t->chunk_size;
    info->pages = t->layout->pages;
    WITH_QEMU_LOCK_GUARD(&t->lock) {
        if (t->ops) {
            info->has_source = true;
            info->source = t->ops->source;
            info->sees = g_strdup(t->ops->sees);
            info->misses = g_strdup(t->ops->misses);
        }
        info->refused = collect_refusals(t);
        info->scans = t->scans;
        info->accessed = t->accessed;
        info->scan_time = t->scan_us;
    }
    QAPI_LIST_PREPEND(list, info);
    return list;
}
