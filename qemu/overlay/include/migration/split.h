/*
 * Split migration and remote memory: what the rest of QEMU calls
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_SPLIT_H
#define MIGRATION_SPLIT_H

#include "exec/cpu-common.h"
#include "migration/access-tracker.h"
#include "qemu/typedefs.h"

/* Registers the stream section of both sides.  Once, at start. */
void split_migration_init(void);

/* ---- Source ------------------------------------------------------------- */

/* True while pages may have to go to sub-hosts. */
bool split_migration_active(void);
/*
 * Takes the dirty page at @offset of @rb if it is planned for a sub-host and
 * then sets *@res as ram_save_target_page() returns it.
 */
bool split_migration_save_page(RAMBlock *rb, ram_addr_t offset, int *res);
/* migrate_cancel: ends whatever blocks.  Any thread. */
void split_migration_cancel(void);
/*
 * The migration thread is about to decide whether the VM runs here again.
 * If the migration broke during the handover, finds out who owns the VM and
 * changes the migration's state accordingly.  Without the BQL.
 */
void split_migration_settle(MigrationState *s);

/*
 * False once the VM was handed over: a copy of it must not run here, nor be
 * migrated from here.
 */
bool split_migration_may_run(Error **errp);

/* ---- Destination -------------------------------------------------------- */

/*
 * The stream was loaded without error; takes the VM over for good.  Without
 * remote memory there is nothing to do.  On failure the VM must not run.
 */
bool remote_memory_commit(Error **errp);
/* The VM is gone: gives the servers' memory back. */
void remote_memory_cleanup(void);

/* ---- Between split.c, remote-memory.c and split-layout.c ---------------- */

/* Records of the stream section "remote-memory". */
typedef enum SplitRecord {
    SPLIT_RECORD_PLAN = 1,    /* u8 page-out, blocks, blob: the plan */
    SPLIT_RECORD_CHANGES = 2, /* blob: changes since the last record */
    SPLIT_RECORD_END = 3,     /* the same; everything is on the servers */
} SplitRecord;

int remote_memory_load(QEMUFile *f, void *opaque, int version_id);

/* Whether this VM's RAM and devices can live with remote memory. */
bool split_layout_check(const SplitLayout *layout, Error **errp);

#endif
