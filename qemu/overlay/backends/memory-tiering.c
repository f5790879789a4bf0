/*
 * memory-tiering: what is written often lies in fast memory
 *
 * Joins an access tracker, which tells what was written, a policy in
 * libkintsugi, which decides which pages change places, and a way to swap them
 * (memory-tiering-internal.h).  Decisions, and swaps that need not the BQL, are
 * the work of a thread.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "memory-tiering-object.h"
#include "qapi/error.h"
#include "qapi/qapi-events-memory-tiering.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "trace.h"

MemoryTieringList memory_tierings = QLIST_HEAD_INITIALIZER(memory_tierings);

static const TieringSwapOps *const ways[] = {
    &tiering_swap_tiermem,
    &tiering_swap_nodes,
    &tiering_swap_stop, /* suits every container */
};

/* Swaps have failed for good. */
static void give_up(MemoryTiering *t, const char *reason)
{
    WITH_QEMU_LOCK_GUARD(&t->lock) {
        if (t->gave_up) {
            return;
        }
        t->gave_up = g_strdup(reason);
    }
    error_report("memory-tiering '%s' swaps no more pages: %s", t->id,
                 reason);
    qapi_event_send_memory_tiering_stopped(t->id, reason);
}

static void count_refusal(MemoryTiering *t, const char *reason)
{
    uint64_t *pairs = g_hash_table_lookup(t->refused, reason);

    if (!pairs) {
        pairs = g_new0(uint64_t, 1);
        g_hash_table_insert(t->refused, g_strdup(reason), pairs);
    }
    (*pairs)++;
}

/* Tells the policy what became of its pairs. */
static void report(MemoryTiering *t, int64_t us)
{
    unsigned swapped = 0;

    WITH_QEMU_LOCK_GUARD(&t->lock) {
        for (unsigned i = 0; i < t->count; i++) {
            ks_tiering_report(t->policy, i, !t->results[i]);
            if (t->results[i]) {
                count_refusal(t, t->results[i]);
            } else {
                swapped++;
            }
        }
        t->swap_us += us;
    }
    trace_memory_tiering_swapped(swapped, t->count - swapped, us);
    qapi_event_send_memory_tiering_swapped(t->id, swapped,
                                           t->count - swapped, us);
}

/* Of what decide() has left in t->pairs. */
static void swap_pairs(MemoryTiering *t)
{
    int64_t start = g_get_monotonic_time();
    Error *local_err = NULL;

    for (unsigned i = 0; i < t->count; i++) {
        t->results[i] = "swapping has failed";
    }
    if (!t->swap->swap(t->swapper, t->pairs, t->count, t->results,
                       &local_err)) {
        give_up(t, error_get_pretty(local_err));
        error_free(local_err);
    }
    report(t, g_get_monotonic_time() - start);
}

static void swap_bh(void *opaque)
{
    MemoryTiering *t = opaque;

    swap_pairs(t);
    qatomic_store_release(&t->swapping, false);
}

/* Whether there are pairs to swap. */
static bool decide(MemoryTiering *t)
{
    KsError err = {};
    int64_t start = g_get_monotonic_time();
    int ret;

    QEMU_LOCK_GUARD(&t->lock);
    ret = ks_tiering_decide(t->policy, t->pairs, TIERING_MAX_PAIRS, &t->count,
                            &err);
    t->decide_us = g_get_monotonic_time() - start;
    trace_memory_tiering_decided(t->count, t->decide_us);
    return ret == 0 && t->count;
}

static void *tiering_thread(void *opaque)
{
    MemoryTiering *t = opaque;

    for (;;) {
        qemu_sem_wait(&t->wake);
        if (qatomic_read(&t->stopping)) {
            return NULL;
        }
        /* The main loop may still be busy with the pairs of last time. */
        if (qatomic_load_acquire(&t->swapping) || t->gave_up || !decide(t)) {
            continue;
        }
        if (t->swap->needs_bql) {
            qatomic_set(&t->swapping, true);
            qemu_bh_schedule(t->bh);
        } else {
            swap_pairs(t);
        }
    }
}

/* The policy has no memory left to work with. */
static void check_policy(MemoryTiering *t, int ret)
{
    if (ret < 0 && !t->policy_failed) {
        t->policy_failed = true;
        error_report("memory-tiering '%s': the policy cannot go on: %s",
                     t->id, strerror(-ret));
    }
}

