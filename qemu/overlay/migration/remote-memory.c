/*
 * Remote memory: the destination of a split migration, and paging afterwards
 *
 * The stream's section "remote-memory" says which pages are on which memory
 * server.  Once RAM is complete, and before any device state that may touch
 * it, the servers' sessions are claimed and libkintsugi's pager takes over
 * the page faults.  When everything is loaded the handover is committed; only
 * then may the VM run.
 *
 * When a server is lost the VM is stopped.  A vCPU that waits for one of its
 * pages cannot be stopped, nor waited for: it is told to stop once it gets
 * there, and everything else stops at once.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "block/block-global-state.h"
#include "block/block_int-common.h"
#include "block/graph-lock.h"
#include "block/thread-pool.h"
#include "exec/memory.h"
#include "exec/ramblock.h"
#include "hw/core/cpu.h"
#include "migration/split.h"
#include "migration.h"
#include "monitor/monitor.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-remote-memory.h"
#include "qapi/qapi-events-remote-memory.h"
#include "qapi/qapi-events-run-state.h"
#include "qapi/qapi-types-migration.h"
#include "qemu-file.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "qemu/notify.h"
#include "qemu/units.h"
#include "system/cpus.h"
#include "system/hostmem.h"
#include "system/cpu-timers.h"
#include "system/reset.h"
#include "system/runstate.h"
#include "system/runstate-action.h"
#include "system/system.h"
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
    /* Servers that are lost, and whether the VM is stopped for them */
    char *refusal; /* why the stream was refused */
    unsigned lost;
    bool stopped;
    bool pages_lost; /* since the VM was stopped: it does not go on by itself */
    Notifier shutdown;
    VMChangeStateEntry *vm_state;
    QEMUBH *stop_bh;
    bool discard_required;
} remote;

/* ---- Lost servers -------------------------------------------------------- */

static void stop_for_server(void)
{
    CPUState *cpu;

    if (!runstate_is_running()) {
        return;
    }
    remote.stopped = true;
    runstate_set(RUN_STATE_IO_ERROR);
    cpu_disable_ticks();
    qemu_clock_enable(QEMU_CLOCK_VIRTUAL, false);
    CPU_FOREACH(cpu) {
        cpu->stop = true;
        qemu_cpu_kick(cpu);
    }
    qapi_event_send_stop();
}

static void go_on_with_server(void)
{
    if (!remote.stopped) {
        return;
    }
    remote.stopped = false;
    if (!runstate_check(RUN_STATE_IO_ERROR)) {
        /* The user has changed the state meanwhile. */
        return;
    }
    cpu_enable_ticks();
    runstate_set(RUN_STATE_RUNNING);
    resume_all_vcpus();
    qapi_event_send_resume();
}

typedef struct ServerNews {
    char *uri;
    char *error;
    KsServerState state;
} ServerNews;

/* News in the order they came in.  Filled by pager threads. */
static struct {
    QemuMutex lock;
    GQueue *news;
    QEMUBH *bh;
    /* Set when QEMU ends: whoever hears of a lost server then ends it. */
    bool quitting;
} inbox;

static void server_news_free(ServerNews *news)
{
    g_free(news->uri);
    g_free(news->error);
    g_free(news);
}

static void handle_server_news(const ServerNews *news)
{
    switch (news->state) {
    case KS_SERVER_LOST:
        remote.lost++;
        qapi_event_send_remote_memory_server_lost(news->uri, news->error);
        stop_for_server();
        break;
    case KS_SERVER_PAGES_LOST:
        /* Still lost; only the operator can make it go on. */
        remote.pages_lost = true;
        qapi_event_send_remote_memory_pages_lost(news->uri, news->error);
        error_report("remote memory: %s", news->error);
        break;
    case KS_SERVER_CONNECTED:
        assert(remote.lost);
        remote.lost--;
        qapi_event_send_remote_memory_server_back(news->uri);
        if (!remote.lost && !remote.pages_lost) {
            go_on_with_server();
        }
        break;
    }
}

static void server_news_bh(void *opaque)
{
    for (;;) {
        ServerNews *news;

        WITH_QEMU_LOCK_GUARD(&inbox.lock) {
            news = g_queue_pop_head(inbox.news);
        }
        if (!news) {
            return;
        }
        if (remote.pager) {
            handle_server_news(news);
        }
        server_news_free(news);
    }
}

/*
 * QEMU ends while a server is lost.  Threads that wait for its pages cannot
 * end, and giving them other pages could put wrong data on the guest's disks.
 * So the VM ends as if its power was cut.
 */
static void end_at_once(void)
{
    error_report("remote memory: a memory server is lost, so the VM ends as "
                 "by a power cut; its memory on other servers is to be "
                 "dropped there");
    _exit(EXIT_SUCCESS);
}

