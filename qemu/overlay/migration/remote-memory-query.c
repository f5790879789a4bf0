/*
 * Remote memory: figures
 *
 * Queries are answered out of band too, so also while the main loop waits for
 * a page: nothing here takes the BQL or touches the guest's memory.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "exec/ramblock.h"
#include "hw/core/cpu.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-remote-memory.h"
#include "qemu/lockable.h"
#include "qemu/thread.h"
#include "remote-memory-internal.h"

#define MAX_WAITS 16

static struct {
    QemuMutex lock;
    KsPager *pager;
    const SplitLayout *layout;
} query;

static void __attribute__((__constructor__)) remote_query_init(void)
{
    qemu_mutex_init(&query.lock);
}

void remote_query_begin(KsPager *pager, const SplitLayout *layout)
{
    QEMU_LOCK_GUARD(&query.lock);
    query.pager = pager;
    query.layout = layout;
}

void remote_query_end(void)
{
    QEMU_LOCK_GUARD(&query.lock);
    query.pager = NULL;
}

bool remote_query_lost(void)
{
    KsPagerStats stats = {};

    QEMU_LOCK_GUARD(&query.lock);
    if (query.pager) {
        ks_pager_stats(query.pager, &stats);
    }
    return stats.servers_lost > 0;
}

static RemoteMemoryServer *server_info(unsigned i)
{
    RemoteMemoryServer *server = g_new0(RemoteMemoryServer, 1);
    KsPagerServer figures;

    ks_pager_server(query.pager, i, &figures);
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

static void name_thread(RemoteMemoryWait *wait)
{
    CPUState *cpu;

    wait->thread = REMOTE_MEMORY_THREAD_OTHER;
    if (wait->thread_id == getpid()) {
        wait->thread = REMOTE_MEMORY_THREAD_MAIN;
        return;
    }
    RCU_READ_LOCK_GUARD();
    CPU_FOREACH(cpu) {
        if (cpu->thread_id == wait->thread_id) {
            wait->thread = REMOTE_MEMORY_THREAD_VCPU;
            wait->has_cpu_index = true;
            wait->cpu_index = cpu->cpu_index;
            return;
        }
    }
}

static RemoteMemoryWait *wait_info(const KsPagerWait *from)
{
    RemoteMemoryWait *wait = g_new0(RemoteMemoryWait, 1);
    KsPagerServer server;

    for (unsigned i = 0; i < query.layout->count; i++) {
        const SplitBlock *block = &query.layout->blocks[i];

        if (from->page - block->first_page < block->pages) {
            wait->block = g_strdup(block->rb->idstr);
            wait->offset = (from->page - block->first_page) * KS_PAGE_SIZE;
        }
    }
    if (from->server) {
        ks_pager_server(query.pager, from->server - 1, &server);
        wait->uri = g_strdup(server.uri);
    }
    wait->duration = from->ns;
    wait->thread_id = from->thread_id;
    name_thread(wait);
    return wait;
}

RemoteMemoryInfo *qmp_query_remote_memory(Error **errp)
{
    RemoteMemoryInfo *info = g_new0(RemoteMemoryInfo, 1);
    RemoteMemoryServerList **servers = &info->servers;
    RemoteMemoryWaitList **waits = &info->waits;
    KsPagerWait longest[MAX_WAITS];
    unsigned nr_longest;
    KsPagerStats stats;

    QEMU_LOCK_GUARD(&query.lock);
    if (!query.pager) {
        return info;
    }
    ks_pager_stats(query.pager, &stats);
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
    FIGURE(waiting, waiting);
#undef FIGURE

    info->has_page_out = true;
    info->page_out = (PageOutMethod)stats.page_out;
    info->page_out_reason = g_strdup(stats.page_out_reason);
    info->has_stopped = true;
    info->stopped = remote_lost_stopped();
    info->has_servers = true;
    for (unsigned i = 0; i < stats.servers; i++) {
        QAPI_LIST_APPEND(servers, server_info(i));
    }
    info->has_waits = true;
    nr_longest = ks_pager_waits(query.pager, longest, MAX_WAITS);
    for (unsigned i = 0; i < nr_longest; i++) {
        QAPI_LIST_APPEND(waits, wait_info(&longest[i]));
    }
    return info;
}
