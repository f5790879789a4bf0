/*
 * Split migration, source side: what goes into the stream, and what past it
 *
 * Pages planned for a sub-host go to libkintsugi's senders; the stream has the
 * plan, what has changed since, and an end.  What the senders do counts for the
 * bandwidth and for the downtime.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "exec/ramblock.h"
#include "exec/target_page.h"
#include "migration/misc.h"
#include "migration/register.h"
#include "migration.h"
#include "migration-stats.h"
#include "options.h"
#include "qapi/error.h"
#include "qemu-file.h"
#include "qemu/stats64.h"
#include "ram.h"
#include "split-internal.h"
#include "trace.h"

/* Pages between two looks at what the senders have sent. */
#define ACCOUNT_PAGES 64
/* How long an iteration with nothing to do leaves the senders alone */
#define DRAIN_WAIT_US 1000
/* The senders' backlog may take one part in this many of the downtime limit. */
#define DOWNTIME_SHARE 8

/* The migration thread's */
static struct {
    uint64_t accounted_bytes;
    unsigned unaccounted_pages;
    bool queued; /* pages since the last iteration */
    const SplitBlock *last_block;
    double slowdown; /* of what is left, to what QEMU believes */
} stream;

static void account(void)
{
    uint64_t bytes = ks_split_sent_bytes(split_job.ks);

    stat64_add(&mig_stats.multifd_bytes, bytes - stream.accounted_bytes);
    stream.accounted_bytes = bytes;
    stream.unaccounted_pages = 0;
}

int split_stream_failed(const KsError *err)
{
    Error *local_err = NULL;

    error_setg(&local_err, "%s", err->message);
    migrate_set_error(migrate_get_current(), local_err);
    error_free(local_err);
    return -(err->code ?: EIO);
}

bool split_migration_save_page(RAMBlock *rb, ram_addr_t offset, int *res)
{
    const SplitBlock *block = stream.last_block;
    uint64_t page;
    int ret;

    if (!block || block->rb != rb) {
        block = split_layout_find(split_job.layout, rb);
        if (!block) {
            return false;
        }
        stream.last_block = block;
    }
    page = block->first_page + (offset >> TARGET_PAGE_BITS);
    if (!ks_split_owner(split_job.ks, page)) {
        return false;
    }
    ret = ks_split_send(split_job.ks, page, rb->host + offset);
    if (ret < 0) {
        KsError err = {};

        ks_split_error(split_job.ks, &err);
        *res = split_stream_failed(&err);
        return true;
    }
    stream.queued = true;
    if (++stream.unaccounted_pages >= ACCOUNT_PAGES) {
        account();
    }
    *res = 1;
    return true;
}

static bool split_is_active(void *opaque)
{
    return split_migration_active();
}

static void put_blob(QEMUFile *f, SplitRecord record, void *data, size_t bytes)
{
    qemu_put_be32(f, record);
    qemu_put_be64(f, bytes);
    qemu_put_buffer(f, data, bytes);
}

static int split_save_setup(QEMUFile *f, void *opaque, Error **errp)
{
    g_autofree void *plan = NULL;
    KsError err = {};
    size_t bytes;

    if (ks_split_encode_plan(split_job.ks, &plan, &bytes, &err) < 0) {
        error_setg(errp, "%s", err.message);
        return -err.code;
    }
    /* The records at the end are small, and part of the downtime. */
    qio_channel_set_delay(qemu_file_get_ioc(f), false);
    put_blob(f, SPLIT_RECORD_PLAN, plan, bytes);
    qemu_put_byte(f, split_job.page_out);
    qemu_put_be32(f, split_job.layout->count);
    for (unsigned i = 0; i < split_job.layout->count; i++) {
        const SplitBlock *block = &split_job.layout->blocks[i];

        qemu_put_counted_string(f, block->rb->idstr);
        qemu_put_be64(f, block->pages);
    }
    return qemu_file_get_error(f);
}

static int put_changes(QEMUFile *f, SplitRecord record)
{
    g_autofree void *changes = NULL;
    KsError err = {};
    size_t bytes;

    if (ks_split_encode_changes(split_job.ks, &changes, &bytes, &err) < 0) {
        return split_stream_failed(&err);
    }
    put_blob(f, record, changes, bytes);
    return 0;
}

/* Nothing to say yet; but without it the section would not begin. */
static int split_begin_changes(QEMUFile *f, void *opaque, Error **errp)
{
    return put_changes(f, SPLIT_RECORD_CHANGES);
}

