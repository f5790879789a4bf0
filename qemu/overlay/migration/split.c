/*
 * Split migration, source side
 *
 * A precopy migration whose cold pages bypass the main stream: they go from
 * here to memory servers on the sub-hosts.  libkintsugi plans and sends; this
 * file is the job, from the command to its end, and its figures.  See
 * docs/architecture.md of Kintsugi.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "exec/ramblock.h"
#include "exec/target_page.h"
#include "migration/misc.h"
#include "migration.h"
#include "migration-stats.h"
#include "monitor/monitor.h"
#include "options.h"
#include "qapi/clone-visitor.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-migration.h"
#include "qapi/qapi-commands-remote-memory.h"
#include "qapi/qapi-events-remote-memory.h"
#include "qapi/qapi-visit-remote-memory.h"
#include "qemu/error-report.h"
#include "qemu/cutils.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "qemu/sockets.h"
#include "qemu/units.h"
#include "qemu/uuid.h"
#include "split-internal.h"
#include "system/runstate.h"
#include "system/system.h"
#include "trace.h"

#define CONNECT_TIMEOUT_MS 5000
#define IO_TIMEOUT_MS 10000

SplitJob split_job;

/* Under the BQL */
static struct {
    char *error;
    char *uri;
    int fd; /* of an fd: URI, until the migration takes it; else -1 */
    AccessPolicy policy;
    uint64_t chunk_size;
    bool history;
    bool cancelled;
    bool had_return_path; /* the capability, before we set it */
    QemuThread end_thread; /* gives back what the last job had */
    bool ended; /* there is such a thread, and nobody has joined it */
    /* Of a job that has ended */
    SplitTargetList *targets;
    unsigned sub_hosts;
} split = { .fd = -1 };

/* Protects split_job.ks against going away under split_migration_cancel(). */
static QemuMutex split_job_lock;
static NotifierWithReturn split_notifier;

bool split_migration_active(void)
{
    return qatomic_read(&split_job.ks) && split_job.phase == SPLIT_PHASE_ACTIVE;
}
void split_migration_cancel(void)
{
    MigrationState *s = migrate_get_current();

    WITH_QEMU_LOCK_GUARD(&split_job_lock) {
        if (split_job.ks) {
            split.cancelled = true;
            ks_split_cancel(split_job.ks);
        }
    }
    /* The main host was still being connected to: nobody else will end it. */
    if (split_migration_active() && s->state == MIGRATION_STATUS_CANCELLED) {
        split_job_end(SPLIT_PHASE_CANCELLED, NULL);
    }
}
/* ---- Figures ------------------------------------------------------------- */

static SplitTargetList *collect_targets(void)
{
    SplitTargetList *list = NULL, **tail = &list;

    for (unsigned i = 0; i <= split.sub_hosts; i++) {
        SplitTarget *target = g_new0(SplitTarget, 1);
        KsSplitTarget figures;

        ks_split_target(split_job.ks, i, &figures);
        target->main = !i;
        target->uri = g_strdup(i ? figures.uri : split.uri);
        target->planned = figures.planned_pages;
        target->sent = figures.sent_pages;
        target->bytes = i ? figures.sent_bytes :
            stat64_get(&mig_stats.qemu_file_transferred);
        target->zero = figures.zero_pages;
        target->capacity = figures.capacity_bytes;
        QAPI_LIST_APPEND(tail, target);
    }
    return list;
}

SplitMigrationInfo *qmp_query_migrate_split(Error **errp)
{
    SplitMigrationInfo *info = g_new0(SplitMigrationInfo, 1);
    MigrationState *s = migrate_get_current();

    info->phase = split_job.phase;
    if (split_job.phase == SPLIT_PHASE_NONE) {
        return info;
    }
    if (split_job.phase == SPLIT_PHASE_ACTIVE &&
        (s->state == MIGRATION_STATUS_DEVICE ||
         s->state == MIGRATION_STATUS_PRE_SWITCHOVER)) {
        info->phase = SPLIT_PHASE_COMPLETING;
    }
    info->error_desc = g_strdup(split.error);
    info->has_policy = true;
    info->policy = split.policy;
    info->has_chunk_size = true;
    info->chunk_size = split.chunk_size;
    info->has_history = true;
    info->history = split.history;
    info->has_pages = true;
    info->pages = split_job.layout->pages;
    if (split_migration_active()) {
        info->has_pending = true;
        info->pending = ks_split_pending(split_job.ks);
        info->has_targets = true;
        info->targets = collect_targets();
    } else if (split.targets) {
        info->has_targets = true;
        info->targets = QAPI_CLONE(SplitTargetList, split.targets);
    }
    return info;
}