/* On a pager thread. */
static void on_server_event(void *opaque, const KsServerEvent *event)
{
    ServerNews *news = g_new0(ServerNews, 1);

    trace_remote_memory_server(event->uri, event->state, event->error);
    news->uri = g_strdup(event->uri);
    news->error = g_strdup(event->error);
    news->state = event->state;
    WITH_QEMU_LOCK_GUARD(&inbox.lock) {
        if (event->state == KS_SERVER_LOST && inbox.quitting) {
            end_at_once();
        }
        g_queue_push_tail(inbox.news, news);
    }
    qemu_bh_schedule(inbox.bh);
}

static void on_shutdown(Notifier *n, void *data)
{
    KsPagerStats stats;

    if (!remote.pager || shutdown_action == SHUTDOWN_ACTION_PAUSE) {
        return;
    }
    WITH_QEMU_LOCK_GUARD(&inbox.lock) {
        inbox.quitting = true;
    }
    ks_pager_stats(remote.pager, &stats);
    if (remote.lost || stats.servers_lost) {
        /* Clients get what they were told, this shutdown included. */
        monitor_cleanup();
        end_at_once();
    }
}

/* A server was lost while the VM was not running, and now it is to run. */
static void on_vm_state(void *opaque, bool running, RunState state)
{
    if (running && remote.lost) {
        qemu_bh_schedule(remote.stop_bh);
    } else if (running) {
        remote.pages_lost = false;
    }
}

static void stop_bh(void *opaque)
{
    if (remote.lost) {
        stop_for_server();
    }
}

bool remote_memory_stopped(Error **errp)
{
    if (!remote.stopped) {
        return false;
    }
    error_setg(errp, "a memory server is lost and the VM is stopped in the "
               "middle of what it does: wait until the server is back");
    return true;
}

