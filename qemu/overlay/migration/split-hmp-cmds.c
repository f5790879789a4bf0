/*
 * HMP commands for split migration and remote memory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "monitor/hmp.h"
#include "monitor/monitor.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-remote-memory.h"
#include "qobject/qdict.h"
#include "qemu/cutils.h"
#include "qemu/timer.h"

/* "URI=SIZE,URI=SIZE,..."; a path may hold '=', a size cannot. */
static SplitSubHostList *parse_sub_hosts(const char *text, Error **errp)
{
    g_auto(GStrv) items = g_strsplit(text, ",", -1);
    SplitSubHostList *list = NULL, **tail = &list;

    for (char **item = items; *item; item++) {
        char *equals = strrchr(*item, '=');
        SplitSubHost *sub_host;
        uint64_t capacity;

        if (!equals || qemu_strtosz(equals + 1, NULL, &capacity) < 0) {
            error_setg(errp, "'%s' is not a sub-host: write URI=SIZE, several "
                       "with commas", *item);
            qapi_free_SplitSubHostList(list);
            return NULL;
        }
        sub_host = g_new0(SplitSubHost, 1);
        sub_host->uri = g_strndup(*item, equals - *item);
        sub_host->capacity = capacity;
        QAPI_LIST_APPEND(tail, sub_host);
    }
    return list;
}

void hmp_migrate_split(Monitor *mon, const QDict *qdict)
{
    g_autoptr(SplitSubHostList) sub_hosts = NULL;
    const char *main_memory = qdict_get_str(qdict, "main-memory");
    uint64_t main_bytes = 0;
    Error *err = NULL;

    sub_hosts = parse_sub_hosts(qdict_get_str(qdict, "sub-hosts"), &err);
    if (!err && qemu_strtosz(main_memory, NULL, &main_bytes) < 0) {
        error_setg(&err, "'%s' is not a size: write 8G, say", main_memory);
    }
    if (!err) {
        qmp_migrate_split(qdict_get_str(qdict, "uri"), main_bytes, sub_hosts,
                          false, 0, false, 0, false, 0, &err);
    }
    hmp_handle_error(mon, err);
}

void hmp_migrate_split_take_back(Monitor *mon, const QDict *qdict)
{
    Error *err = NULL;

    qmp_migrate_split_take_back(&err);
    hmp_handle_error(mon, err);
}

void hmp_info_migrate_split(Monitor *mon, const QDict *qdict)
{
    g_autoptr(SplitMigrationInfo) info = qmp_query_migrate_split(NULL);

    monitor_printf(mon, "phase: %s\n", SplitPhase_str(info->phase));
    if (info->error_desc) {
        monitor_printf(mon, "error: %s\n", info->error_desc);
    }
    if (info->has_policy) {
        monitor_printf(mon, "policy: %s, chunks of %" PRIu64 " KiB, %s\n",
                       AccessPolicy_str(info->policy), info->chunk_size / 1024,
                       info->history ? "planned by history" :
                                       "planned without history");
    }
    if (info->has_pending) {
        monitor_printf(mon, "pending: %" PRIu64 " pages\n", info->pending);
    }
    for (SplitTargetList *item = info->targets; item; item = item->next) {
        const SplitTarget *t = item->value;

        monitor_printf(mon, "%s %s: planned %" PRIu64 " pages, sent %" PRIu64
                       " pages (%" PRIu64 " MiB), zero %" PRIu64 "\n",
                       t->main ? "main host" : "sub-host", t->uri, t->planned,
                       t->sent, t->bytes >> 20, t->zero);
    }
}

void hmp_info_remote_memory(Monitor *mon, const QDict *qdict)
{
    g_autoptr(RemoteMemoryInfo) info = qmp_query_remote_memory(NULL);

    if (!info->active) {
        monitor_printf(mon, "This VM has no remote memory.\n");
        return;
    }
    monitor_printf(mon, "resident: %" PRIu64 " of at most %" PRIu64 " pages, "
                   "remote: %" PRIu64 ", zero: %" PRIu64 ", on the way out: %"
                   PRIu64 "\n", info->resident, info->limit, info->remote,
                   info->zero, info->queued);
    monitor_printf(mon, "page-ins: %" PRIu64 " (p50 %" PRIu64 " us, p99 %"
                   PRIu64 " us), prefetched: %" PRIu64 ", from the queue: %"
                   PRIu64 ", zero-filled: %" PRIu64 "\n", info->page_ins,
                   info->page_in_p50 / 1000, info->page_in_p99 / 1000,
                   info->prefetched, info->queue_hits, info->zero_fills);
    monitor_printf(mon, "page-outs: %" PRIu64 " by %s (%s)\n",
                   info->page_outs, PageOutMethod_str(info->page_out),
                   info->page_out_reason);
    if (info->stopped) {
        monitor_printf(mon, "The VM is stopped until all servers are back "
                       "with its pages.\n");
    }
    for (RemoteMemoryWaitList *item = info->waits; item; item = item->next) {
        const RemoteMemoryWait *w = item->value;

        monitor_printf(mon, "thread %" PRId64 " (%s) waits for %s+0x%" PRIx64
                       " from %s for %" PRIu64 " ms\n", w->thread_id,
                       RemoteMemoryThread_str(w->thread), w->block, w->offset,
                       w->uri ? w->uri : "this host, which has no room",
                       w->duration / SCALE_MS);
    }
    for (RemoteMemoryServerList *item = info->servers; item;
         item = item->next) {
        const RemoteMemoryServer *s = item->value;

        monitor_printf(mon, "%s: %s, %" PRIu64 " of %" PRIu64 " pages, in %"
                       PRIu64 ", out %" PRIu64 "\n", s->uri,
                       s->connected ? "connected" : s->error_desc, s->pages,
                       s->capacity, s->page_ins, s->page_outs);
    }
}

void hmp_info_access_tracker(Monitor *mon, const QDict *qdict)
{
    g_autoptr(AccessTrackerInfoList) list = qmp_query_access_tracker(NULL);

    for (AccessTrackerInfoList *item = list; item; item = item->next) {
        const AccessTrackerInfo *t = item->value;

        monitor_printf(mon, "%s: source %s, policy %s, every %" PRIu64 " ms, %"
                       PRIu64 " scans, %" PRIu64 " of %" PRIu64
                       " pages accessed, %" PRIu64 " us a scan\n", t->id,
                       t->has_source ? AccessSource_str(t->source) : "none yet",
                       AccessPolicy_str(t->policy),
                       t->period, t->scans, t->accessed, t->pages,
                       t->scan_time);
        if (t->has_source) {
            monitor_printf(mon, "  sees %s; misses %s\n", t->sees, t->misses);
        }
        for (AccessSourceRefusalList *r = t->refused; r; r = r->next) {
            monitor_printf(mon, "  not %s: %s\n",
                           AccessSource_str(r->value->source),
                           r->value->reason);
        }
    }
    if (!list) {
        monitor_printf(mon, "No access tracker; see -object access-tracker.\n");
    }
}
