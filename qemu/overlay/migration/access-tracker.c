/*
 * Access tracker: finds out periodically which pages the guest has touched
 *
 * A thread scans once a period and feeds an access history in libkintsugi,
 * which ranks chunks of memory for splitting a VM and for paging it out.
 *
 * Where accessed bits come from is an access source (access-source.h): the best
 * that works here, or the one that the user names.  One that fails while it is
 * used gives way to the next.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-remote-memory.h"
#include "qapi/qapi-visit-remote-memory.h"
#include "qapi/visitor.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "qemu/thread.h"
#include "qemu/units.h"
#include "exec/ramblock.h"
#include "exec/ramlist.h"
#include "exec/target_page.h"
#include "hw/qdev-core.h"
#include "migration/access-source.h"
#include "qom/object_interfaces.h"
#include "system/runstate.h"
#include "system/system.h"
#include "trace.h"

#define TYPE_ACCESS_TRACKER "access-tracker"
OBJECT_DECLARE_SIMPLE_TYPE(AccessTracker, ACCESS_TRACKER)

/* The best first. */
static const AccessSourceOps *const sources[] = {
    &access_source_tcg,
    &access_source_kvm,
    &access_source_idle,
    &access_source_wp_async,
    &access_source_dirty_log,
};

struct AccessTracker {
    Object parent_obj;

    /* Properties */
    uint32_t period_ms;
    uint32_t shift_ticks;
    uint64_t chunk_size;
    AccessPolicy policy;
    bool has_source; /* the user's choice; else the best */
    AccessSource source;
    char *record;

    Notifier machine_done;
    QemuThread thread;
    bool running;
    QemuSemaphore wake;
    bool stopping;

    /* Protects what follows against the scanning thread */
    QemuMutex lock;
    SplitLayout *layout;
    KsHistory *history;
    bool owns_history;
    KsHistory *attached; /* a second one to feed; of the same layout */
    FILE *record_file;
    uint64_t scans;
    uint64_t accessed;
    uint64_t scan_us;
    unsigned next_source; /* of sources[], to try when there is none */
    const AccessSourceOps *ops; /* NULL before the first scan */
    void *opaque;
    char *refusals[ARRAY_SIZE(sources)]; /* why not this source */
};

/* There is one: two would take each other's accessed bits.  Under the BQL. */
static AccessTracker *the_tracker;

static void record_run(AccessTracker *t, uint64_t first, uint64_t count)
{
    fprintf(t->record_file, "%" PRIu64 " %" PRIu64 "\n", first, count);
}

/* Appends the set bits of a scan, as runs. */
static void record_words(AccessTracker *t, uint64_t first_page,
                         const uint64_t *words, uint64_t pages)
{
    const unsigned long *map = (const unsigned long *)words;
    uint64_t end;

    for (uint64_t at = find_first_bit(map, pages); at < pages;
         at = find_next_bit(map, pages, end)) {
        end = find_next_zero_bit(map, pages, at);
        record_run(t, first_page + at, end - at);
    }
}

static void refuse(AccessTracker *t, unsigned source, Error *err)
{
    QEMU_LOCK_GUARD(&t->lock);
    g_free(t->refusals[source]);
    t->refusals[source] = g_strdup(error_get_pretty(err));
    error_free(err);
}

static bool wanted(const AccessTracker *t, const AccessSourceOps *ops)
{
    return !t->has_source || ops->source == t->source;
}

static void set_source_in_use(AccessTracker *t, const AccessSourceOps *ops,
                              void *opaque)
{
    QEMU_LOCK_GUARD(&t->lock);
    t->ops = ops;
    t->opaque = opaque;
}

/* Finds the next source that works.  False: there is none. */
static bool choose_source(AccessTracker *t)
{
    for (; t->next_source < ARRAY_SIZE(sources); t->next_source++) {
        const AccessSourceOps *ops = sources[t->next_source];
        Error *local_err = NULL;
        void *opaque = NULL;

        if (!wanted(t, ops)) {
            continue;
        }
        if (ops->check(&local_err)) {
            opaque = ops->start(t->layout, &local_err);
        }
        if (opaque) {
            set_source_in_use(t, ops, opaque);
            trace_access_tracker_source(AccessSource_str(ops->source));
            return true;
        }
        refuse(t, t->next_source, local_err);
    }
    return false;
}