void remote_memory_user_stop(void)
{
    remote.stopped = false;
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

/*
 * Direct I/O has pages pinned that write protection cannot see: what the disk
 * writes to a page while it is paged out would be lost.
 */
static bool coroutine_fn check_write_protection(Error **errp)
{
    GRAPH_RDLOCK_GUARD();

    for (BlockDriverState *bs = bdrv_next_node(NULL); bs;
         bs = bdrv_next_node(bs)) {
        if (bs->open_flags & BDRV_O_NOCACHE) {
            error_setg(errp, "remote memory: page-out by write protection "
                       "would lose what block node '%s' reads by direct I/O: "
                       "let page-out be 'auto', or open it with "
                       "cache.direct=off", bdrv_get_node_name(bs));
            return false;
        }
    }
    return true;
}

/* Firmware may have been put where remote memory is to be. */
static void on_reset(void *opaque)
{
    remote.was_reset = true;
}

/*
 * Preallocated memory would be taken whole, and then given back where pages are
 * remote; whoever asked for it does not want paging.
 */
static bool check_prealloc(Error **errp)
{
    for (unsigned i = 0; i < remote.layout->count; i++) {
        RAMBlock *rb = remote.layout->blocks[i].rb;
        Object *owner = rb->mr->owner;

        if (owner && object_dynamic_cast(owner, TYPE_MEMORY_BACKEND) &&
            MEMORY_BACKEND(owner)->prealloc) {
            error_setg(errp, "RAM block '%s' is preallocated here, so it takes "
                       "all of the VM's memory: start the destination with "
                       "prealloc=off, without -mem-prealloc", rb->idstr);
            return false;
        }
    }
    return true;
}

bool remote_memory_allows(const char *what, Error **errp)
{
    if (!remote.pager) {
        return true;
    }
    error_setg(errp, "a VM with remote memory cannot have %s: merge it onto "
               "one host before", what);
    return false;
}

bool remote_memory_allows_direct_io(Error **errp)
{
    KsPagerStats stats;

    if (!remote.started) {
        return true;
    }
    ks_pager_stats(remote.pager, &stats);
    if (stats.page_out != KS_PAGE_OUT_WRITE_PROTECT) {
        return true;
    }
    error_setg(errp, "this VM's memory is paged out by write protection, which "
               "would lose what a block node reads by direct I/O: open it with "
               "cache.direct=off");
    return false;
}

bool remote_memory_allows_caps(const bool *caps, Error **errp)
{
    static const MigrationCapability refused[] = {
        MIGRATION_CAPABILITY_POSTCOPY_RAM,
        MIGRATION_CAPABILITY_BACKGROUND_SNAPSHOT,
        MIGRATION_CAPABILITY_MAPPED_RAM,
        MIGRATION_CAPABILITY_X_COLO,
    };

    for (unsigned i = 0; remote.started && i < ARRAY_SIZE(refused); i++) {
        if (caps[refused[i]]) {
            error_setg(errp, "a VM with remote memory cannot be migrated with "
                       "capability '%s': turn it off",
                       MigrationCapability_str(refused[i]));
            return false;
        }
    }
    return true;
}

static int load_plan(QEMUFile *f)
{
    g_autofree void *plan = NULL;
    KsPagerConfig config = {
        .io_timeout_ms = IO_TIMEOUT_MS,
        .on_server_event = on_server_event,
    };
    Error *local_err = NULL;
    KsError err = {};
    uint64_t bytes;

    if (remote.pager) {
        refuse("a second plan in the stream");
        return -EINVAL;
    }
    if (!inbox.bh) {
        qemu_mutex_init(&inbox.lock);
        inbox.news = g_queue_new();
        inbox.bh = qemu_bh_new(server_news_bh, NULL);
        remote.stop_bh = qemu_bh_new(stop_bh, NULL);
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
        !check_write_protection(&local_err)) {
        refuse_err(local_err);
        return -EINVAL;
    }
    split_layout_free(remote.layout);
    remote.layout = split_layout_new();
    if (!split_layout_check(remote.layout, &local_err) ||
        !check_prealloc(&local_err)) {
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
    remote.shutdown.notify = on_shutdown;
    qemu_register_shutdown_notifier(&remote.shutdown);
    remote.vm_state = qemu_add_vm_change_state_handler(on_vm_state, NULL);
    ks_pager_stats(remote.pager, &stats);
    if (stats.page_out == KS_PAGE_OUT_WRITE_PROTECT &&
        !check_write_protection(&local_err)) {
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
        notifier_remove(&remote.shutdown);
        qemu_del_vm_change_state_handler(remote.vm_state);
        remote.started = false;
    }
    if (remote.committing) {
        ks_pager_cancel(remote.pager);
        qemu_event_wait(&remote.commit_over);
    }
    /* Without a commit the sessions are the source's. */
    ks_pager_free(remote.pager, remote.committed);
    remote.pager = NULL;
    if (remote.discard_required) {
        ram_block_discard_require(false);
        remote.discard_required = false;
    }
    trace_remote_memory_cleanup();
}

/* ---- Figures ------------------------------------------------------------- */

static RemoteMemoryServer *server_info(unsigned i)
{
    RemoteMemoryServer *server = g_new0(RemoteMemoryServer, 1);
    KsPagerServer figures;

    ks_pager_server(remote.pager, i, &figures);
    server->uri = g_strdup(figures.uri);
    server->connected = figures.connected;
    server->pages_lost = figures.pages_lost;
    server->error_desc = figures.connected ? NULL : g_strdup(figures.error);
    server->capacity = figures.capacity_pages;
    server->pages = figures.pages;
    server->page_ins = figures.page_ins;
    server->page_outs = figures.page_outs;
    server->bytes_in = figures.bytes_in;
    server->bytes_out = figures.bytes_out;
    server->reconnects = figures.reconnects;
    return server;
}

RemoteMemoryInfo *qmp_query_remote_memory(Error **errp)
{
    RemoteMemoryInfo *info = g_new0(RemoteMemoryInfo, 1);
    RemoteMemoryServerList **tail = &info->servers;
    KsPagerStats stats;

    if (!remote.started) {
        return info;
    }
    ks_pager_stats(remote.pager, &stats);
    info->active = true;

#define FIGURE(member, figure) do {     \
        info->has_##member = true;      \
        info->member = stats.figure;    \
    } while (0)
    FIGURE(pages, vm_pages);
    FIGURE(limit, limit_pages);
    FIGURE(resident, resident_pages);
    FIGURE(remote, remote_pages);
    FIGURE(zero, zero_pages);
    FIGURE(queued, queued_pages);
    FIGURE(faults, faults);
    FIGURE(page_ins, page_ins);
    FIGURE(prefetched, prefetched_pages);
    FIGURE(zero_fills, zero_fills);
    FIGURE(queue_hits, queue_hits);
    FIGURE(page_outs, page_outs);
    FIGURE(page_outs_zero, page_outs_zero);
    FIGURE(page_outs_refused, page_outs_refused);
    FIGURE(hard_waits, hard_waits);
    FIGURE(page_in_p50, page_in_p50_ns);
    FIGURE(page_in_p99, page_in_p99_ns);
    FIGURE(page_in_max, page_in_max_ns);
    FIGURE(page_out_p50, page_out_p50_ns);
    FIGURE(page_out_p99, page_out_p99_ns);
#undef FIGURE

    info->has_page_out = true;
    info->page_out = (PageOutMethod)stats.page_out;
    info->page_out_reason = g_strdup(stats.page_out_reason);
    info->has_stopped = true;
    info->stopped = remote.stopped;
    info->has_servers = true;
    for (unsigned i = 0; i < stats.servers; i++) {
        QAPI_LIST_APPEND(tail, server_info(i));
    }
    return info;
}