static int split_save_iterate(QEMUFile *f, void *opaque)
{
    KsError err = {};
    int ret;

    ks_split_kick(split_job.ks);
    account();
    if (ks_split_error(split_job.ks, &err) < 0) {
        return split_stream_failed(&err);
    }
    if (!stream.queued && ks_split_pending(split_job.ks)) {
        /* RAM is clean; the senders need time, not another look at it. */
        g_usleep(DRAIN_WAIT_US);
    }
    stream.queued = false;
    ret = put_changes(f, SPLIT_RECORD_CHANGES);
    return ret < 0 ? ret : 1;
}

/*
 * Called after RAM is complete, with the VM stopped.  From here until the
 * destination has said yes or no it may have taken the VM over.
 */
static int split_save_complete(QEMUFile *f, void *opaque)
{
    KsError err = {};

    trace_split_migration_flush(ks_split_pending(split_job.ks));
    if (ks_split_flush(split_job.ks, &err) < 0) {
        return split_stream_failed(&err);
    }
    account();
    if (ks_split_end(split_job.ks, &err) < 0) {
        return split_stream_failed(&err);
    }
    split_handover_end_sent();
    trace_split_migration_handover();
    return put_changes(f, SPLIT_RECORD_END);
}

bool split_migration_rate_exceeded(void)
{
    uint64_t max = migration_rate_get();
    uint64_t used;

    if (!split_migration_active() || max == RATE_LIMIT_DISABLED) {
        return false;
    }
    used = migration_transferred_bytes() -
           stat64_get(&mig_stats.rate_limit_start) +
           ks_split_pending(split_job.ks) * KS_PAGE_SIZE;
    return used > max;
}

/* Of the pages that the guest has written, the part that goes to sub-hosts */
static double dirty_sub_share(void)
{
    uint64_t all = ram_bytes_remaining() / KS_PAGE_SIZE;
    uint64_t count = 0;

    for (unsigned i = 0; i < split_job.layout->count; i++) {
        const SplitBlock *block = &split_job.layout->blocks[i];
        unsigned long page = find_first_bit(block->rb->bmap, block->pages);

        while (page < block->pages) {
            count += ks_split_owner(split_job.ks, block->first_page + page) != 0;
            page = find_next_bit(block->rb->bmap, block->pages, page + 1);
        }
    }
    return all ? MIN(1.0, (double)count / all) : 0;
}

/*
 * QEMU estimates the downtime from what went all ways together.  If what is
 * left goes one way mostly, it takes longer.  And what waits in the senders is
 * not written by the guest again: sent while the VM runs, it costs no
 * downtime, so only a small part may be left for that.
 */
static void split_state_pending_estimate(void *opaque, uint64_t *must_precopy,
                                         uint64_t *can_postcopy)
{
    ks_split_period(split_job.ks, migrate_get_current()->iteration_start_time,
                    migration_transferred_bytes() - stream.accounted_bytes,
                    stream.accounted_bytes);
    *must_precopy += (stream.slowdown - 1) * ram_bytes_remaining() +
                     ks_split_pending(split_job.ks) * KS_PAGE_SIZE *
                     DOWNTIME_SHARE;
}

/* After RAM's, which has just learned what the guest has written. */
static void split_state_pending_exact(void *opaque, uint64_t *must_precopy,
                                      uint64_t *can_postcopy)
{
    double share = dirty_sub_share();

    stream.slowdown = ks_split_slowdown(split_job.ks, share);
    trace_split_migration_pace(share * 100, stream.slowdown * 100);
    split_state_pending_estimate(opaque, must_precopy, can_postcopy);
}

/* Comes before RAM's, so that a destination can refuse it with a reason. */
static const SaveVMHandlers plan_handlers = {
    .is_active = split_is_active,
    .save_setup = split_save_setup,
    .load_state = remote_memory_load,
};

/* Comes after RAM's, as its end does. */
static const SaveVMHandlers split_handlers = {
    .is_active = split_is_active,
    .save_setup = split_begin_changes,
    .save_live_iterate = split_save_iterate,
    .save_live_complete_precopy = split_save_complete,
    .state_pending_estimate = split_state_pending_estimate,
    .state_pending_exact = split_state_pending_exact,
    .load_state = remote_memory_load,
};

void split_stream_begin(void)
{
    stream.accounted_bytes = 0;
    stream.unaccounted_pages = 0;
    stream.queued = false;
    stream.last_block = NULL;
    stream.slowdown = 1;
}

void split_migration_init_plan(void)
{
    register_savevm_live("remote-memory-plan", 0, 1, &plan_handlers, NULL);
}

void split_migration_init(void)
{
    register_savevm_live("remote-memory", 0, 1, &split_handlers, NULL);
    split_migration_init_job();
}
