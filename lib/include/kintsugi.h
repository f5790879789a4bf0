/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * libkintsugi for C: all that QEMU uses.
 *
 * Pages are 4 KiB. A page index counts the VM's split RAM blocks laid end to end, in the order in
 * which the source lists them. Functions that can fail take a KsError and return a negative errno
 * (or NULL); the error's message is a whole sentence for the user. No C++ exception leaves the
 * library.
 *
 * Threads: each function says who may call it. "Any thread" means also concurrently.
 */
#ifndef KINTSUGI_H
#define KINTSUGI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KS_PAGE_SIZE 4096u
#define KS_MAX_SERVERS 63u
#define KS_SESSION_ID_BYTES 16u

typedef struct KsError {
    int code;           /* positive errno; 0: no error */
    char message[1024]; /* NUL-terminated; cut when longer */
} KsError;

/* ---- Access history (P1, "access history") ---- */

typedef enum KsPolicy {
    KS_POLICY_CLOCK = 0, /* 1 bit a page, a chunk ranks by the sum of its bits */
    KS_POLICY_AGING = 1, /* 8 bits a page, a chunk ranks by the maximum of its bytes */
} KsPolicy;

typedef struct KsHistory KsHistory;

/*
 * @pages: of the VM. @chunk_pages: a power of two. @shift_ticks: ticks between two shifts of the
 * aging policy, at least 1.
 */
KsHistory *ks_history_new(uint64_t pages, uint32_t chunk_pages, KsPolicy policy,
                          uint32_t shift_ticks, KsError *err);
void ks_history_free(KsHistory *history);
/*
 * What one scan saw: bit i of @accessed (64-bit words, least significant first) is page
 * @first_page + i. One thread at a time; shared with ks_history_tick().
 */
void ks_history_feed(KsHistory *history, uint64_t first_page, const uint64_t *accessed,
                     uint64_t pages);
/* The end of a scan period. */
void ks_history_tick(KsHistory *history);
/* A chunk's rank: higher is hotter. Any thread. */
uint16_t ks_history_rank(const KsHistory *history, uint64_t chunk);

/* ---- Tiering: which pages lie on the fast tier (P4) ---- */

typedef struct KsTiering KsTiering;

typedef struct KsTieringPair { /* the two are to change places, contents included */
    uint64_t slow_page;
    uint64_t fast_page;
} KsTieringPair;

/*
 * A VM of @pages pages, 1 to 2^32 - 1, all on the slow tier at first. @policy: one of
 * ks_tiering_policy_name(). Use:
 *
 *   ks_tiering_set_fast() for what lies on the fast tier
 *   each scan period:      begin_scan, feed_written and feed_accessed for each range, end_scan
 *   each decision period:  decide, swap each pair, report each
 *
 * The library reads no clock, so the same calls give the same pairs. All functions on one KsTiering
 * by one thread at a time. Those that return an int may return -ENOMEM; then nothing but
 * ks_tiering_free() and what takes a const pointer is of use any more.
 */
KsTiering *ks_tiering_new(uint64_t pages, const char *policy, KsError *err);
void ks_tiering_free(KsTiering *tiering);
/*
 * Pages [@first_page, @first_page + @pages) lie on the fast tier or the slow one. At the start, and
 * whenever something else than a reported pair has moved pages. -EINVAL: past the end of the VM.
 */
int ks_tiering_set_fast(KsTiering *tiering, uint64_t first_page, uint64_t pages, bool fast,
                        KsError *err);
bool ks_tiering_is_fast(const KsTiering *tiering, uint64_t page);

/* @now_ms: milliseconds from any origin that do not go back. */
int ks_tiering_begin_scan(KsTiering *tiering, int64_t now_ms);
/*
 * What the scan saw: bit i of @written (64-bit words, least significant first) is page
 * @first_page + i. Each page once a scan, in any order of ranges.
 */
int ks_tiering_feed_written(KsTiering *tiering, uint64_t first_page, const uint64_t *written,
                            uint64_t pages);
/* Pages read or written; for sources that can tell. */
int ks_tiering_feed_accessed(KsTiering *tiering, uint64_t first_page, const uint64_t *accessed,
                             uint64_t pages);
int ks_tiering_end_scan(KsTiering *tiering);

/*
 * Pairs to swap, the most wanted first: at most @max and at most the parameter "limit". Each is one
 * slow and one fast page, and no page is in two. *@count of them are written to @pairs. Pairs of
 * the call before that were not reported on count as refused. After a scan.
 */
int ks_tiering_decide(KsTiering *tiering, KsTieringPair *pairs, uint32_t max, uint32_t *count,
                      KsError *err);
