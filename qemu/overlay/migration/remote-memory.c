/*
 * Remote memory: the destination of a split migration, and paging afterwards
 *
 * The stream's section "remote-memory" says which pages are on which memory
 * server.  Once RAM is complete, and before any device state that may touch
 * it, the servers' sessions are claimed and libkintsugi's pager takes over
 * the page faults.  When everything is loaded the handover is committed; only
 * then may the VM run.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "block/thread-pool.h"
#include "exec/memory.h"
#include "exec/ramblock.h"
#include "migration/split.h"
#include "migration.h"
#include "qapi/error.h"
#include "qemu-file.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "qemu/units.h"
#include "remote-memory-internal.h"
#include "system/hostmem-container.h"
#include "system/reset.h"
#include "trace.h"

#define IO_TIMEOUT_MS 5000
/* How long a source may take to read why it is refused */
#define LINGER_MS 2000
/* Plans are a byte a chunk at most; this is one for 64 TiB. */
#define MAX_BLOB_BYTES (4 * GiB)

/* Under the BQL. */
static struct {
    KsPager *pager;
    SplitLayout *layout;
    bool started;
    bool committed;
    bool was_reset; /* between the plan and the start */
    /* Of remote_memory_commit(), while it waits for the arbiter */
    bool committing;
    QemuEvent commit_over;
    char *refusal; /* why the stream was refused */
    bool discard_required;
    bool initialized;
} remote;

KsPager *remote_pager(void)
{
    return remote.pager;
}

KsPager *remote_pager_started(void)
{
    return remote.started ? remote.pager : NULL;
}

/* ---- Loading ------------------------------------------------------------- */

/* The source is told it too. */
static void G_GNUC_PRINTF(1, 2) refuse(const char *format, ...)
{
    va_list ap;

    g_free(remote.refusal);
    va_start(ap, format);
    remote.refusal = g_strdup_vprintf(format, ap);
    va_end(ap);
    error_report("remote memory: %s", remote.refusal);
}

static void refuse_err(Error *err)
{
    refuse("%s", error_get_pretty(err));
    error_free(err);
}

const char *remote_memory_refusal(void)
{
    return remote.refusal;
}

/*
 * The source is still sending, and a connection that is closed with bytes
 * unread would take the reason with it.
 */
void remote_memory_let_read(QEMUFile *f)
{
    int64_t end = qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + LINGER_MS;
    QIOChannel *ioc = qemu_file_get_ioc(f);
    g_autofree char *sink = g_malloc(64 * KiB);
    ssize_t got;

    qio_channel_shutdown(ioc, QIO_CHANNEL_SHUTDOWN_WRITE, NULL);
    qio_channel_set_blocking(ioc, false, NULL);
    do {
        got = qio_channel_read(ioc, sink, 64 * KiB, NULL);
        if (got == QIO_CHANNEL_ERR_BLOCK) {
            g_usleep(1000);
        }
    } while ((got > 0 || got == QIO_CHANNEL_ERR_BLOCK) &&
             qemu_clock_get_ms(QEMU_CLOCK_REALTIME) < end);
}

static int load_error(const KsError *err)
{
    refuse("%s", err->message);
    return -err->code;
}

static void *get_blob(QEMUFile *f, uint64_t *bytes)
{
    g_autofree uint8_t *blob = NULL;

    *bytes = qemu_get_be64(f);
    if (*bytes > MAX_BLOB_BYTES) {
        refuse("a record of %" PRIu64 " bytes in the "
                     "stream", *bytes);
        return NULL;
    }
    blob = g_try_malloc(MAX(*bytes, 1));
    if (!blob) {
        refuse("no memory for a record of %" PRIu64
                     " bytes", *bytes);
        return NULL;
    }
    if (qemu_get_buffer(f, blob, *bytes) != *bytes) {
        return NULL;
    }
    return g_steal_pointer(&blob);
}

