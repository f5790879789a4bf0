/*
 * Split migration, source side
 *
 * A precopy migration whose cold pages bypass the main stream: they go from
 * here to memory servers on the sub-hosts.  libkintsugi plans and sends; this
 * file connects it with the migration code.  See docs/architecture.md of
 * Kintsugi for the handover.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "exec/ramblock.h"
#include "exec/target_page.h"
#include "migration/misc.h"
#include "migration/register.h"
#include "migration/split.h"
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
#include "qemu-file.h"
#include "qemu/error-report.h"
#include "qemu/cutils.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "qemu/sockets.h"
#include "qemu/units.h"
#include "qemu/uuid.h"
#include "ram.h"
#include "system/runstate.h"
#include "system/system.h"
#include "trace.h"

#define CONNECT_TIMEOUT_MS 5000
#define IO_TIMEOUT_MS 10000
/* Pages between two looks at what the senders have sent. */
#define ACCOUNT_PAGES 64
/* How long an iteration with nothing to do leaves the senders alone */
#define DRAIN_WAIT_US 1000
/* The senders' backlog may take one part in this many of the downtime limit. */
#define DOWNTIME_SHARE 8

/*
 * The newest split migration.  Written under the BQL by the main thread; the
 * migration thread reads what is fixed while it runs.
 */
static struct {
    /* Set while there is a job.  Its own functions say who may call them. */
    KsSplit *job;
    SplitLayout *layout;
    SplitPhase phase;
    char *error;
    char *uri;
    int fd; /* of an fd: URI, until the migration takes it; else -1 */
    AccessPolicy policy;
    uint64_t chunk_size;
    PageOutMethod page_out;
    bool history;
    bool cancelled;
    bool had_return_path; /* the capability, before we set it */
    QemuThread end_thread; /* gives back what the last job had */
    bool ended; /* there is such a thread, and nobody has joined it */
    /* While in doubt: asks the arbiter until it answers. */
    QemuThread doubt_thread;
    QemuSemaphore doubt_over; /* the operator knows who owns the VM */
    bool resume; /* the VM ran when the handover began */
    /* Of a job that has ended */
    SplitTargetList *targets;
    unsigned sub_hosts;

    /* The migration thread's */
    bool handover_begun;
    char *diagnosis; /* what is wrong with a sub-host, after a failure */
    char *in_doubt;  /* why it is not known who owns the VM */
    bool given_up;   /* the destination will never run the VM */
    char *refusal;   /* why; under split_job_lock */
    uint64_t accounted_bytes;
    unsigned unaccounted_pages;
    bool queued; /* pages since the last iteration */
    const SplitBlock *last_block;
    double slowdown; /* of what is left, to what QEMU believes */
} split = { .fd = -1 };

/* Protects split.job against going away under split_migration_cancel(). */
static QemuMutex split_job_lock;
static NotifierWithReturn split_notifier;

static void split_end(SplitPhase phase, const char *error);

bool split_migration_active(void)
{
    return qatomic_read(&split.job) && split.phase == SPLIT_PHASE_ACTIVE;
}

static void account(void)
{
    uint64_t bytes = ks_split_sent_bytes(split.job);

    stat64_add(&mig_stats.multifd_bytes, bytes - split.accounted_bytes);
    split.accounted_bytes = bytes;
    split.unaccounted_pages = 0;
}

/* Fails the migration with what stopped the senders. */
static int report_failure(const KsError *err)
{
    Error *local_err = NULL;

    error_setg(&local_err, "%s", err->message);
    migrate_set_error(migrate_get_current(), local_err);
    error_free(local_err);
    return -(err->code ?: EIO);
}