/*
 * What became of pair @pair, from 0, of the last ks_tiering_decide(): whether the pages have
 * changed places. Scans may lie between. -ENOENT: no such pair, or reported on before.
 */
int ks_tiering_report(KsTiering *tiering, uint32_t pair, bool swapped);

/*
 * Another policy, which begins to learn; the placement stays. Parameters of the policy are then at
 * their defaults; those that every policy has stay. -EINVAL: no such policy; nothing is changed.
 */
int ks_tiering_set_policy(KsTiering *tiering, const char *policy, KsError *err);
/* The name of the policy in use; valid until the next ks_tiering_set_policy(). */
const char *ks_tiering_policy(const KsTiering *tiering);
/* The policies there are, from 0: the name, and in *@about (may be NULL) a line on it; NULL at the
 * end. Any thread. */
const char *ks_tiering_policy_name(unsigned index, const char **about);

typedef struct KsTieringParameter {
    char name[32]; /* "limit", "life-time-ms" */
    char help[128];
    double min, max; /* inclusive */
    bool integer;    /* whole numbers only */
    double value;
} KsTieringParameter;

/*
 * Parameters that every policy has: "limit", pairs that a decision may name (1,000);
 * "ping-pong-gate", decisions for which a swapped page stays where it is (0);
 * "refused-wait", decisions for which the pages of a refused pair are left alone (12). And those of
 * the policy in use. Take effect at once. -ENOENT: this policy has none of that name. -EINVAL: out
 * of range.
 */
int ks_tiering_set(KsTiering *tiering, const char *name, double value, KsError *err);
int ks_tiering_get(const KsTiering *tiering, const char *name, double *value, KsError *err);
/* All of them, from 0; false at the end. */
bool ks_tiering_parameter(const KsTiering *tiering, unsigned index, KsTieringParameter *out);

typedef struct KsTieringStats { /* since the start, over all policies */
    uint64_t scans, decisions;
    uint64_t fast_writes, slow_writes; /* pages seen written, each once a scan */
    uint64_t pairs, swapped, refused;  /* handed out; of them */
    uint64_t pages, fast_pages;
    uint64_t tracked_pages, memory_bytes; /* that the policy remembers, and what that takes */
} KsTieringStats;

void ks_tiering_stats(const KsTiering *tiering, KsTieringStats *out);

/* ---- Source of a split migration ---- */

typedef struct KsSubHost {
    const char *uri;         /* tcp:HOST:PORT, tcp:[V6]:PORT or unix:PATH */
    uint64_t capacity_bytes; /* to reserve there; a multiple of the page size */
} KsSubHost;

typedef struct KsSplitConfig {
    const char *vm_name;          /* for people; may be NULL */
    uint64_t vm_pages;            /* of all split RAM blocks */
    uint32_t chunk_pages;         /* a power of two */
    uint64_t main_capacity_bytes; /* split RAM that the main host may hold */
    const KsSubHost *sub_hosts;
    uint32_t sub_host_count; /* 1 to KS_MAX_SERVERS */
    KsPolicy policy;
    const KsHistory *history; /* what to plan by; NULL: nothing is known. Lives until planned */
    uint32_t connect_timeout_ms;
    uint32_t io_timeout_ms; /* a server that moves no byte for so long is taken for dead */
} KsSplitConfig;

typedef struct KsSplit KsSplit;

/*
 * Checks @config, alone: no network. Any thread.
 */
int ks_split_check(const KsSplitConfig *config, KsError *err);
/* Creates the job without connecting; @config is copied but for the history. */
KsSplit *ks_split_new(const KsSplitConfig *config, KsError *err);
/*
 * Connects to all servers and reserves their capacity, then plans: which chunk goes where. On
 * failure every reservation made is dropped again. Blocks up to the time-outs; ks_split_cancel()
 * ends it. One thread.
 */
int ks_split_open(KsSplit *split, KsError *err);
/* Who gets @page: 0 the main host, else the number of the sub-host from 1. Any thread. */
unsigned ks_split_owner(const KsSplit *split, uint64_t page);
/*
 * Queues a page for the sub-host that the plan gives it to. Its content is read at @host some time
 * later, until ks_split_flush() returns: a page that changes meanwhile must be queued again, which
 * dirty logging does. Pages that are all zero are noted, not sent. Blocks while the queue is full.
 * Returns 0 or the negative errno that the job failed with. One thread.
 */