/* ---- Beginning and end --------------------------------------------------- */

typedef struct EndJob {
    KsSplit *job;
    bool drop_sessions;
} EndJob;

/*
 * Servers may take their time to answer; only the next split migration waits
 * for that, since it may need the memory.
 */
static void *end_job_thread(void *opaque)
{
    EndJob *end = opaque;

    ks_split_cancel(end->job);
    ks_split_free(end->job, end->drop_sessions);
    g_free(end);
    return NULL;
}

void split_job_set_phase(SplitPhase phase, const char *error)
{
    split_job.phase = phase;
    g_free(split.error);
    split.error = g_strdup(error);
    qapi_event_send_split_migration(phase, error);
}

static void close_fd(void)
{
    if (split.fd >= 0) {
        close(split.fd);
        split.fd = -1;
    }
}

int split_migration_take_fd(void)
{
    int fd = split.fd;

    split.fd = -1;
    return fd;
}

void split_job_end(SplitPhase phase, const char *error)
{
    EndJob *end = g_new0(EndJob, 1);

    close_fd();

    if (split_job.phase != SPLIT_PHASE_CONNECTING) {
        split.targets = collect_targets();
    }
    if (split_job.phase != SPLIT_PHASE_CONNECTING && !split.had_return_path) {
        migrate_get_current()->capabilities[MIGRATION_CAPABILITY_RETURN_PATH] =
            false;
    }
    split_job_set_phase(phase, error);
    WITH_QEMU_LOCK_GUARD(&split_job_lock) {
        end->job = split_job.ks;
        qatomic_set(&split_job.ks, NULL);
    }
    end->drop_sessions = phase != SPLIT_PHASE_COMPLETED;
    trace_split_migration_end(SplitPhase_str(phase), error ?: "");
    qemu_thread_create(&split.end_thread, "split-end", end_job_thread, end,
                       QEMU_THREAD_JOINABLE);
    split.ended = true;
}

static int split_notify(NotifierWithReturn *n, MigrationEvent *event,
                        Error **errp)
{
    MigrationState *s = migrate_get_current();
    SplitPhase phase = SPLIT_PHASE_FAILED;
    g_autofree char *error = NULL;

    if (!split_job.ks || split_job.phase == SPLIT_PHASE_CONNECTING ||
        event->type == MIG_EVENT_PRECOPY_SETUP) {
        return 0;
    }
    if (s->state == MIGRATION_STATUS_COMPLETED) {
        phase = SPLIT_PHASE_COMPLETED;
    } else if (s->state == MIGRATION_STATUS_CANCELLED) {
        phase = SPLIT_PHASE_CANCELLED;
    }
    WITH_QEMU_LOCK_GUARD(&s->error_mutex) {
        if (phase == SPLIT_PHASE_FAILED && s->error) {
            error = g_strdup(error_get_pretty(s->error));
        }
    }
    if (!split_handover_over(phase, &error)) {
        split_job_end(phase, error);
    }
    return 0;
}

static bool split_check_options(Error **errp)
{
    MigrationState *s = migrate_get_current();

    if (migrate_postcopy() || migrate_colo() || migrate_mapped_ram() ||
        migrate_background_snapshot()) {
        error_setg(errp, "migrate-split cannot be combined with the "
                   "capabilities postcopy-ram, dirty-bitmaps, x-colo, "
                   "mapped-ram or background-snapshot: turn them off with "
                   "migrate-set-capabilities");
        return false;
    }
    if (s->parameters.mode != MIG_MODE_NORMAL) {
        error_setg(errp, "migrate-split needs migration mode 'normal'");
        return false;
    }
    if (migration_is_running()) {
        error_setg(errp, "There's a migration process in progress");
        return false;
    }
    if (runstate_check(RUN_STATE_INMIGRATE)) {
        error_setg(errp, "the VM is still coming in");
        return false;
    }
    if (runstate_check(RUN_STATE_POSTMIGRATE) ||
        !split_migration_may_run(NULL)) {
        error_setg(errp, "the VM was migrated away already");
        return false;
    }
    return true;
}

