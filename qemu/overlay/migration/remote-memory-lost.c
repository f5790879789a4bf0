/*
 * Remote memory: the VM while a memory server is lost
 *
 * A VM whose memory server is lost is stopped, and goes on by itself once all
 * servers are back.  A vCPU that waits for one of their pages cannot be
 * stopped, nor waited for: it is told to stop once it gets there, everything
 * else stops at once, and nobody is notified, as handlers may wait for vCPUs.
 * The VM is then "halfway": for devices it runs.  If it goes on they never
 * hear of it; if it is to stay stopped they are told as soon as it can be.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/eventfd.h>
#include "block/aio.h"
#include "hw/core/cpu.h"
#include "migration/split.h"
#include "monitor/monitor.h"
#include "qapi/error.h"
#include "qapi/qapi-events-remote-memory.h"
#include "qapi/qapi-events-run-state.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "qemu/notify.h"
#include "qemu/thread.h"
#include "remote-memory-internal.h"
#include "system/cpus.h"
#include "system/cpu-timers.h"
#include "system/runstate.h"
#include "system/runstate-action.h"
#include "system/system.h"
#include "trace.h"

/* How long the main loop may take to end QEMU before it is ended without. */
#define QUIT_PATIENCE_US (2 * G_USEC_PER_SEC)

/* Under the BQL. */
static struct {
    unsigned servers;  /* that are lost */
    /* The VM does not run for them, and goes on by itself unless stay... */
    bool stopped;      /* atomic */
    bool stay;         /* ...as the operator stopped it meanwhile */
    bool pages_lost;   /* ...or as pages were lost: the operator must look */
    GHashTable *without_pages; /* URIs of servers that are there without them */
    bool halfway;      /* it is stopped without anybody having been notified */
    Notifier shutdown; /* registered: notify is set */
} lost;

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

/* Written to when QEMU is to end, from any thread and from signal handlers. */
static int quit_fd = -1;

/* ---- Stopping and going on ----------------------------------------------- */

static void stop_halfway(void)
{
    CPUState *cpu;

    if (!runstate_is_running()) {
        return;
    }
    qatomic_set(&lost.stopped, true);
    lost.stay = false;
    lost.halfway = true;
    runstate_set(RUN_STATE_IO_ERROR);
    cpu_disable_ticks();
    qemu_clock_enable(QEMU_CLOCK_VIRTUAL, false);
    CPU_FOREACH(cpu) {
        cpu->stop = true;
        qemu_cpu_kick(cpu);
    }
    qapi_event_send_stop();
}

/* All servers are there: vCPUs get their pages and come to a stop. */
static void finish_stop(void)
{
    if (!lost.halfway) {
        return;
    }
    pause_all_vcpus();
    lost.halfway = false;
    vm_state_notify(false, runstate_get());
}

static void go_on(void)
{
    if (!lost.stopped) {
        return;
    }
    if (lost.stay || lost.pages_lost) {
        finish_stop();
        if (!lost.pages_lost) {
            qatomic_set(&lost.stopped, false);
        }
        return;
    }
    qatomic_set(&lost.stopped, false);
    if (!lost.halfway || !runstate_check(RUN_STATE_IO_ERROR)) {
        /* It was stopped before, or has been reset meanwhile. */
        finish_stop();
        vm_start();
        return;
    }
    lost.halfway = false;
    cpu_enable_ticks();
    runstate_set(RUN_STATE_RUNNING);
    resume_all_vcpus();
    qapi_event_send_resume();
}

bool remote_lost_stopped(void)
{
    return qatomic_read(&lost.stopped);
}

bool remote_memory_may_run(Error **errp)
{
    if (lost.without_pages && g_hash_table_size(lost.without_pages)) {
        error_setg(errp, "a memory server lost pages of this VM: the VM can "
                   "go on only when they are there again");
        return false;
    }
    return true;
}