int ks_split_send(KsSplit *split, uint64_t page, const void *host);
/* Hands what is queued to the senders, without waiting. One thread, the one that sends. */
void ks_split_kick(KsSplit *split);
/* Waits until every server has acknowledged everything sent. The thread that sends. */
int ks_split_flush(KsSplit *split, KsError *err);
/*
 * 0 while all is well, else the negative errno that a sender failed with, and why. Any thread.
 */
int ks_split_error(KsSplit *split, KsError *err);
/* Pages queued and not yet acknowledged. Any thread. */
uint64_t ks_split_pending(const KsSplit *split);
/*
 * A period in which QEMU measures the bandwidth began at @began_ms, with so many bytes sent since
 * the start: to the main host, and to all sub-hosts. May be called again in it. One thread.
 */
void ks_split_period(KsSplit *split, int64_t began_ms, uint64_t main_bytes, uint64_t sub_bytes);
/*
 * How many times longer than by the bandwidth of the last period what is left takes, 1 or more, if
 * @sub_share of it (0 to 1) goes to sub-hosts. The thread of ks_split_period().
 */
double ks_split_slowdown(const KsSplit *split, double sub_share);

/*
 * What the destination must know: the plan (once, at set-up, after ks_split_open()), and later
 * what changed since the last call (zero pages found, history). *@data is malloc()ed; free with
 * ks_free(). The size of changes is bounded by what was sent since, not by the VM's memory.
 */
int ks_split_encode_plan(KsSplit *split, void **data, size_t *bytes, KsError *err);
int ks_split_encode_changes(KsSplit *split, void **data, size_t *bytes, KsError *err);
void ks_free(void *data);

typedef struct KsSplitTarget {
    char uri[256]; /* empty for the main host */
    uint64_t capacity_bytes;
    uint64_t planned_pages;
    uint64_t sent_pages; /* again when dirtied again */
    uint64_t sent_bytes; /* on the wire */
    uint64_t zero_pages; /* noted, not sent */
} KsSplitTarget;

/* The target's figures; 0 is the main host (planned_pages only). Any thread. */
void ks_split_target(const KsSplit *split, unsigned target, KsSplitTarget *out);
/* Bytes put on the wire to all sub-hosts since the start. Any thread. */
uint64_t ks_split_sent_bytes(const KsSplit *split);

/*
 * Whether a sub-host is the cause of a migration that failed before the handover: 0 if all answer,
 * else what is wrong with one. Blocks for 4 s at most.
 */
int ks_split_diagnose(const KsSplit *split, KsError *err);
/*
 * Makes every blocking call of this job fail with -ECANCELED soon. Any thread.
 */
void ks_split_cancel(KsSplit *split);
/*
 * After ks_split_flush(), with the VM stopped: the end of the stream is about to be sent. From then
 * on the VM may be the destination's. On failure it must not be sent. The thread that sends.
 */
int ks_split_end(KsSplit *split, KsError *err);
/*
 * The stream broke, or the migration was cancelled, after ks_split_end(), so that the destination
 * may be taking over: asks the arbiter (the first sub-host), once.
 *  0            this side may run the VM; the destination no longer can
 *  -EALREADY    the destination committed: this side must never run the VM again
 *  otherwise    not known: do not run, ask again. -ENOENT: the arbiter knows no such session any
 *               more, so it may never be known
 * Blocks up to the time-outs. One thread at a time.
 */
int ks_split_settle(KsSplit *split, KsError *err);
/* The destination has said that it will never run the VM. Any thread. */
void ks_split_given_up(KsSplit *split);
/*
 * Ends the job. @drop_sessions: free everything on the servers (best effort, bounded by the
 * time-outs); false after a handover.
 */
void ks_split_free(KsSplit *split, bool drop_sessions);

/* ---- Destination: remote memory ---- */

typedef enum KsPageOut {
    KS_PAGE_OUT_AUTO = 0,
    KS_PAGE_OUT_MOVE = 1,          /* UFFDIO_MOVE */
    KS_PAGE_OUT_WRITE_PROTECT = 2, /* write-protect, copy, discard */
    KS_PAGE_OUT_PAGEOUT = 3,       /* UFFDIO_PAGEOUT of linux-patches/ */
} KsPageOut;

typedef enum KsServerState {
    KS_SERVER_CONNECTED = 0, /* it is back */
    KS_SERVER_LOST = 1,
    KS_SERVER_PAGES_LOST = 2, /* it answers, and has not what it acknowledged */
} KsServerState;

typedef struct KsServerEvent {
    const char *uri;
    KsServerState state;
    const char *error; /* why; "" when back */
} KsServerEvent;