/* Fills *@config; the arrays stay the caller's. */
static KsSubHost *config_sub_hosts(SplitSubHostList *list, uint32_t *count)
{
    g_autofree KsSubHost *sub_hosts = NULL;

    *count = 0;
    for (SplitSubHostList *item = list; item; item = item->next) {
        sub_hosts = g_renew(KsSubHost, sub_hosts, *count + 1);
        sub_hosts[(*count)++] = (KsSubHost) {
            .uri = item->value->uri,
            .capacity_bytes = item->value->capacity,
        };
    }
    return g_steal_pointer(&sub_hosts);
}

typedef struct OpenJob {
    KsSplit *job;
    AccessTracker *tracker; /* keeps the history that is planned by */
    bool wait;
    QemuThread previous; /* to be waited for */
    int ret;
    KsError err;
} OpenJob;

static bool start_migration(Error **errp)
{
    ERRP_GUARD();
    g_autoptr(SplitLayout) now = split_layout_new();

    if (!split_check_options(errp)) {
        return false;
    }
    if (!split_layout_equal(now, split_job.layout)) {
        error_setg(errp, "the VM's memory was changed while sub-hosts were "
                   "asked to reserve theirs");
        return false;
    }
    if (!split_layout_check(now, errp)) {
        return false;
    }
    /* The destination's word is needed before the VM may be let go. */
    split.had_return_path = migrate_return_path();
    migrate_get_current()->capabilities[MIGRATION_CAPABILITY_RETURN_PATH] =
        true;
    split_job_set_phase(SPLIT_PHASE_ACTIVE, NULL);
    trace_split_migration_start(split.uri);
    qmp_migrate(split.uri, false, NULL, false, false, false, false, errp);
    return !*errp;
}

/* The sub-hosts have answered. */
static void opened_bh(void *opaque)
{
    OpenJob *open = opaque;
    Error *local_err = NULL;

    if (open->tracker) {
        access_tracker_put(open->tracker);
    }
    if (split.cancelled) {
        split_job_end(SPLIT_PHASE_CANCELLED, NULL);
    } else if (open->ret < 0) {
        split_job_end(open->ret == -ECANCELED ? SPLIT_PHASE_CANCELLED :
                  SPLIT_PHASE_FAILED, open->err.message);
        error_report("migrate-split: %s", open->err.message);
    } else if (!start_migration(&local_err)) {
        /* The notifier may have ended the job already. */
        if (split_job.ks) {
            split_job_end(SPLIT_PHASE_FAILED, error_get_pretty(local_err));
        }
        error_reportf_err(local_err, "migrate-split: ");
    }
    g_free(open);
}

static void *open_thread(void *opaque)
{
    OpenJob *open = opaque;

    if (open->wait) {
        qemu_thread_join(&open->previous);
    }
    open->ret = ks_split_open(open->job, &open->err);
    /* Not where a nested aio_poll() would run it. */
    aio_bh_schedule_oneshot(iohandler_get_aio_context(), opened_bh, open);
    return NULL;
}

/*
 * The descriptor of an fd: URI, which only the command's own monitor knows by
 * name: the migration begins later, when there is no current monitor.
 */
static int get_fd(const char *name, Error **errp)
{
    int fd = strstart(name, "/dev/fdset/", NULL) ?
        qemu_open(name, O_RDWR, errp) :
        monitor_get_fd(monitor_cur(), name, errp);

    if (fd >= 0 && !fd_is_socket(fd)) {
        error_setg(errp, "fd '%s' is not a socket: the destination's answer "
                   "would have no way back", name);
        close(fd);
        return -1;
    }
    return fd;
}

/*
 * The destination's word is needed before the VM may be let go, so only what
 * has a way back will do.  On success *@fd is what an fd: URI names, else -1.
 */
static bool check_main_host(const char *uri, int *fd, Error **errp)
{
    g_autoptr(MigrationChannel) channel = NULL;
    MigrationAddress *addr;

    *fd = -1;
    if (!migrate_uri_parse(uri, &channel, errp)) {
        return false;
    }
    addr = channel->addr;
    if (addr->transport != MIGRATION_ADDRESS_TYPE_SOCKET) {
        error_setg(errp, "migrate-split cannot migrate to '%s': the "
                   "destination's answer would have no way back; use tcp:, "
                   "unix:, vsock: or fd: with a socket", uri);
        return false;
    }
    if (addr->u.socket.type == SOCKET_ADDRESS_TYPE_FD) {
        *fd = get_fd(addr->u.socket.u.fd.str, errp);
        return *fd >= 0;
    }
    return true;
}

