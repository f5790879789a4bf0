/*
 * Access tracker: what its parts share
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_ACCESS_TRACKER_INTERNAL_H
#define MIGRATION_ACCESS_TRACKER_INTERNAL_H

#include "migration/access-source.h"
#include "qemu/notify.h"
#include "qemu/thread.h"
#include "qom/object.h"

#define TYPE_ACCESS_TRACKER "access-tracker"
OBJECT_DECLARE_SIMPLE_TYPE(AccessTracker, ACCESS_TRACKER)

#define ACCESS_SOURCES 5

/* The best first. */
extern const AccessSourceOps *const access_sources[ACCESS_SOURCES];

struct AccessTracker {
    Object parent_obj;

    /* Properties */
    uint32_t period_ms;
    uint32_t shift_ticks;
    uint64_t chunk_size;
    AccessPolicy policy;
    bool has_source; /* the user's choice; else the best */
    AccessSource source;
    char *record;

    Notifier machine_done;
    QemuThread thread;
    bool running;
    QemuSemaphore wake;
    bool stopping;

    /* Protects what follows against the scanning thread */
    QemuMutex lock;
    SplitLayout *layout;
    KsHistory *history;
    bool owns_history;
    KsHistory *attached; /* a second one to feed; of the same layout */
    AccessListener *listener;
    FILE *record_file; /* the thread's */
    uint64_t scans_recorded;
    bool record_writes;
    uint64_t scans;
    uint64_t accessed;
    uint64_t scan_us;
    unsigned next_source; /* of access_sources[], to try when there is none */
    const AccessSourceOps *ops; /* NULL before the first scan */
    void *opaque;
    char *refusals[ACCESS_SOURCES]; /* why not this source */
};

/* There is one: two would take each other's accessed bits.  Under the BQL. */
extern AccessTracker *the_access_tracker;

/* Whether there is a source at all, or the one that was asked for. */
bool access_tracker_check_source(const AccessTracker *t, Error **errp);
bool access_tracker_source_writes(AccessSource source);
/* The machine has its accelerator and its RAM: starts the scanning thread. */
void access_tracker_start(AccessTracker *t);
/* Joins the thread.  Needs the BQL, and drops it meanwhile. */
void access_tracker_stop(AccessTracker *t);

#endif