typedef struct KsPagerConfig {
    uint64_t vm_pages; /* of this VM; a plan for another size is refused */
    KsPageOut page_out;
    uint32_t io_timeout_ms;
    /* Called on a pager thread; must not block nor call back into the pager. */
    void (*on_server_event)(void *opaque, const KsServerEvent *event);
    void *opaque;
} KsPagerConfig;

typedef struct KsPager KsPager;

/* From what ks_split_encode_plan() wrote; nothing in @plan is trusted. */
KsPager *ks_pager_new(const void *plan, size_t bytes, const KsPagerConfig *config, KsError *err);
/*
 * Connects to all servers and looks whether the sessions are there: once, before the source sends
 * much, because later the VM is stopped. Blocks for up to the connect and io time-outs.
 */
int ks_pager_connect(KsPager *pager, KsError *err);
uint32_t ks_pager_chunk_pages(const KsPager *pager);
KsPolicy ks_pager_policy(const KsPager *pager);
/* Private anonymous memory of 4 KiB pages at @host; before ks_pager_claim(). */
int ks_pager_add_region(KsPager *pager, void *host, uint64_t first_page, uint64_t pages,
                        KsError *err);
/* From what ks_split_encode_changes() wrote, in its order; before ks_pager_start(). */
int ks_pager_apply_changes(KsPager *pager, const void *data, size_t bytes, KsError *err);
/*
 * Takes the sessions over: from here on the source can no longer write to the servers. Then
 * registers the memory with userfaultfd and starts paging: from here on the guest's memory may be
 * touched. Blocks up to the time-outs.
 */
int ks_pager_start(KsPager *pager, KsError *err);
/*
 * This host owns the VM from here on: only then may vCPUs run. Asks the arbiter until it answers,
 * however long that takes, or until ks_pager_cancel(). -ECANCELED: not known; otherwise refused:
 * never run.
 */
int ks_pager_commit(KsPager *pager, KsError *err);
/*
 * Whether the source may be told that this host will never run the VM. False while a Commit is
 * unanswered. Any thread.
 */
bool ks_pager_give_up(KsPager *pager);
/* Ends calls that wait for a server with -ECANCELED. Any thread. */
void ks_pager_cancel(KsPager *pager);
/*
 * Between ks_pager_add_region() and ks_pager_start() something else than the migration stream has
 * written to the memory, a reset say: frees what is remote again.
 */
int ks_pager_discard_remote(KsPager *pager, KsError *err);
/* The history that the pager evicts by; to be fed by the access tracker. Lives with the pager. */
KsHistory *ks_pager_history(KsPager *pager);

typedef struct KsPagerStats {
    uint64_t vm_pages, limit_pages;
    uint64_t resident_pages, remote_pages, zero_pages, queued_pages;
    uint64_t faults, page_ins, prefetched_pages, zero_fills, queue_hits;
    uint64_t page_outs, page_outs_zero;
    uint64_t page_outs_refused; /* pinned, or written meanwhile */
    /* From reading a fault to waking who waits, for a server, a prefetch under way or room */
    uint64_t page_in_p50_ns, page_in_p99_ns, page_in_max_ns;
    uint64_t page_out_p50_ns, page_out_p99_ns; /* from unmapping to the server's answer */
    uint64_t hard_waits; /* faults that had to wait for an eviction */
    KsPageOut page_out; /* never AUTO */
    char page_out_reason[256]; /* why this method */
    uint32_t servers, servers_lost;
    uint64_t waiting; /* pages that somebody waits for */
} KsPagerStats;

typedef struct KsPagerWait {
    uint64_t page;
    uint64_t ns;        /* so far */
    uint32_t thread_id; /* the host's thread that touched it first */
    uint32_t server;    /* from 1, that it comes from; 0: it waits for room */
} KsPagerWait;

typedef struct KsPagerServer {
    char uri[256];
    bool connected;
    bool pages_lost; /* it answers, and has not what it acknowledged */
    char error[256]; /* when not connected */
    uint64_t capacity_pages, pages;
    uint64_t page_ins, page_outs, bytes_in, bytes_out, reconnects;
} KsPagerServer;

/* Any thread. */
void ks_pager_stats(const KsPager *pager, KsPagerStats *out);
/* The pages that have been waited for longest, longest first; returns how many. Any thread. */
unsigned ks_pager_waits(const KsPager *pager, KsPagerWait *waits, unsigned max);
/* @server from 0. Any thread. */
void ks_pager_server(const KsPager *pager, unsigned server, KsPagerServer *out);

/* Ends paging. @drop_sessions frees everything on the servers (best effort). */
void ks_pager_free(KsPager *pager, bool drop_sessions);

#ifdef __cplusplus
}
#endif

#endif /* KINTSUGI_H */