/* The source has failed; the next scan begins with another. */
static void give_up_source(AccessTracker *t, Error *err)
{
    warn_report("access-tracker: source %s: %s",
                AccessSource_str(t->ops->source), error_get_pretty(err));
    t->ops->stop(t->opaque);
    set_source_in_use(t, NULL, NULL);
    refuse(t, t->next_source++, err);
}

static void feed(AccessTracker *t, uint64_t first_page, const uint64_t *words,
                 uint64_t pages)
{
    WITH_QEMU_LOCK_GUARD(&t->lock) {
        ks_history_feed(t->history, first_page, words, pages);
        if (t->attached) {
            ks_history_feed(t->attached, first_page, words, pages);
        }
    }
    if (t->record_file) {
        record_words(t, first_page, words, pages);
    }
}

static bool scan_block(AccessTracker *t, const SplitBlock *block,
                       uint64_t *accessed, Error **errp)
{
    uint64_t words[ACCESS_SOURCE_PAGES / 64];

    for (uint64_t page = 0; page < block->pages;) {
        uint64_t pages = MIN(block->pages - page, ACCESS_SOURCE_PAGES);
        uint64_t found = 0;

        memset(words, 0, sizeof(words));
        if (!t->ops->harvest(t->opaque, block, page, pages, words, errp)) {
            return false;
        }
        for (uint64_t i = 0; i < DIV_ROUND_UP(pages, 64); i++) {
            found += ctpop64(words[i]);
        }
        if (found) {
            *accessed += found;
            feed(t, block->first_page + page, words, pages);
        }
        page += pages;
    }
    return true;
}

static bool scan_blocks(AccessTracker *t, uint64_t *accessed, Error **errp)
{
    if (t->ops->begin && !t->ops->begin(t->opaque, errp)) {
        return false;
    }
    for (unsigned i = 0; i < t->layout->count; i++) {
        if (!scan_block(t, &t->layout->blocks[i], accessed, errp)) {
            return false;
        }
    }
    if (t->ops->end) {
        t->ops->end(t->opaque);
    }
    return true;
}

/* The lock is never held in a source's functions: they may wait for the BQL. */
static void scan(AccessTracker *t)
{
    int64_t start = g_get_monotonic_time();
    Error *local_err = NULL;
    uint64_t accessed = 0;

    if (!t->ops && !choose_source(t)) {
        return;
    }
    WITH_QEMU_LOCK_GUARD(&t->lock) {
        ks_history_tick(t->history);
        if (t->attached) {
            ks_history_tick(t->attached);
        }
    }
    if (t->record_file) {
        fputs("scan\n", t->record_file);
    }
    if (!scan_blocks(t, &accessed, &local_err)) {
        give_up_source(t, local_err);
        return;
    }
    if (t->record_file) {
        fflush(t->record_file);
    }
    WITH_QEMU_LOCK_GUARD(&t->lock) {
        t->scans++;
        t->accessed = accessed;
        t->scan_us = g_get_monotonic_time() - start;
    }
    trace_access_tracker_scan(t->scans, t->accessed, t->scan_us);
}

static void *scan_thread(void *opaque)
{
    AccessTracker *t = opaque;

    rcu_register_thread();
    while (!qatomic_read(&t->stopping)) {
        if (qemu_sem_timedwait(&t->wake, t->period_ms) < 0 &&
            !runstate_check(RUN_STATE_INMIGRATE)) {
            scan(t);
        }
    }
    rcu_unregister_thread();
    return NULL;
}

