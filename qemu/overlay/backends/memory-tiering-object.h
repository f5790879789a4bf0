/*
 * Memory tiering: the object
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BACKENDS_MEMORY_TIERING_OBJECT_H
#define BACKENDS_MEMORY_TIERING_OBJECT_H

#include "memory-tiering-internal.h"
#include "migration/access-tracker.h"
#include "qemu/notify.h"
#include "qemu/thread.h"
#include "qom/object.h"

#define TYPE_MEMORY_TIERING "memory-tiering"
OBJECT_DECLARE_SIMPLE_TYPE(MemoryTiering, MEMORY_TIERING)

struct MemoryTiering {
    Object parent_obj;

    /* Properties */
    char *memdev;
    char *policy_name;
    strList *fast;
    uint32_t interval_ms; /* under the lock, as the next one */
    uint32_t limit;
    strList *parameters;  /* until the policy is made */

    Notifier machine_done;
    char *id; /* for the thread, which may not ask for it */
    TieringMemory memory;
    uint64_t first_page; /* of the memory, in the tracker's layout */
    const TieringSwapOps *swap;
    const char *swap_reason;
    void *swapper;
    AccessListener listener;
    QemuThread thread;
    QemuSemaphore wake;
    QEMUBH *bh;
    bool running;
    bool stopping;

    /* The thread's; the main loop's while swapping is set. */
    bool swapping;
    KsTieringPair pairs[TIERING_MAX_PAIRS];
    TieringResult results[TIERING_MAX_PAIRS];
    uint32_t count;

    /* Protects what follows, and is the policy's "one thread at a time" */
    QemuMutex lock;
    KsTiering *policy;
    bool in_scan;
    bool policy_failed;
    char *gave_up; /* why no more pages are swapped; set once */
    int64_t now_ms;
    int64_t next_decision_ms;
    uint64_t decide_us;
    uint64_t swap_us;
    GHashTable *refused; /* reason to uint64_t, the pairs */

    QLIST_ENTRY(MemoryTiering) next; /* in memory_tierings */
};

/* Those that run.  Under the BQL. */
typedef QLIST_HEAD(, MemoryTiering) MemoryTieringList;
extern MemoryTieringList memory_tierings;

/* Begins to scan and to swap.  After the machine is made.  Needs the BQL. */
bool memory_tiering_start(MemoryTiering *t, Error **errp);
/* Ends what start() has begun, also in part. */
void memory_tiering_stop(MemoryTiering *t);

#endif