bool remote_memory_may_start(bool step)
{
    Error *err = NULL;

    if (runstate_is_running()) {
        return true;
    }
    if (!lost.servers) {
        finish_stop();
        qatomic_set(&lost.stopped, false);
        lost.pages_lost = false;
        return true;
    }
    /* States that only a start leaves, and in which stop and cont do nothing. */
    if (runstate_check(RUN_STATE_INMIGRATE) ||
        runstate_check(RUN_STATE_FINISH_MIGRATE)) {
        runstate_set(RUN_STATE_PAUSED);
    }
    if (!remote_memory_may_run(&err)) {
        error_report_err(err);
        return false;
    }
    if (step) {
        return false;
    }
    info_report("remote memory: the VM goes on as soon as its memory servers "
                "are back");
    qatomic_set(&lost.stopped, true);
    lost.stay = false;
    return false;
}

void remote_memory_user_stop(void)
{
    lost.stay = lost.stopped;
}

bool remote_memory_stopped(Error **errp)
{
    if (!lost.halfway && !lost.servers) {
        return false;
    }
    error_setg(errp, "a memory server is lost%s: wait until it is back",
               lost.halfway ? " and the VM is stopped in the middle of what "
               "it does" : "");
    return true;
}

/* ---- News of servers ----------------------------------------------------- */

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
        lost.servers++;
        qapi_event_send_remote_memory_server_lost(news->uri, news->error);
        stop_halfway();
        break;
    case KS_SERVER_PAGES_LOST:
        /* Still lost; only the operator can make it go on. */
        lost.pages_lost = true;
        g_hash_table_add(lost.without_pages, g_strdup(news->uri));
        qapi_event_send_remote_memory_pages_lost(news->uri, news->error);
        error_report("remote memory: %s", news->error);
        break;
    case KS_SERVER_CONNECTED:
        assert(lost.servers);
        lost.servers--;
        g_hash_table_remove(lost.without_pages, news->uri);
        qapi_event_send_remote_memory_server_back(news->uri);
        if (!lost.servers) {
            go_on();
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
        if (remote_pager()) {
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

void remote_lost_on_event(void *opaque, const KsServerEvent *event)
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

/* ---- The end of QEMU ----------------------------------------------------- */

static void on_shutdown(Notifier *n, void *data)
{
    if (shutdown_action == SHUTDOWN_ACTION_PAUSE) {
        return;
    }
    WITH_QEMU_LOCK_GUARD(&inbox.lock) {
        inbox.quitting = true;
    }
    if (lost.servers || remote_query_lost()) {
        /* Clients get what they were told, this shutdown included. */
        monitor_cleanup();
        end_at_once();
    }
}

/* If a server is lost, the main loop may wait for it and never end QEMU. */
static void *end_without_main_loop(void *opaque)
{
    uint64_t asked;

    while (read(quit_fd, &asked, sizeof(asked)) != sizeof(asked)) {
        /* interrupted */
    }
    for (;;) {
        g_usleep(QUIT_PATIENCE_US);
        if (remote_query_lost()) {
            end_at_once();
        }
    }
    return NULL;
}

void remote_memory_quit(void)
{
    uint64_t one = 1;

    if (quit_fd >= 0 && write(quit_fd, &one, sizeof(one)) < 0) {
        /* An eventfd has room; the main loop ends QEMU anyway, if it can. */
        return;
    }
}

/* ---- Life ---------------------------------------------------------------- */

void remote_lost_init(void)
{
    if (!inbox.bh) {
        qemu_mutex_init(&inbox.lock);
        inbox.news = g_queue_new();
        inbox.bh = qemu_bh_new(server_news_bh, NULL);
        lost.without_pages = g_hash_table_new_full(g_str_hash, g_str_equal,
                                                   g_free, NULL);
    }
}

void remote_lost_begin(void)
{
    QemuThread thread;

    if (quit_fd < 0) {
        quit_fd = eventfd(0, EFD_CLOEXEC);
        if (quit_fd >= 0) {
            qemu_thread_create(&thread, "remote-quit", end_without_main_loop,
                               NULL, QEMU_THREAD_DETACHED);
        }
    }
    lost.shutdown.notify = on_shutdown;
    qemu_register_shutdown_notifier(&lost.shutdown);
}

void remote_lost_end(void)
{
    if (lost.shutdown.notify) {
        notifier_remove(&lost.shutdown);
    }
    lost.shutdown.notify = NULL;
    lost.servers = 0;
    lost.stopped = lost.stay = lost.pages_lost = lost.halfway = false;
    g_hash_table_remove_all(lost.without_pages);
}
