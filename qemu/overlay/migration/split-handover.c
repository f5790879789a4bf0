/*
 * Split migration, source side: who owns the VM once its end was sent
 *
 * libkintsugi has the rules (lib/handover) and asks the servers; this file asks
 * it at the right moments, and starts the VM or keeps it from starting.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "migration/misc.h"
#include "migration.h"
#include "options.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-remote-memory.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "qemu/thread.h"
#include "split-internal.h"
#include "system/runstate.h"
#include "system/system.h"
#include "trace.h"

static struct {
    /* The migration thread's */
    bool handover_begun;
    char *diagnosis; /* what is wrong with a sub-host, after a failure */
    char *in_doubt;  /* why it is not known who owns the VM */
    bool given_up;   /* the destination will never run the VM */
    QemuMutex lock;
    char *refusal;   /* why; under the lock */
    /* While in doubt: asks the arbiter until it answers. */
    QemuThread doubt_thread;
    QemuSemaphore doubt_over; /* the operator knows who owns the VM */
    bool resume; /* the VM ran when the handover began */
} handover;

void split_handover_init(void)
{
    qemu_mutex_init(&handover.lock);
    qemu_sem_init(&handover.doubt_over, 0);
}

void split_handover_begin(void)
{
    handover.handover_begun = false;
    handover.given_up = false;
    g_clear_pointer(&handover.diagnosis, g_free);
    g_clear_pointer(&handover.in_doubt, g_free);
    g_clear_pointer(&handover.refusal, g_free);
}

void split_handover_end_sent(void)
{
    handover.handover_begun = true;
}

void split_migration_settle(MigrationState *s)
{
    KsError err = {};
    int ret;

    if (!split_migration_active() || s->state == MIGRATION_STATUS_COMPLETED) {
        return;
    }
    if (!handover.handover_begun) {
        if (s->state == MIGRATION_STATUS_FAILED && runstate_is_running() &&
            ks_split_diagnose(split_job.ks, &err) < 0) {
            handover.diagnosis = g_strdup(err.message);
        }
        return;
    }
    if (qatomic_read(&handover.given_up)) {
        /* The destination said so: it cannot run the VM any more. */
        ks_split_given_up(split_job.ks);
        return;
    }
    ret = ks_split_settle(split_job.ks, &err);
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
    handover.in_doubt = g_strdup_printf(
        "the migration broke during the handover and it is not known yet who "
        "owns the VM: %s. The VM stays paused here, and the first sub-host is "
        "asked until it answers", err.message);
    handover.resume = runstate_is_live(s->vm_old_state);
    error_report("%s", handover.in_doubt);
    s->vm_old_state = RUN_STATE_PAUSED;
}

bool split_migration_may_run(Error **errp)
{
    if (split_job.phase == SPLIT_PHASE_COMPLETED ||
        (split_migration_active() && migrate_get_current()->state ==
                                     MIGRATION_STATUS_COMPLETED)) {
        error_setg(errp, "this VM runs on its new main host: it must never run "
                   "here again");
        return false;
    }
    if (handover.in_doubt) {
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
    if (split_job.ks && split_job.phase == SPLIT_PHASE_CONNECTING) {
        error_setg(errp, "a split migration is connecting to its sub-hosts: "
                   "cancel it or let it end");
        return false;
    }
    return true;
}

bool split_migration_in_doubt(void)
{
    return handover.in_doubt != NULL;
}

void split_migration_given_up(void)
{
    qatomic_set(&handover.given_up, true);
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
    WITH_QEMU_LOCK_GUARD(&handover.lock) {
        g_free(handover.refusal);
        handover.refusal = text;
    }
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

    g_clear_pointer(&handover.in_doubt, g_free);
    split_job_end(SPLIT_PHASE_FAILED, why);
    if (!migration_block_activate(&local_err)) {
        error_reportf_err(local_err, "migrate-split: ");
    } else if (handover.resume && runstate_check(RUN_STATE_PAUSED)) {
        vm_start();
    }
}

typedef struct DoubtSettled {
    int ret;
} DoubtSettled;

static void doubt_settled_bh(void *opaque)
{
    g_autofree DoubtSettled *settled = opaque;

    qemu_thread_join(&handover.doubt_thread);
    trace_split_migration_settle(settled->ret);
    if (settled->ret == -ECANCELED) {
        take_back("the migration broke during the handover, and the VM was "
                  "taken back by force");
    } else if (!settled->ret) {
        take_back("the migration broke during the handover; the VM runs here");
    } else {
        g_clear_pointer(&handover.in_doubt, g_free);
        split_job_end(SPLIT_PHASE_COMPLETED, NULL);
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
        if (!qemu_sem_timedwait(&handover.doubt_over, ASK_AGAIN_MS)) {
            settled->ret = -ECANCELED;
            break;
        }
        settled->ret = ks_split_settle(split_job.ks, &err);
    } while (settled->ret && settled->ret != -EALREADY);
    aio_bh_schedule_oneshot(qemu_get_aio_context(), doubt_settled_bh, settled);
    return NULL;
}

static void begin_doubt(void)
{
    split_job_set_phase(SPLIT_PHASE_IN_DOUBT, handover.in_doubt);
    while (!qemu_sem_timedwait(&handover.doubt_over, 0)) {
        /* left over from an earlier doubt */
    }
    qemu_thread_create(&handover.doubt_thread, "split-doubt", doubt_thread, NULL,
                       QEMU_THREAD_JOINABLE);
}

void qmp_migrate_split_take_back(Error **errp)
{
    if (!handover.in_doubt || split_job.phase != SPLIT_PHASE_IN_DOUBT) {
        error_setg(errp, "there is no doubt about who owns this VM: see "
                   "query-migrate-split");
        return;
    }
    qemu_sem_post(&handover.doubt_over);
}

bool split_handover_over(SplitPhase phase, char **error)
{
    if (handover.in_doubt) {
        begin_doubt();
        return true;
    }
    if (phase != SPLIT_PHASE_FAILED) {
        return false;
    }
    WITH_QEMU_LOCK_GUARD(&handover.lock) {
        if (handover.refusal) {
            /* What the stream broke with is only what follows from it. */
            g_free(*error);
            *error = g_strdup_printf("the destination refused the VM: %s",
                                     handover.refusal);
            return false;
        }
    }
    if (*error && handover.diagnosis && strcmp(*error, handover.diagnosis)) {
        char *both = g_strdup_printf("%s: %s", *error, handover.diagnosis);

        g_free(*error);
        *error = both;
    }
    return false;
}
