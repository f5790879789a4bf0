/*
 * Access tracker: finds out periodically which pages the guest has touched
 *
 * A thread scans once a period and feeds an access history in libkintsugi,
 * which ranks chunks of memory for splitting a VM and for paging it out, and a
 * listener, which wants to know what was written.
 *
 * Where accessed bits come from is an access source (access-source.h): the best
 * that works here, or the one that the user names.  One that fails while it is
 * used gives way to the next.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "access-tracker-internal.h"
#include "qapi/error.h"
#include "qapi/qapi-types-access-tracker.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "system/runstate.h"
#include "trace.h"

#define WORDS (ACCESS_SOURCE_PAGES / 64)

/* The best first. */
const AccessSourceOps *const access_sources[ACCESS_SOURCES] = {
    &access_source_tcg,
    &access_source_kvm,
    &access_source_idle,
    &access_source_wp_async,
    &access_source_dirty_log,
};

AccessTracker *the_access_tracker;

/* Where the run of @page ends: of pages that are written, or are not. */
static uint64_t end_of_run(const uint64_t *accessed, const uint64_t *written,
                           uint64_t page, uint64_t pages)
{
    const unsigned long *a = (const unsigned long *)accessed;
    const unsigned long *w = (const unsigned long *)written;
    uint64_t end = find_next_zero_bit(a, pages, page);

    return MIN(end, test_bit(page, w) ? find_next_zero_bit(w, pages, page)
                                      : find_next_bit(w, pages, page));
}

/* Appends what was accessed, as runs: docs/access-trace.md. */
static void record(AccessTracker *t, uint64_t first_page,
                   const uint64_t *accessed, const uint64_t *written,
                   uint64_t pages)
{
    const unsigned long *map = (const unsigned long *)accessed;
    uint64_t end;

    for (uint64_t at = find_first_bit(map, pages); at < pages;
         at = find_next_bit(map, pages, end)) {
        end = end_of_run(accessed, written, at, pages);
        if (t->ops->writes) {
            fputs(test_bit(at, (const unsigned long *)written) ? "w " : "r ",
                  t->record_file);
        }
        fprintf(t->record_file, "%" PRIu64 " %" PRIu64 "\n", first_page + at,
                end - at);
    }
}

/* A trace tells reads from writes, or it does not. */
static void record_scan(AccessTracker *t)
{
    if (!t->scans_recorded++) {
        t->record_writes = t->ops->writes;
        fprintf(t->record_file, "kintsugi-access-trace %d\npages %" PRIu64
                "\n# scans of %u ms by %s\n", t->record_writes ? 2 : 1,
                t->layout->pages, t->period_ms,
                AccessSource_str(t->ops->source));
    }
    if (t->record_writes != t->ops->writes) {
        warn_report("access-tracker: source %s cannot go on with the recording "
                    "'%s', which ends here", AccessSource_str(t->ops->source),
                    t->record);
        fclose(t->record_file);
        t->record_file = NULL;
        return;
    }
    fputs("scan\n", t->record_file);
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

/* Whether somebody is there who cannot do without writes. */
static bool need_writes(AccessTracker *t)
{
    QEMU_LOCK_GUARD(&t->lock);
    return t->listener;
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
    for (; t->next_source < ACCESS_SOURCES; t->next_source++) {
        const AccessSourceOps *ops = access_sources[t->next_source];
        Error *local_err = NULL;
        void *opaque = NULL;

        if (!wanted(t, ops)) {
            continue;
        }
        if (need_writes(t) && !ops->writes) {
            error_setg(&local_err, "it does not tell writes");
        } else if (ops->check(&local_err)) {
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

static void feed(AccessTracker *t, uint64_t first_page,
                 const uint64_t *accessed, const uint64_t *written,
                 uint64_t pages)
{
    WITH_QEMU_LOCK_GUARD(&t->lock) {
        ks_history_feed(t->history, first_page, accessed, pages);
        if (t->attached) {
            ks_history_feed(t->attached, first_page, accessed, pages);
        }
        if (t->listener) {
            t->listener->feed(t->listener, first_page, accessed, written,
                              pages);
        }
    }
    if (t->record_file) {
        record(t, first_page, accessed, written, pages);
    }
}

static bool scan_block(AccessTracker *t, const SplitBlock *block,
                       uint64_t *accessed, Error **errp)
{
    uint64_t accessed_words[WORDS], written_words[WORDS];
    /* What sees nothing but writes tells them as accesses. */
    const uint64_t *written = t->ops->reads ? written_words : accessed_words;

    for (uint64_t page = 0; page < block->pages;) {
        uint64_t pages = MIN(block->pages - page, ACCESS_SOURCE_PAGES);
        uint64_t found = 0;

        memset(accessed_words, 0, sizeof(accessed_words));
        memset(written_words, 0, sizeof(written_words));
        if (!t->ops->harvest(t->opaque, block, page, pages, accessed_words,
                             written_words, errp)) {
            return false;
        }
        for (uint64_t i = 0; i < DIV_ROUND_UP(pages, 64); i++) {
            /* The two are not taken in the same instant. */
            accessed_words[i] |= written_words[i];
            found += ctpop64(accessed_words[i]);
        }
        if (found) {
            *accessed += found;
            feed(t, block->first_page + page, accessed_words, written, pages);
        }
        page += pages;
    }
    return true;
}

static bool scan_blocks(AccessTracker *t, uint64_t *accessed, Error **errp)
{
    if (t->ops->begin &&
        !t->ops->begin(t->opaque, need_writes(t) || t->record_file, errp)) {
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

    if (t->ops && need_writes(t) && !t->ops->writes) {
        error_setg(&local_err, "it does not tell writes");
        give_up_source(t, local_err);
        local_err = NULL;
    }
    if (!t->ops && !choose_source(t)) {
        return;
    }
    WITH_QEMU_LOCK_GUARD(&t->lock) {
        ks_history_tick(t->history);
        if (t->attached) {
            ks_history_tick(t->attached);
        }
        if (t->listener) {
            t->listener->begin(t->listener, start / 1000);
        }
    }
    if (t->record_file) {
        record_scan(t);
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
        if (t->listener) {
            t->listener->end(t->listener);
        }
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

bool access_tracker_check_source(const AccessTracker *t, Error **errp)
{
    ERRP_GUARD();

    for (unsigned i = 0; i < ACCESS_SOURCES; i++) {
        if (wanted(t, access_sources[i])) {
            error_free(*errp);
            *errp = NULL;
            if (access_sources[i]->check(errp)) {
                return true;
            }
        }
    }
    error_prepend(errp, "access-tracker, source=%s: ",
                  t->has_source ? AccessSource_str(t->source) : "any");
    return false;
}

bool access_tracker_source_writes(AccessSource source)
{
    for (unsigned i = 0; i < ACCESS_SOURCES; i++) {
        if (access_sources[i]->source == source) {
            return access_sources[i]->writes;
        }
    }
    return false;
}

void access_tracker_start(AccessTracker *t)
{
    t->running = true;
    qemu_thread_create(&t->thread, "access-tracker", scan_thread, t,
                       QEMU_THREAD_JOINABLE);
    trace_access_tracker_start(t->layout->pages, t->period_ms);
}

void access_tracker_stop(AccessTracker *t)
{
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
}