static SplitBlock *find_block(const char *idstr)
{
    for (unsigned i = 0; i < remote.layout->count; i++) {
        if (!strcmp(remote.layout->blocks[i].rb->idstr, idstr)) {
            return &remote.layout->blocks[i];
        }
    }
    return NULL;
}

/*
 * The source's blocks must be this VM's, in whatever order.  The source's order
 * numbers the pages.
 */
static bool load_blocks(QEMUFile *f)
{
    uint32_t count = qemu_get_be32(f);
    uint64_t next_page = 0;

    if (count != remote.layout->count) {
        refuse("the source splits %u RAM blocks, this VM "
                     "has %u: start both with the same memory options", count,
                     remote.layout->count);
        return false;
    }
    for (unsigned i = 0; i < count; i++) {
        SplitBlock *block;
        char idstr[256];
        uint64_t pages;

        if (!qemu_get_counted_string(f, idstr)) {
            return false;
        }
        pages = qemu_get_be64(f);
        block = find_block(idstr);
        if (!block || pages != block->pages) {
            refuse("the source's RAM block '%s' has %"
                         PRIu64 " pages, this VM has %s: start both with the "
                         "same memory options", idstr, pages,
                         block ? "another size of it" : "no such block");
            return false;
        }
        block->first_page = next_page;
        next_page += pages;
    }
    return next_page == remote.layout->pages;
}

/* Firmware may have been put where remote memory is to be. */
static void on_reset(void *opaque)
{
    remote.was_reset = true;
}

static int load_plan(QEMUFile *f)
{
    g_autofree void *plan = NULL;
    KsPagerConfig config = {
        .io_timeout_ms = IO_TIMEOUT_MS,
        .on_server_event = remote_lost_on_event,
    };
    Error *local_err = NULL;
    KsError err = {};
    uint64_t bytes;

    if (remote.pager) {
        refuse("a second plan in the stream");
        return -EINVAL;
    }
    if (!remote.initialized) {
        remote.initialized = true;
        remote_lost_init();
        qemu_event_init(&remote.commit_over, true);
        qemu_register_reset(on_reset, NULL);
    }
    plan = get_blob(f, &bytes);
    if (!plan) {
        return -EINVAL;
    }
    config.page_out = (KsPageOut)qemu_get_byte(f);
    if (config.page_out > KS_PAGE_OUT_PAGEOUT) {
        refuse("unknown page-out method %d",
                     config.page_out);
        return -EINVAL;
    }
    if (config.page_out == KS_PAGE_OUT_WRITE_PROTECT &&
        !remote_check_write_protection(&local_err)) {
        refuse_err(local_err);
        return -EINVAL;
    }
    split_layout_free(remote.layout);
    remote.layout = split_layout_new();
    if (!split_layout_check(remote.layout, &local_err) ||
        !remote_check_prealloc(remote.layout, &local_err) ||
        !host_memory_container_allows("remote memory", &local_err)) {
        refuse_err(local_err);
        return -EINVAL;
    }
    if (!load_blocks(f)) {
        return -EINVAL;
    }
    config.vm_pages = remote.layout->pages;
    remote.pager = ks_pager_new(plan, bytes, &config, &err);
    if (!remote.pager) {
        return load_error(&err);
    }
    if (ks_pager_connect(remote.pager, &err) < 0) {
        return load_error(&err);
    }
    for (unsigned i = 0; i < remote.layout->count; i++) {
        const SplitBlock *block = &remote.layout->blocks[i];

        if (ks_pager_add_region(remote.pager, block->rb->host,
                                block->first_page, block->pages, &err) < 0) {
            return load_error(&err);
        }
    }
    /* Keeps devices that pin memory from being plugged. */
    if (ram_block_discard_require(true) < 0) {
        refuse("a device has the guest's memory pinned");
        return -EBUSY;
    }
    remote.discard_required = true;
    remote.was_reset = false;
    trace_remote_memory_plan(remote.layout->pages);
    return 0;
}