/* What follows is called by the tracker's thread. */

static void begin_scan(AccessListener *listener, int64_t now_ms)
{
    MemoryTiering *t = container_of(listener, MemoryTiering, listener);

    QEMU_LOCK_GUARD(&t->lock);
    t->in_scan = true;
    t->now_ms = now_ms;
    check_policy(t, ks_tiering_begin_scan(t->policy, now_ms));
}

static void feed(AccessListener *listener, uint64_t first_page,
                 const uint64_t *accessed, const uint64_t *written,
                 uint64_t pages)
{
    MemoryTiering *t = container_of(listener, MemoryTiering, listener);
    uint64_t at = first_page - t->first_page;

    if (first_page < t->first_page || at >= t->memory.pages) {
        return; /* of another RAM block */
    }
    QEMU_LOCK_GUARD(&t->lock);
    if (t->in_scan) {
        check_policy(t, ks_tiering_feed_written(t->policy, at, written, pages));
        check_policy(t, ks_tiering_feed_accessed(t->policy, at, accessed,
                                                 pages));
    }
}

static void end_scan(AccessListener *listener)
{
    MemoryTiering *t = container_of(listener, MemoryTiering, listener);

    QEMU_LOCK_GUARD(&t->lock);
    if (!t->in_scan) {
        return; /* it came in the midst of one */
    }
    t->in_scan = false;
    check_policy(t, ks_tiering_end_scan(t->policy));
    if (t->policy_failed || t->now_ms < t->next_decision_ms) {
        return;
    }
    /* The first decision comes after an interval. */
    if (t->next_decision_ms) {
        qemu_sem_post(&t->wake);
    }
    t->next_decision_ms = t->now_ms + t->interval_ms;
}

static void set_fast(void *opaque, uint64_t page, uint64_t pages, bool fast)
{
    MemoryTiering *t = opaque;

    ks_tiering_set_fast(t->policy, page, pages, fast, NULL);
}

static bool choose_way(MemoryTiering *t, Error **errp)
{
    for (unsigned i = 0; i < ARRAY_SIZE(ways); i++) {
        t->swap_reason = ways[i]->suits(&t->memory);
        if (t->swap_reason) {
            t->swap = ways[i];
            t->swapper = t->swap->start(&t->memory, set_fast, t, errp);
            return t->swapper;
        }
    }
    g_assert_not_reached();
}

static bool find_block(MemoryTiering *t, const SplitLayout *layout,
                       Error **errp)
{
    const SplitBlock *block =
        split_layout_find(layout, t->memory.backend->mr.ram_block);

    if (!block) {
        error_setg(errp, "memdev '%s' is not RAM of this VM", t->memdev);
        return false;
    }
    t->first_page = block->first_page;
    return true;
}

bool memory_tiering_start(MemoryTiering *t, Error **errp)
{
    g_autoptr(SplitLayout) layout = split_layout_new();

    if (!find_block(t, layout, errp) || !choose_way(t, errp)) {
        return false;
    }
    t->id = g_strdup(object_get_canonical_path_component(OBJECT(t)));
    /* Not of the context that whoever waits for a block device polls. */
    t->bh = aio_bh_new(iohandler_get_aio_context(), swap_bh, t);
    t->listener = (AccessListener) {
        .begin = begin_scan,
        .feed = feed,
        .end = end_scan,
    };
    if (!access_tracker_listen(&t->listener, layout, errp)) {
        return false;
    }
    t->running = true;
    qemu_thread_create(&t->thread, "memory-tiering", tiering_thread, t,
                       QEMU_THREAD_JOINABLE);
    QLIST_INSERT_HEAD(&memory_tierings, t, next);
    return true;
}

void memory_tiering_stop(MemoryTiering *t)
{
    if (t->running) {
        access_tracker_unlisten(&t->listener);
        qatomic_set(&t->stopping, true);
        qemu_sem_post(&t->wake);
        qemu_thread_join(&t->thread);
        QLIST_REMOVE(t, next);
    }
    if (t->bh) {
        qemu_bh_delete(t->bh);
    }
    if (t->swapper) {
        t->swap->stop(t->swapper);
    }
    g_free(t->id);
}