/* Whether there is a source at all, or the one that was asked for. */
static bool check_source(const AccessTracker *t, Error **errp)
{
    ERRP_GUARD();

    for (unsigned i = 0; i < ARRAY_SIZE(sources); i++) {
        if (wanted(t, sources[i])) {
            error_free(*errp);
            *errp = NULL;
            if (sources[i]->check(errp)) {
                return true;
            }
        }
    }
    error_prepend(errp, "access-tracker, source=%s: ",
                  t->has_source ? AccessSource_str(t->source) : "any");
    return false;
}

/* The machine has its accelerator and its RAM: start. */
static void start_scanning(Notifier *n, void *data)
{
    AccessTracker *t = container_of(n, AccessTracker, machine_done);
    KsError err = {};

    /* Plugged into a running VM, this was checked before. */
    check_source(t, &error_fatal);
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
    if (t->record_file) {
        fprintf(t->record_file, "kintsugi-access-trace 1\npages %" PRIu64 "\n",
                t->layout->pages);
    }
    t->running = true;
    qemu_thread_create(&t->thread, "access-tracker", scan_thread, t,
                       QEMU_THREAD_JOINABLE);
    trace_access_tracker_start(t->layout->pages, t->period_ms);
}

static void access_tracker_complete(UserCreatable *uc, Error **errp)
{
    AccessTracker *t = ACCESS_TRACKER(uc);

    if (the_tracker) {
        error_setg(errp, "there is an access-tracker already: one serves the "
                   "whole VM");
        return;
    }
    if (phase_check(PHASE_MACHINE_READY) && !check_source(t, errp)) {
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
    the_tracker = t;
    t->machine_done.notify = start_scanning;
    qemu_add_machine_init_done_notifier(&t->machine_done);
}

static bool access_tracker_can_be_deleted(UserCreatable *uc)
{
    AccessTracker *t = ACCESS_TRACKER(uc);

    return !t->attached && (t->owns_history || !t->history);
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

    if (t->running) {
        qatomic_set(&t->stopping, true);
        qemu_sem_post(&t->wake);
        /* A scan may be waiting for the BQL. */
        bql_unlock();
        qemu_thread_join(&t->thread);
        bql_lock();
    }
    if (t->ops) {
        t->ops->stop(t->opaque);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(sources); i++) {
        g_free(t->refusals[i]);
    }
    if (the_tracker == t) {
        qemu_remove_machine_init_done_notifier(&t->machine_done);
        the_tracker = NULL;
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

void access_tracker_attach(KsHistory *history, const SplitLayout *layout,
                           AccessPolicy policy, uint64_t chunk_size,
                           Error **errp)
{
    Object *obj;

    if (the_tracker && the_tracker->running) {
        if (!split_layout_equal(the_tracker->layout, layout)) {
            error_setg(errp, "the VM's memory was changed since the "
                       "access-tracker was made: delete it");
            return;
        }
        WITH_QEMU_LOCK_GUARD(&the_tracker->lock) {
            the_tracker->attached = history;
        }
        return;
    }
    obj = object_new(TYPE_ACCESS_TRACKER);
    ACCESS_TRACKER(obj)->history = history;
    ACCESS_TRACKER(obj)->policy = policy;
    ACCESS_TRACKER(obj)->chunk_size = chunk_size;
    if (!user_creatable_complete(USER_CREATABLE(obj), errp)) {
        object_unref(obj);
        return;
    }
    object_property_add_child(object_get_objects_root(), "remote-memory", obj);
    object_unref(obj);
}

void access_tracker_detach(KsHistory *history)
{
    AccessTracker *t = the_tracker;

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
    AccessTracker *t = the_tracker;

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

    for (unsigned i = 0; i < ARRAY_SIZE(sources); i++) {
        if (t->refusals[i]) {
            AccessSourceRefusal *refusal = g_new0(AccessSourceRefusal, 1);

            refusal->source = sources[i]->source;
            refusal->reason = g_strdup(t->refusals[i]);
            QAPI_LIST_APPEND(tail, refusal);
        }
    }
    return list;
}

AccessTrackerInfoList *qmp_query_access_tracker(Error **errp)
{
    AccessTracker *t = the_tracker;
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
