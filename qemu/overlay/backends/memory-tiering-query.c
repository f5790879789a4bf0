/*
 * Memory tiering: what is told about it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "memory-tiering-object.h"
#include "monitor/hmp.h"
#include "monitor/monitor.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-memory-tiering.h"
#include "qemu/cutils.h"
#include "qemu/lockable.h"

static MemoryTieringPolicyInfoList *list_policies(void)
{
    MemoryTieringPolicyInfoList *list = NULL, **tail = &list;
    const char *name, *about;

    for (unsigned i = 0; (name = ks_tiering_policy_name(i, &about)); i++) {
        MemoryTieringPolicyInfo *info = g_new0(MemoryTieringPolicyInfo, 1);

        info->name = g_strdup(name);
        info->about = g_strdup(about);
        QAPI_LIST_APPEND(tail, info);
    }
    return list;
}

static MemoryTieringParameterList *list_parameters(const KsTiering *policy)
{
    MemoryTieringParameterList *list = NULL, **tail = &list;
    KsTieringParameter p;

    for (unsigned i = 0; ks_tiering_parameter(policy, i, &p); i++) {
        MemoryTieringParameter *info;

        if (g_str_equal(p.name, "limit")) {
            continue; /* a property of its own */
        }
        info = g_new0(MemoryTieringParameter, 1);
        info->name = g_strdup(p.name);
        info->help = g_strdup(p.help);
        info->value = p.value;
        info->min = p.min;
        info->max = p.max;
        QAPI_LIST_APPEND(tail, info);
    }
    return list;
}

static MemoryTieringRefusalList *list_refusals(GHashTable *refused)
{
    MemoryTieringRefusalList *list = NULL;
    GHashTableIter iter;
    gpointer reason, pairs;

    g_hash_table_iter_init(&iter, refused);
    while (g_hash_table_iter_next(&iter, &reason, &pairs)) {
        MemoryTieringRefusal *refusal = g_new0(MemoryTieringRefusal, 1);

        refusal->reason = g_strdup(reason);
        refusal->pairs = *(uint64_t *)pairs;
        QAPI_LIST_PREPEND(list, refusal);
    }
    return list;
}

static MemoryTieringInfo *describe(MemoryTiering *t)
{
    MemoryTieringInfo *info = g_new0(MemoryTieringInfo, 1);
    const char *misses, *source = access_tracker_source(&misses);
    KsTieringStats stats;

    info->id = g_strdup(object_get_canonical_path_component(OBJECT(t)));
    info->memdev = g_strdup(t->memdev);
    info->policies = list_policies();
    info->swapper = t->swap->swapper;
    info->swapper_reason = g_strdup(t->swap_reason);
    info->fast_size = t->memory.fast_size;
    info->slow_size = t->memory.backend->size - t->memory.fast_size;
    if (source) {
        info->source = g_strdup(source);
        info->misses = g_strdup(misses);
    }

    QEMU_LOCK_GUARD(&t->lock);
    ks_tiering_stats(t->policy, &stats);
    info->policy = g_strdup(ks_tiering_policy(t->policy));
    info->interval = t->interval_ms;
    info->limit = t->limit;
    info->parameters = list_parameters(t->policy);
    info->scans = stats.scans;
    info->fast_writes = stats.fast_writes;
    info->slow_writes = stats.slow_writes;
    info->decisions = stats.decisions;
    info->pairs = stats.pairs;
    info->swapped = stats.swapped;
    info->refused = list_refusals(t->refused);
    info->decide_time = t->decide_us;
    info->swap_time = t->swap_us;
    info->tracked_pages = stats.tracked_pages;
    info->overhead = stats.memory_bytes;
    info->stopped = g_strdup(t->gave_up);
    return info;
}

MemoryTieringInfoList *qmp_query_memory_tiering(Error **errp)
{
    MemoryTieringInfoList *list = NULL;
    MemoryTiering *t;

    QLIST_FOREACH(t, &memory_tierings, next) {
        QAPI_LIST_PREPEND(list, describe(t));
    }
    return list;
}

static void print_size(Monitor *mon, const char *what, uint64_t bytes)
{
    g_autofree char *text = size_to_str(bytes);

    monitor_printf(mon, "  %-16s %s\n", what, text);
}

static void print_info(Monitor *mon, const MemoryTieringInfo *info)
{
    uint64_t writes = info->fast_writes + info->slow_writes;

    monitor_printf(mon, "%s: memory of %s\n", info->id, info->memdev);
    print_size(mon, "fast:", info->fast_size);
    print_size(mon, "slow:", info->slow_size);
    monitor_printf(mon, "  %-16s %s, each %u ms, at most %u pairs\n", "policy:",
                   info->policy, info->interval, info->limit);
    monitor_printf(mon, "  %-16s %s (%s)\n", "swaps by:",
                   MemoryTieringSwapper_str(info->swapper),
                   info->swapper_reason);
    if (info->source) {
        monitor_printf(mon, "  %-16s %s; misses %s\n", "writes seen by:",
                       info->source, info->misses);
    }
    monitor_printf(mon, "  %-16s %" PRIu64 " page writes of which %.1f %% "
                   "were to fast memory, in %" PRIu64 " scans\n", "seen:",
                   writes, writes ? 100.0 * info->fast_writes / writes : 0.0,
                   info->scans);
    monitor_printf(mon, "  %-16s %" PRIu64 " of %" PRIu64 " pairs in %" PRIu64
                   " decisions\n", "swapped:", info->swapped, info->pairs,
                   info->decisions);
    for (MemoryTieringRefusalList *l = info->refused; l; l = l->next) {
        monitor_printf(mon, "  %-16s %" PRIu64 " pairs: %s\n", "refused:",
                       l->value->pairs, l->value->reason);
    }
    if (info->stopped) {
        monitor_printf(mon, "  swaps no more: %s\n", info->stopped);
    }
}

void hmp_info_memory_tiering(Monitor *mon, const QDict *qdict)
{
    MemoryTieringInfoList *list = qmp_query_memory_tiering(NULL);

    if (!list) {
        monitor_printf(mon, "There is no memory-tiering object\n");
    }
    for (MemoryTieringInfoList *l = list; l; l = l->next) {
        print_info(mon, l->value);
    }
    qapi_free_MemoryTieringInfoList(list);
}
