/*
 * Split migration and remote memory: what the rest of QEMU calls
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_SPLIT_H
#define MIGRATION_SPLIT_H

#include "exec/cpu-common.h"
#include "migration/access-tracker.h"
#include "migration/remote-memory.h"
#include "qemu/typedefs.h"

/*
 * Register the stream's sections of both sides: the plan's before RAM, the
 * other behind it.  Once, at start.
 */
void split_migration_init_plan(void);
void split_migration_init(void);

/* ---- Source ------------------------------------------------------------- */

/* True while pages may have to go to sub-hosts. */
bool split_migration_active(void);
/*
 * Takes the dirty page at @offset of @rb if it is planned for a sub-host and
 * then sets *@res as ram_save_target_page() returns it.
 */
bool split_migration_save_page(RAMBlock *rb, ram_addr_t offset, int *res);
/* migrate_cancel, at its end: ends whatever blocks.  Under the BQL. */
void split_migration_cancel(void);
/*
 * The migration thread is about to decide whether the VM runs here again.
 * If the migration broke during the handover, finds out who owns the VM and
 * changes the migration's state accordingly.  Without the BQL.
 */
void split_migration_settle(MigrationState *s);

/*
 * The destination has failed and will never run the VM: what it sends on the
 * return path then, and what the source does about it.
 */
#define MIG_RP_SHUT_GIVEN_UP 2
void split_migration_given_up(void);
/* Why the destination will not have it, from the return path: any bytes. */
void split_migration_refused(const char *reason, size_t bytes);
/* What an fd: URI named when the migration was asked for. */
int split_migration_take_fd(void);
/* Found by split_migration_settle(): nobody can tell who owns the VM. */
bool split_migration_in_doubt(void);
/* False once the VM was handed over: its copy here must not run. */
bool split_migration_may_run(Error **errp);
/* Whether a migration of any kind may begin. */
bool split_migration_may_migrate(Error **errp);
/* Whether what waits in the senders' queues fills the bandwidth limit. */
bool split_migration_rate_exceeded(void);

/* ---- Destination -------------------------------------------------------- */

/*
 * The stream was loaded without error; takes the VM over for good, however
 * long the arbiter takes to answer.  Without remote memory there is nothing to
 * do.  On failure the VM must not run.
 */
bool coroutine_fn remote_memory_commit(Error **errp);
/* Why the stream was refused, for the source; NULL if remote memory did not. */
const char *remote_memory_refusal(void);
/* After it was sent: does not close the stream @f before it was read. */
void remote_memory_let_read(QEMUFile *f);
/*
 * Whether the source may be told that this side will never run the VM: not
 * while it may have taken it over.
 */
bool remote_memory_give_up(void);
/* The VM is gone, or did not come: gives the servers' memory back. */
void remote_memory_cleanup(void);
/*
 * The user stops a VM that is stopped for a lost server: it must not go on by
 * itself.
 */
void remote_memory_user_stop(void);
/*
 * Whether the VM may start now.  If not, it will by itself, once all servers
 * are back; unless it was to make a single @step.
 */
bool remote_memory_may_start(bool step);
/* False when that will not be: a server is there without the VM's pages. */
bool remote_memory_may_run(Error **errp);
/*
 * QEMU is to end.  If the main loop does not end it, as it waits for a page of
 * a lost server, it ends without.  Any thread, and signal handlers.
 */
void remote_memory_quit(void);

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