static bool check_chunk_size(uint64_t chunk_size, Error **errp)
{
    if (is_power_of_2(chunk_size) && chunk_size >= KS_PAGE_SIZE &&
        chunk_size / KS_PAGE_SIZE <= UINT32_MAX) {
        return true;
    }
    error_setg(errp, "chunk-size %" PRIu64 " is not a power of two of at least "
               "%u bytes: try %" PRIu64, chunk_size, KS_PAGE_SIZE,
               MAX(pow2floor(MAX(chunk_size, 1)), (uint64_t)KS_PAGE_SIZE));
    return false;
}

void qmp_migrate_split(const char *uri, uint64_t main_memory,
                       SplitSubHostList *sub_hosts,
                       bool has_policy, AccessPolicy policy,
                       bool has_chunk_size, uint64_t chunk_size,
                       bool has_page_out, PageOutMethod page_out,
                       Error **errp)
{
    g_autoptr(SplitLayout) layout = split_layout_new();
    g_autofree KsSubHost *hosts = NULL;
    AccessTracker *tracker;
    KsSplitConfig config = {};
    KsError err = {};
    QemuThread thread;
    OpenJob *open;
    KsSplit *job;

    if (split_job.ks) {
        error_setg(errp, "There's a split migration in progress");
        return;
    }
    if (!split_check_options(errp) || !split_layout_check(layout, errp)) {
        return;
    }
    if (has_chunk_size && !check_chunk_size(chunk_size, errp)) {
        return;
    }
    tracker = access_tracker_get(layout);
    if (!has_policy) {
        policy = tracker ? (AccessPolicy)access_tracker_policy(tracker) :
                 ACCESS_POLICY_AGING;
    }
    if (!has_chunk_size) {
        chunk_size = tracker ?
            (uint64_t)access_tracker_chunk_pages(tracker) * KS_PAGE_SIZE :
            64 * KiB;
    }
    hosts = config_sub_hosts(sub_hosts, &config.sub_host_count);
    config.vm_name = qemu_get_vm_name();
    config.vm_pages = layout->pages;
    config.chunk_pages = chunk_size / KS_PAGE_SIZE;
    config.main_capacity_bytes = main_memory;
    config.sub_hosts = hosts;
    config.policy = (KsPolicy)policy;
    /* Another policy's ranks mean something else. */
    config.history = tracker && access_tracker_policy(tracker) ==
                     (KsPolicy)policy ? access_tracker_history(tracker) : NULL;
    config.connect_timeout_ms = CONNECT_TIMEOUT_MS;
    config.io_timeout_ms = IO_TIMEOUT_MS;

    job = ks_split_new(&config, &err);
    if (!job) {
        error_setg(errp, "%s", err.message);
        if (tracker) {
            access_tracker_put(tracker);
        }
        return;
    }

    if (!check_main_host(uri, &split.fd, errp)) {
        ks_split_free(job, false);
        if (tracker) {
            access_tracker_put(tracker);
        }
        return;
    }

    split_layout_free(split_job.layout);
    split_job.layout = g_steal_pointer(&layout);
    g_free(split.uri);
    split.uri = g_strdup(uri);
    g_clear_pointer(&split.targets, qapi_free_SplitTargetList);
    split.policy = policy;
    split.chunk_size = chunk_size;
    split_job.page_out = has_page_out ? page_out : PAGE_OUT_METHOD_AUTO;
    split.history = config.history;
    split.cancelled = false;
    split.sub_hosts = config.sub_host_count;
    split_handover_begin();
    split_stream_begin();
    WITH_QEMU_LOCK_GUARD(&split_job_lock) {
        qatomic_set(&split_job.ks, job);
    }
    split_job_set_phase(SPLIT_PHASE_CONNECTING, NULL);
    trace_split_migration_connect(config.sub_host_count, config.vm_pages);

    open = g_new0(OpenJob, 1);
    open->job = job;
    open->tracker = tracker;
    open->wait = split.ended;
    open->previous = split.end_thread;
    split.ended = false;
    qemu_thread_create(&thread, "split-open", open_thread, open,
                       QEMU_THREAD_DETACHED);
}

void split_migration_init_job(void)
{
    qemu_mutex_init(&split_job_lock);
    split_handover_init();
    migration_add_notifier(&split_notifier, split_notify);
}