bool split_migration_save_page(RAMBlock *rb, ram_addr_t offset, int *res)
{
    const SplitBlock *block = split.last_block;
    uint64_t page;
    int ret;

    if (!block || block->rb != rb) {
        block = split_layout_find(split.layout, rb);
        if (!block) {
            return false;
        }
        split.last_block = block;
    }
    page = block->first_page + (offset >> TARGET_PAGE_BITS);
    if (!ks_split_owner(split.job, page)) {
        return false;
    }
    ret = ks_split_send(split.job, page, rb->host + offset);
    if (ret < 0) {
        KsError err = {};

        ks_split_error(split.job, &err);
        *res = report_failure(&err);
        return true;
    }
    split.queued = true;
    if (++split.unaccounted_pages >= ACCOUNT_PAGES) {
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

    if (ks_split_encode_plan(split.job, &plan, &bytes, &err) < 0) {
        error_setg(errp, "%s", err.message);
        return -err.code;
    }
    /* The records at the end are small, and part of the downtime. */
    qio_channel_set_delay(qemu_file_get_ioc(f), false);
    put_blob(f, SPLIT_RECORD_PLAN, plan, bytes);
    qemu_put_byte(f, split.page_out);
    qemu_put_be32(f, split.layout->count);
    for (unsigned i = 0; i < split.layout->count; i++) {
        const SplitBlock *block = &split.layout->blocks[i];

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

    if (ks_split_encode_changes(split.job, &changes, &bytes, &err) < 0) {
        return report_failure(&err);
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

    ks_split_kick(split.job);
    account();
    if (ks_split_error(split.job, &err) < 0) {
        return report_failure(&err);
    }
    if (!split.queued && ks_split_pending(split.job)) {
        /* RAM is clean; the senders need time, not another look at it. */
        g_usleep(DRAIN_WAIT_US);
    }
    split.queued = false;
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

    trace_split_migration_flush(ks_split_pending(split.job));
    if (ks_split_flush(split.job, &err) < 0) {
        return report_failure(&err);
    }
    account();
    if (ks_split_end(split.job, &err) < 0) {
        return report_failure(&err);
    }
    split.handover_begun = true;
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
           ks_split_pending(split.job) * KS_PAGE_SIZE;
    return used > max;
}

/* Of the pages that the guest has written, the part that goes to sub-hosts */
static double dirty_sub_share(void)
{
    uint64_t all = ram_bytes_remaining() / KS_PAGE_SIZE;
    uint64_t count = 0;

    for (unsigned i = 0; i < split.layout->count; i++) {
        const SplitBlock *block = &split.layout->blocks[i];
        unsigned long page = find_first_bit(block->rb->bmap, block->pages);

        while (page < block->pages) {
            count += ks_split_owner(split.job, block->first_page + page) != 0;
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
    ks_split_period(split.job, migrate_get_current()->iteration_start_time,
                    migration_transferred_bytes() - split.accounted_bytes,
                    split.accounted_bytes);
    *must_precopy += (split.slowdown - 1) * ram_bytes_remaining() +
                     ks_split_pending(split.job) * KS_PAGE_SIZE *
                     DOWNTIME_SHARE;
}

/* After RAM's, which has just learned what the guest has written. */
static void split_state_pending_exact(void *opaque, uint64_t *must_precopy,
                                      uint64_t *can_postcopy)
{
    double share = dirty_sub_share();

    split.slowdown = ks_split_slowdown(split.job, share);
    trace_split_migration_pace(share * 100, split.slowdown * 100);
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

void split_migration_cancel(void)
{
    MigrationState *s = migrate_get_current();

    WITH_QEMU_LOCK_GUARD(&split_job_lock) {
        if (split.job) {
            split.cancelled = true;
            ks_split_cancel(split.job);
        }
    }
    /* The main host was still being connected to: nobody else will end it. */
    if (split_migration_active() && s->state == MIGRATION_STATUS_CANCELLED) {
        split_end(SPLIT_PHASE_CANCELLED, NULL);
    }
}

void split_migration_settle(MigrationState *s)
{
    KsError err = {};
    int ret;

    if (!split_migration_active() || s->state == MIGRATION_STATUS_COMPLETED) {
        return;
    }
    if (!split.handover_begun) {
        if (s->state == MIGRATION_STATUS_FAILED && runstate_is_running() &&
            ks_split_diagnose(split.job, &err) < 0) {
            split.diagnosis = g_strdup(err.message);
        }
        return;
    }
    if (qatomic_read(&split.given_up)) {
        /* The destination said so: it cannot run the VM any more. */
        ks_split_given_up(split.job);
        return;
    }
    ret = ks_split_settle(split.job, &err);
    trace_split_migration_settle(ret);
    if (!ret) {
        return;
    }
    if (ret == -EALREADY) {
        warn_report("the migration stream broke, but the destination had "
                    "taken the VM over before: it runs there");
        migrate_set_state(&s->state, s->state, MIGRATION_STATUS_COMPLETED);
        return;
    }
    split.in_doubt = g_strdup_printf(
        "the migration broke during the handover and it is not known yet who "
        "owns the VM: %s. The VM stays paused here, and the first sub-host is "
        "asked until it answers", err.message);
    split.resume = runstate_is_live(s->vm_old_state);
    error_report("%s", split.in_doubt);
    s->vm_old_state = RUN_STATE_PAUSED;
}

bool split_migration_may_run(Error **errp)
{
    if (split.phase == SPLIT_PHASE_COMPLETED ||
        (split_migration_active() && migrate_get_current()->state ==
                                     MIGRATION_STATUS_COMPLETED)) {
        error_setg(errp, "this VM runs on its new main host: it must never run "
                   "here again");
        return false;
    }
    if (split.in_doubt) {
        error_setg(errp, "it is not known yet whether this VM runs on its new "
                   "main host: the first sub-host is asked until it answers. "
                   "If you have made sure that the new main host does not run "
                   "it, give migrate-split-take-back");
        return false;
    }
    return true;
}

bool split_migration_may_migrate(Error **errp)
{
    if (!split_migration_may_run(errp)) {
        return false;
    }
    if (!remote_memory_allows_caps(migrate_get_current()->capabilities, errp)) {
        return false;
    }
    if (split.job && split.phase == SPLIT_PHASE_CONNECTING) {
        error_setg(errp, "a split migration is connecting to its sub-hosts: "
                   "cancel it or let it end");
        return false;
    }
    return true;
}

bool split_migration_in_doubt(void)
{
    return split.in_doubt != NULL;
}

void split_migration_given_up(void)
{
    qatomic_set(&split.given_up, true);
}

void split_migration_refused(const char *reason, size_t bytes)
{
    char *text = g_strndup(reason, bytes);
    Error *err = NULL;

    /* It comes from another host, and goes to a terminal. */
    for (char *c = text; *c; c++) {
        if (!g_ascii_isprint(*c)) {
            *c = '?';
        }
    }
    error_setg(&err, "the destination refused the VM: %s", text);
    migrate_set_error(migrate_get_current(), err);
    error_free(err);
    WITH_QEMU_LOCK_GUARD(&split_job_lock) {
        g_free(split.refusal);
        split.refusal = text;
    }
}

/* ---- Figures ------------------------------------------------------------- */

static SplitTargetList *collect_targets(void)
{
    SplitTargetList *list = NULL, **tail = &list;

    for (unsigned i = 0; i <= split.sub_hosts; i++) {
        SplitTarget *target = g_new0(SplitTarget, 1);
        KsSplitTarget figures;

        ks_split_target(split.job, i, &figures);
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

    info->phase = split.phase;
    if (split.phase == SPLIT_PHASE_NONE) {
        return info;
    }
    if (split.phase == SPLIT_PHASE_ACTIVE &&
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
    info->pages = split.layout->pages;
    if (split_migration_active()) {
        info->has_pending = true;
        info->pending = ks_split_pending(split.job);
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

static void set_phase(SplitPhase phase, const char *error)
{
    split.phase = phase;
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

static void split_end(SplitPhase phase, const char *error)
{
    EndJob *end = g_new0(EndJob, 1);

    close_fd();

    if (split.phase != SPLIT_PHASE_CONNECTING) {
        split.targets = collect_targets();
    }
    if (split.phase != SPLIT_PHASE_CONNECTING && !split.had_return_path) {
        migrate_get_current()->capabilities[MIGRATION_CAPABILITY_RETURN_PATH] =
            false;
    }
    set_phase(phase, error);
    WITH_QEMU_LOCK_GUARD(&split_job_lock) {
        end->job = split.job;
        qatomic_set(&split.job, NULL);
    }
    end->drop_sessions = phase != SPLIT_PHASE_COMPLETED;
    trace_split_migration_end(SplitPhase_str(phase), error ?: "");
    qemu_thread_create(&split.end_thread, "split-end", end_job_thread, end,
                       QEMU_THREAD_JOINABLE);
    split.ended = true;
}

/*
 * ---- In doubt -------------------------------------------------------------
 *
 * The end of the stream was sent, and neither the destination nor the arbiter
 * has said who owns the VM.  The VM stays paused; the arbiter is asked until it
 * answers, or until the operator knows.
 */

#define ASK_AGAIN_MS 2000

/* The VM is this side's. */
static void take_back(const char *why)
{
    Error *local_err = NULL;

    g_clear_pointer(&split.in_doubt, g_free);
    split_end(SPLIT_PHASE_FAILED, why);
    if (!migration_block_activate(&local_err)) {
        error_reportf_err(local_err, "migrate-split: ");
    } else if (split.resume && runstate_check(RUN_STATE_PAUSED)) {
        vm_start();
    }
}

typedef struct DoubtSettled {
    int ret;
} DoubtSettled;

static void doubt_settled_bh(void *opaque)
{
    g_autofree DoubtSettled *settled = opaque;

    qemu_thread_join(&split.doubt_thread);
    trace_split_migration_settle(settled->ret);
    if (settled->ret == -ECANCELED) {
        take_back("the migration broke during the handover, and the VM was "
                  "taken back by force");
    } else if (!settled->ret) {
        take_back("the migration broke during the handover; the VM runs here");
    } else {
        g_clear_pointer(&split.in_doubt, g_free);
        split_end(SPLIT_PHASE_COMPLETED, NULL);
        if (runstate_check(RUN_STATE_PAUSED)) {
            runstate_set(RUN_STATE_POSTMIGRATE);
        }
    }
}

static void *doubt_thread(void *opaque)
{
    DoubtSettled *settled = g_new0(DoubtSettled, 1);
    KsError err = {};

    do {
        if (!qemu_sem_timedwait(&split.doubt_over, ASK_AGAIN_MS)) {
            settled->ret = -ECANCELED;
            break;
        }
        settled->ret = ks_split_settle(split.job, &err);
    } while (settled->ret && settled->ret != -EALREADY);
    aio_bh_schedule_oneshot(qemu_get_aio_context(), doubt_settled_bh, settled);
    return NULL;
}

static void begin_doubt(void)
{
    set_phase(SPLIT_PHASE_IN_DOUBT, split.in_doubt);
    while (!qemu_sem_timedwait(&split.doubt_over, 0)) {
        /* left over from an earlier doubt */
    }
    qemu_thread_create(&split.doubt_thread, "split-doubt", doubt_thread, NULL,
                       QEMU_THREAD_JOINABLE);
}

void qmp_migrate_split_take_back(Error **errp)
{
    if (!split.in_doubt || split.phase != SPLIT_PHASE_IN_DOUBT) {
        error_setg(errp, "there is no doubt about who owns this VM: see "
                   "query-migrate-split");
        return;
    }
    qemu_sem_post(&split.doubt_over);
}

static int split_notify(NotifierWithReturn *n, MigrationEvent *event,
                        Error **errp)
{
    MigrationState *s = migrate_get_current();
    SplitPhase phase = SPLIT_PHASE_FAILED;
    g_autofree char *error = NULL;

    if (!split.job || split.phase == SPLIT_PHASE_CONNECTING ||
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
    if (split.in_doubt) {
        begin_doubt();
        return 0;
    }
    WITH_QEMU_LOCK_GUARD(&split_job_lock) {
        if (split.refusal && phase == SPLIT_PHASE_FAILED) {
            /* What the stream broke with is only what follows from it. */
            g_free(error);
            error = g_strdup_printf("the destination refused the VM: %s",
                                    split.refusal);
            g_clear_pointer(&split.diagnosis, g_free);
        }
    }
    if (error && split.diagnosis && strcmp(error, split.diagnosis)) {
        char *both = g_strdup_printf("%s: %s", error, split.diagnosis);

        g_free(error);
        error = both;
    }
    split_end(phase, error);
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
    if (!split_layout_equal(now, split.layout)) {
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
    set_phase(SPLIT_PHASE_ACTIVE, NULL);
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
        split_end(SPLIT_PHASE_CANCELLED, NULL);
    } else if (open->ret < 0) {
        split_end(open->ret == -ECANCELED ? SPLIT_PHASE_CANCELLED :
                  SPLIT_PHASE_FAILED, open->err.message);
        error_report("migrate-split: %s", open->err.message);
    } else if (!start_migration(&local_err)) {
        /* The notifier may have ended the job already. */
        if (split.job) {
            split_end(SPLIT_PHASE_FAILED, error_get_pretty(local_err));
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

    if (split.job) {
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

    split_layout_free(split.layout);
    split.layout = g_steal_pointer(&layout);
    g_free(split.uri);
    split.uri = g_strdup(uri);
    g_clear_pointer(&split.targets, qapi_free_SplitTargetList);
    split.policy = policy;
    split.chunk_size = chunk_size;
    split.page_out = has_page_out ? page_out : PAGE_OUT_METHOD_AUTO;
    split.history = config.history;
    split.cancelled = false;
    split.sub_hosts = config.sub_host_count;
    split.handover_begun = false;
    split.given_up = false;
    g_clear_pointer(&split.diagnosis, g_free);
    g_clear_pointer(&split.in_doubt, g_free);
    g_clear_pointer(&split.refusal, g_free);
    split.accounted_bytes = 0;
    split.unaccounted_pages = 0;
    split.last_block = NULL;
    split.slowdown = 1;
    WITH_QEMU_LOCK_GUARD(&split_job_lock) {
        qatomic_set(&split.job, job);
    }
    set_phase(SPLIT_PHASE_CONNECTING, NULL);
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

void split_migration_init_plan(void)
{
    register_savevm_live("remote-memory-plan", 0, 1, &plan_handlers, NULL);
}

void split_migration_init(void)
{
    qemu_mutex_init(&split_job_lock);
    qemu_sem_init(&split.doubt_over, 0);
    register_savevm_live("remote-memory", 0, 1, &split_handlers, NULL);
    migration_add_notifier(&split_notifier, split_notify);
}