static int load_changes(QEMUFile *f, bool end)
{
    g_autofree void *changes = NULL;
    Error *local_err = NULL;
    KsPagerStats stats;
    KsError err = {};
    uint64_t bytes;

    if (!remote.pager || remote.started) {
        refuse("changes out of turn in the stream");
        return -EINVAL;
    }
    changes = get_blob(f, &bytes);
    if (!changes) {
        return -EINVAL;
    }
    if (ks_pager_apply_changes(remote.pager, changes, bytes, &err) < 0) {
        return load_error(&err);
    }
    if (!end) {
        return 0;
    }
    if (remote.was_reset && ks_pager_discard_remote(remote.pager, &err) < 0) {
        return load_error(&err);
    }
    if (ks_pager_start(remote.pager, &err) < 0) {
        return load_error(&err);
    }
    remote.started = true;
    access_tracker_attach(ks_pager_history(remote.pager), remote.layout,
                          (AccessPolicy)ks_pager_policy(remote.pager),
                          (uint64_t)ks_pager_chunk_pages(remote.pager) *
                          KS_PAGE_SIZE, &local_err);
    if (local_err) {
        warn_report_err(local_err);
        warn_report("remote memory: pages out without knowing what the guest "
                    "touches, except for its page faults");
    }
    remote_lost_begin();
    remote_query_begin(remote.pager, remote.layout);
    ks_pager_stats(remote.pager, &stats);
    if (stats.page_out == KS_PAGE_OUT_WRITE_PROTECT &&
        !remote_check_write_protection(&local_err)) {
        error_prepend(&local_err, "%s; ", stats.page_out_reason);
        refuse_err(local_err);
        return -EINVAL;
    }
    trace_remote_memory_start();
    return 0;
}

int remote_memory_load(QEMUFile *f, void *opaque, int version_id)
{
    uint32_t record = qemu_get_be32(f);

    switch (record) {
    case SPLIT_RECORD_PLAN:
        return load_plan(f);
    case SPLIT_RECORD_CHANGES:
        return load_changes(f, false);
    case SPLIT_RECORD_END:
        return load_changes(f, true);
    default:
        refuse("unknown record %u in the stream", record);
        return -EINVAL;
    }
}

/* On a thread of the pool: the arbiter may take any time to answer. */
static int commit_work(void *opaque)
{
    KsError *err = opaque;
    int ret = ks_pager_commit(remote.pager, err);

    qemu_event_set(&remote.commit_over);
    return ret;
}

bool coroutine_fn remote_memory_commit(Error **errp)
{
    KsError err = {};
    int ret;

    if (!remote.pager) {
        return true;
    }
    if (!remote.started) {
        error_setg(errp, "the stream ended before the remote memory's end");
        return false;
    }
    qemu_event_reset(&remote.commit_over);
    remote.committing = true;
    ret = thread_pool_submit_co(commit_work, &err);
    remote.committing = false;
    if (ret < 0) {
        error_setg(errp, "%s", err.message);
        refuse("%s", err.message);
        return false;
    }
    remote.committed = true;
    trace_remote_memory_commit();
    return true;
}

bool remote_memory_give_up(void)
{
    return !remote.pager || ks_pager_give_up(remote.pager);
}

void remote_memory_cleanup(void)
{
    if (!remote.pager) {
        return;
    }
    if (remote.started) {
        access_tracker_detach(ks_pager_history(remote.pager));
        remote_query_end();
        remote.started = false;
    }
    if (remote.committing) {
        ks_pager_cancel(remote.pager);
        qemu_event_wait(&remote.commit_over);
    }
    /* Without a commit the sessions are the source's. */
    ks_pager_free(remote.pager, remote.committed);
    remote.pager = NULL;
    remote_lost_end();
    if (remote.discard_required) {
        ram_block_discard_require(false);
        remote.discard_required = false;
    }
    trace_remote_memory_cleanup();
}
