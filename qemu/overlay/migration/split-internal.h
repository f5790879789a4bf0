/*
 * Split migration, source side: what its files know of one another
 *
 * split.c is the job, from the command to its end; split-stream.c what it
 * writes into the migration stream; split-handover.c who owns the VM.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_SPLIT_INTERNAL_H
#define MIGRATION_SPLIT_INTERNAL_H

#include "migration/split.h"
#include "qapi/qapi-types-remote-memory.h"

/*
 * The newest split migration.  Written under the BQL by the main thread, and
 * fixed while the migration thread runs.
 */
typedef struct SplitJob {
    /* Set while there is a job.  Its own functions say who may call them. */
    KsSplit *ks;
    SplitLayout *layout;
    SplitPhase phase;
    PageOutMethod page_out;
} SplitJob;

extern SplitJob split_job;

/* ---- split.c.  Under the BQL -------------------------------------------- */

void split_job_set_phase(SplitPhase phase, const char *error);
void split_migration_init_job(void);
/* The job is over; what it has on servers is dropped unless it completed. */
void split_job_end(SplitPhase phase, const char *error);

/* ---- split-stream.c ------------------------------------------------------ */

/* A new job: nothing was sent. */
void split_stream_begin(void);
/* Fails the migration with what stopped the senders. */
int split_stream_failed(const KsError *err);

/* ---- split-handover.c ---------------------------------------------------- */

void split_handover_init(void);
/* A new job: END was not sent, and nobody said anything. */
void split_handover_begin(void);
/* END may be on the wire from here on. */
void split_handover_end_sent(void);
/*
 * The migration is over.  True if it is not known who owns the VM: then the job
 * goes on, and the arbiter is asked.  Else *@error is what is to be told of a
 * failure, made of what it was; owned by the caller.
 */
bool split_handover_over(SplitPhase phase, char **error);

#endif
