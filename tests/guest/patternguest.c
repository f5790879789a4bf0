/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The program inside a test guest: it fills memory with a checkable pattern, then keeps reading
 * and rewriting it, and verifies every page it reads, whole. Whatever migration and paging do to
 * the guest's memory, a page that is lost, stale, torn, duplicated or another page's is found.
 *
 * A page holds its number, its generation, and a fill that follows from both; its generation is
 * also kept in a small table elsewhere. A page may also be all zero, which the table says. A
 * rewrite raises the generation. The sum of all generations must equal the number of writes, so
 * that a page and its table entry cannot be set back together unseen.
 *
 * Each worker owns a contiguous stripe of pages. Some runs of pages are hot and are visited most
 * of the time, in random order; every kg.coldevery-th visit instead takes the next page of the
 * stripe in order, so all pages are verified within a bounded number of visits (one "pass").
 *
 * The memory is one private anonymous mapping with the guest kernel's default huge page policy:
 * huge pages make guest-physical runs long, as in a real guest, and fill fast. Zero pages are
 * written too, so that each has guest RAM behind it. Nothing is locked: guests have no swap.
 *
 * Kernel command line (defaults in brackets):
 *   kg.mib=N       MiB of pattern [85 % of MemAvailable]   kg.workers=N    threads [1]
 *   kg.hot=P       percent of runs that are hot [20]       kg.zero=P       percent zero pages [10]
 *   kg.hotwrite=P  hot visits that rewrite [50]            kg.coldwrite=P  cold ones [10]
 *   kg.coldevery=N every N-th visit is cold [8]            kg.zeroflip=P   rewrites that turn data
 *   kg.rate=N      visits a second and worker, 0 = no                      to zero or back [2]
 *                  limit [0]                               kg.seed=N       [1]
 *   kg.beat_ms=N   between two beats [200]                 kg.hold=1       start held
 *
 * Output, one line each, ended by " ;" so that half a line is never taken for a whole one:
 *   KG ready pages=N zero=N hot=N fill_ms=N ;
 *   KG beat pass=N checked=N written=N errors=N maxgap_us=N ;
 *   KG ERROR page=N expected=... found=... ;          (the first MAX_ERROR_LINES of them)
 *   KG sweep done pages=N errors=N total_errors=N zero=N ms=N ;
 *   KG held ;   KG going ;   KG rate N ;   KG quit pages=N errors=N ;
 * maxgap_us is the longest time between the ends of two visits since the last beat, by the
 * guest's own clock, which stands still while the VM is stopped.
 *
 * Input, one word a line: sweep (verify all pages once), hold, go, rate N, beat, quit (power off).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#define PAGE_BYTES 4096
#define PAGE_WORDS (PAGE_BYTES / sizeof(uint64_t))
#define HEADER_WORDS 2
#define RUN_PAGES 64u              /* hotness is decided for runs of this many pages */
#define ZERO_FLAG 0x80000000u      /* in a table entry: the page is all zero */
#define PAGE_MAGIC 0x4b470000ull   /* upper half of word 0 of every data page */
#define FILL_STEP 0x9e3779b97f4a7c15ull
#define MAX_WORKERS 16
#define MAX_ERROR_LINES 20
#define VISITS_PER_RATE_CHECK 32

struct worker {
    pthread_t thread;
    uint32_t first, count;         /* the stripe */
    uint32_t *hot_runs;            /* first pages of the hot runs in it */
    uint32_t hot_count;
    uint32_t cursor;               /* next cold page, relative to first */
    uint64_t rng;
    uint32_t sweep_seen;           /* sweeps this worker has finished */
    bool parked;
    /* Written by the worker alone, read by anyone. */
    atomic_uint_fast64_t passes, checked, written, sweep_errors, sweep_zero;
    atomic_uint_fast64_t max_gap;  /* TSC ticks */
};

static uint32_t opt_workers = 1, opt_hot = 20, opt_zero = 10, opt_hotwrite = 50;
static uint32_t opt_coldwrite = 10, opt_coldevery = 8, opt_zeroflip = 2, opt_beat_ms = 200;
static uint32_t opt_mib, opt_seed = 1, opt_hold, opt_rate;

static uint8_t *memory;
static uint32_t *table;
static uint32_t page_count;
static struct worker workers[MAX_WORKERS];
static double ticks_per_us = 1000;

static atomic_uint_fast64_t total_errors;
static atomic_uint rate;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static atomic_uint sweep_wanted;   /* changed under lock, as is held */
static atomic_bool held;

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* One line to the console, in one write. */
static void say(const char *format, ...)
{
    static pthread_mutex_t say_lock = PTHREAD_MUTEX_INITIALIZER;
    char line[320] = "KG ";
    va_list args;
    va_start(args, format);
    int length = 3 + vsnprintf(line + 3, sizeof(line) - 8, format, args);
    va_end(args);
    if (length > (int)sizeof(line) - 6) {
        length = sizeof(line) - 6;
    }
    memcpy(line + length, " ;\n", 3);
    length += 3;
    pthread_mutex_lock(&say_lock);
    for (int done = 0; done < length;) {
        ssize_t n = write(STDOUT_FILENO, line + done, length - done);
        if (n < 0 && errno != EINTR && errno != EAGAIN) {
            break;
        }
        done += n > 0 ? n : 0;
    }
    pthread_mutex_unlock(&say_lock);
}

static uint64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* The finalizer of splitmix64: a bijection that spreads every bit. */
static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static uint64_t next_random(struct worker *w)
{
    w->rng ^= w->rng << 13;
    w->rng ^= w->rng >> 7;
    w->rng ^= w->rng << 17;
    return w->rng;
}

static bool chance(struct worker *w, uint32_t percent)
{
    return (uint32_t)(next_random(w) >> 33) % 100 < percent;
}

static uint64_t *page_at(uint32_t page)
{
    return (uint64_t *)(memory + (uint64_t)page * PAGE_BYTES);
}

static uint64_t fill_seed(uint32_t page, uint32_t generation)
{
    return mix(((uint64_t)generation << 32 | page) + opt_seed * 0x632be59bd9b4e019ull);
}

static uint64_t header_word(uint32_t page)
{
    return PAGE_MAGIC << 32 | page;
}

/* Words differ at every position between any two (page, generation): the step is constant. */
static void write_page(uint32_t page, uint32_t entry)
{
    uint64_t *q = page_at(page);
    if (entry & ZERO_FLAG) {
        memset(q, 0, PAGE_BYTES);
        return;
    }
    uint64_t x = fill_seed(page, entry);
    q[0] = header_word(page);
    q[1] = entry;
    for (size_t i = HEADER_WORDS; i < PAGE_WORDS; i++) {
        q[i] = x;
        x += FILL_STEP;
    }
}

/* Zero if the page holds exactly what `entry` says. */
static uint64_t page_difference(uint32_t page, uint32_t entry)
{
    const uint64_t *q = page_at(page);
    uint64_t difference = 0;
    if (entry & ZERO_FLAG) {
        for (size_t i = 0; i < PAGE_WORDS; i++) {
            difference |= q[i];
        }
        return difference;
    }
    uint64_t x = fill_seed(page, entry);
    difference = (q[0] ^ header_word(page)) | (q[1] ^ entry);
    for (size_t i = HEADER_WORDS; i < PAGE_WORDS; i++) {
        difference |= q[i] ^ x;
        x += FILL_STEP;
    }
    return difference;
}

/* Say what a bad page looks like: whose it is, which generation, and how much of it is wrong. */
static void report(uint32_t page, uint32_t entry)
{
    if (atomic_fetch_add(&total_errors, 1) >= MAX_ERROR_LINES) {
        return;
    }
    const uint64_t *q = page_at(page);
    bool zero = entry & ZERO_FLAG;
    uint32_t bad = 0, zeros = 0, first_bad = 0;
    uint64_t x = fill_seed(page, entry);
    for (size_t i = 0; i < PAGE_WORDS; i++) {
        uint64_t want = i == 0 ? header_word(page) : i == 1 ? entry : x;
        x += i >= HEADER_WORDS ? FILL_STEP : 0;
        if (q[i] != (zero ? 0 : want)) {
            first_bad = bad++ ? first_bad : (uint32_t)i;
        }
        zeros += q[i] == 0;
    }
    char found[96];
    if (zeros == PAGE_WORDS) {
        snprintf(found, sizeof(found), "all-zero");
    } else if (q[0] >> 32 == PAGE_MAGIC) {
        snprintf(found, sizeof(found), "page:%u/generation:%llu", (uint32_t)q[0],
                 (unsigned long long)q[1]);
    } else {
        snprintf(found, sizeof(found), "%016llx-%016llx", (unsigned long long)q[0],
                 (unsigned long long)q[1]);
    }
    say("ERROR page=%u expected=%s/generation:%u found=%s bad_words=%u first_bad=%u"
        " zero_words=%u",
        page, zero ? "zero" : "data", entry & ~ZERO_FLAG, found, bad, first_bad, zeros);
}

/*
 * Verify a page and perhaps rewrite it. A bad page is always rewritten, so that each fault counts
 * once. Returns whether it was good.
 */
static bool visit(struct worker *w, uint32_t page, bool rewrite)
{
    uint32_t entry = table[page];
    bool good = page_difference(page, entry) == 0;
    if (!good) {
        report(page, entry);
    }
    if (rewrite || !good) {
        uint32_t zero = entry & ZERO_FLAG;
        if (chance(w, opt_zeroflip)) {
            zero ^= ZERO_FLAG;
        }
        entry = (((entry & ~ZERO_FLAG) + 1) & ~ZERO_FLAG) | zero;
        write_page(page, entry);
        table[page] = entry;
        atomic_store_explicit(&w->written, w->written + 1, memory_order_relaxed);
    }
    atomic_store_explicit(&w->checked, w->checked + 1, memory_order_relaxed);
    return good;
}

/* Verify the whole stripe, and that its table adds up to the number of writes. */
static void sweep_stripe(struct worker *w)
{
    uint64_t errors = 0, zero = 0, generations = 0;
    for (uint32_t page = w->first; page < w->first + w->count; page++) {
        generations += table[page] & ~ZERO_FLAG;
        zero += (table[page] & ZERO_FLAG) != 0;
        errors += !visit(w, page, false);
    }
    if (errors == 0 && generations != w->written) {
        errors++;
        atomic_fetch_add(&total_errors, 1);
        say("ERROR page=%u expected=table-sum:%llu found=table-sum:%llu", w->first,
            (unsigned long long)w->written, (unsigned long long)generations);
    }
    w->sweep_errors = errors;
    w->sweep_zero = zero;
}

/* Wait while held; do a sweep that is wanted. Called between two visits. */
static void obey(struct worker *w)
{
    pthread_mutex_lock(&lock);
    for (;;) {
        if (w->sweep_seen != sweep_wanted) {
            pthread_mutex_unlock(&lock);
            sweep_stripe(w);
            pthread_mutex_lock(&lock);
            w->sweep_seen++;
            pthread_cond_broadcast(&changed);
        } else if (held) {
            w->parked = true;
            pthread_cond_broadcast(&changed);
            pthread_cond_wait(&changed, &lock);
        } else {
            break;
        }
    }
    w->parked = false;
    pthread_mutex_unlock(&lock);
}

static void *work(void *argument)
{
    struct worker *w = argument;
    uint64_t visits = 0, rate_start_us = now_us(), rate_visits = 0, last = __rdtsc();
    uint32_t rate_seen = rate;
    for (;;) {
        if (held || sweep_wanted != w->sweep_seen) {
            obey(w);
            last = __rdtsc();
        }
        if (w->hot_count && ++visits % opt_coldevery) {
            uint64_t random = next_random(w);
            uint32_t run = w->hot_runs[(uint32_t)(random >> 32) % w->hot_count];
            uint32_t left = w->first + w->count - run;
            visit(w, run + (uint32_t)random % (left < RUN_PAGES ? left : RUN_PAGES),
                  chance(w, opt_hotwrite));
        } else {
            visit(w, w->first + w->cursor, chance(w, opt_coldwrite));
            if (++w->cursor == w->count) {
                w->cursor = 0;
                atomic_store_explicit(&w->passes, w->passes + 1, memory_order_relaxed);
            }
        }
        uint64_t now = __rdtsc();
        if (now > last && now - last > w->max_gap) {
            w->max_gap = now - last;
        }
        last = now;

        uint32_t limit = rate;
        if (limit != rate_seen) {
            rate_seen = limit;
            rate_start_us = now_us();
            rate_visits = 0;
        }
        if (limit && ++rate_visits % VISITS_PER_RATE_CHECK == 0) {
            uint64_t due_us = rate_start_us + rate_visits * 1000000 / limit;
            uint64_t t = now_us();
            if (t < due_us) {
                usleep(due_us - t);
                last = __rdtsc();
            } else if (t - due_us > 1000000) {
                rate_start_us = t; /* too slow for the rate: do not save up a burst */
                rate_visits = 0;
            }
        }
    }
    return NULL;
}

/* Fill one stripe and list its hot runs. */
static void *fill(void *argument)
{
    struct worker *w = argument;
    for (uint32_t page = w->first; page < w->first + w->count; page++) {
        bool zero = mix(page + opt_seed * 7919ull) % 100 < opt_zero;
        table[page] = 1 | (zero ? ZERO_FLAG : 0);
        write_page(page, table[page]);
        w->written++;
    }
    w->hot_runs = calloc(w->count / RUN_PAGES + 1, sizeof(*w->hot_runs));
    for (uint32_t run = w->first; run < w->first + w->count; run += RUN_PAGES) {
        if (mix(run * 31ull + opt_seed) % 100 < opt_hot) {
            w->hot_runs[w->hot_count++] = run;
        }
    }
    return NULL;
}

static void read_options(void)
{
    static const struct {
        const char *name;
        uint32_t *value;
    } options[] = {
        {"kg.mib=", &opt_mib},             {"kg.workers=", &opt_workers},
        {"kg.hot=", &opt_hot},             {"kg.zero=", &opt_zero},
        {"kg.hotwrite=", &opt_hotwrite},   {"kg.coldwrite=", &opt_coldwrite},
        {"kg.coldevery=", &opt_coldevery}, {"kg.zeroflip=", &opt_zeroflip},
        {"kg.beat_ms=", &opt_beat_ms},     {"kg.seed=", &opt_seed},
        {"kg.hold=", &opt_hold},           {"kg.rate=", &opt_rate},
    };
    char line[4096];
    FILE *file = fopen("/proc/cmdline", "r");
    if (file && fgets(line, sizeof(line), file)) {
        for (char *word = strtok(line, " \n"); word; word = strtok(NULL, " \n")) {
            for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
                size_t length = strlen(options[i].name);
                if (strncmp(word, options[i].name, length) == 0) {
                    *options[i].value = strtoul(word + length, NULL, 10);
                }
            }
        }
    }
    if (file) {
        fclose(file);
    }
    if (opt_mib == 0) {
        unsigned long kib = 0;
        file = fopen("/proc/meminfo", "r");
        while (file && fgets(line, sizeof(line), file) &&
               sscanf(line, "MemAvailable: %lu", &kib) != 1) {
        }
        if (file) {
            fclose(file);
        }
        opt_mib = kib / 1024 * 85 / 100;
    }
    if (opt_workers < 1 || opt_workers > MAX_WORKERS) {
        opt_workers = 1;
    }
    opt_coldevery = opt_coldevery ? opt_coldevery : 1;
    opt_beat_ms = opt_beat_ms ? opt_beat_ms : 200;
}

static void beat(void)
{
    uint64_t passes = UINT64_MAX, checked = 0, written = 0, gap = 0;
    for (uint32_t i = 0; i < opt_workers; i++) {
        struct worker *w = &workers[i];
        passes = w->passes < passes ? w->passes : passes;
        checked += w->checked;
        written += w->written;
        uint64_t worker_gap = atomic_exchange(&w->max_gap, 0);
        gap = worker_gap > gap ? worker_gap : gap;
    }
    say("beat pass=%llu checked=%llu written=%llu errors=%llu maxgap_us=%llu",
        (unsigned long long)passes, (unsigned long long)checked, (unsigned long long)written,
        (unsigned long long)total_errors, (unsigned long long)(gap / ticks_per_us));
}

/* Wait, with the lock held, until each worker is parked or, for a sweep, has finished it. */
static void wait_for_workers(bool sweep)
{
    for (uint32_t i = 0; i < opt_workers; i++) {
        while (sweep ? workers[i].sweep_seen != sweep_wanted : !workers[i].parked) {
            pthread_cond_wait(&changed, &lock);
        }
    }
}

static void sweep(void)
{
    uint64_t start = now_us(), errors = 0, zero = 0;
    pthread_mutex_lock(&lock);
    sweep_wanted++;
    pthread_cond_broadcast(&changed);
    wait_for_workers(true);
    pthread_mutex_unlock(&lock);
    for (uint32_t i = 0; i < opt_workers; i++) {
        errors += workers[i].sweep_errors;
        zero += workers[i].sweep_zero;
    }
    say("sweep done pages=%u errors=%llu total_errors=%llu zero=%llu ms=%llu", page_count,
        (unsigned long long)errors, (unsigned long long)total_errors, (unsigned long long)zero,
        (unsigned long long)((now_us() - start) / 1000));
}

static void set_held(bool hold)
{
    pthread_mutex_lock(&lock);
    held = hold;
    pthread_cond_broadcast(&changed);
    if (hold) {
        wait_for_workers(false);
    }
    pthread_mutex_unlock(&lock);
    say(hold ? "held" : "going");
}

static void command(const char *word)
{
    if (strcmp(word, "sweep") == 0) {
        sweep();
    } else if (strcmp(word, "hold") == 0) {
        set_held(true);
    } else if (strcmp(word, "go") == 0) {
        set_held(false);
    } else if (strcmp(word, "beat") == 0) {
        beat();
    } else if (strncmp(word, "rate ", 5) == 0) {
        rate = strtoul(word + 5, NULL, 10);
        say("rate %u", (unsigned)rate);
    } else if (strcmp(word, "quit") == 0) {
        say("quit pages=%u errors=%llu", page_count, (unsigned long long)total_errors);
        tcdrain(STDOUT_FILENO);
        reboot(RB_POWER_OFF);
    } else if (*word) {
        say("unknown command: %s", word);
    }
}

static void run_workers(void *(*body)(void *))
{
    for (uint32_t i = 0; i < opt_workers; i++) {
        if (pthread_create(&workers[i].thread, NULL, body, &workers[i]) != 0) {
            say("DIED cannot start a thread");
            exit(1);
        }
    }
}

int main(void)
{
    struct termios tty;
    if (tcgetattr(STDIN_FILENO, &tty) == 0) {
        cfmakeraw(&tty);
        tty.c_oflag |= OPOST | ONLCR;
        tcsetattr(STDIN_FILENO, TCSANOW, &tty);
    }
    read_options();
    page_count = (uint64_t)opt_mib * 1024 * 1024 / PAGE_BYTES;
    memory = mmap(NULL, (uint64_t)page_count * PAGE_BYTES, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    table = mmap(NULL, (uint64_t)page_count * sizeof(*table) + 1, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page_count == 0 || memory == MAP_FAILED || table == MAP_FAILED) {
        say("DIED cannot map %u MiB", opt_mib);
        return 1;
    }

    uint64_t start_us = now_us(), start_ticks = __rdtsc();
    uint32_t zero = 0, hot = 0;
    for (uint32_t i = 0; i < opt_workers; i++) {
        struct worker *w = &workers[i];
        w->first = (uint64_t)page_count * i / opt_workers;
        w->count = (uint64_t)page_count * (i + 1) / opt_workers - w->first;
        w->rng = mix(opt_seed * 1000003ull + i) | 1;
    }
    run_workers(fill);
    for (uint32_t i = 0; i < opt_workers; i++) {
        pthread_join(workers[i].thread, NULL);
        hot += workers[i].hot_count * RUN_PAGES;
    }
    for (uint32_t page = 0; page < page_count; page++) {
        zero += (table[page] & ZERO_FLAG) != 0;
    }
    uint64_t fill_us = now_us() - start_us;
    if (fill_us) {
        ticks_per_us = (double)(__rdtsc() - start_ticks) / fill_us;
    }
    rate = opt_rate;
    held = opt_hold != 0;
    say("ready pages=%u zero=%u hot=%u fill_ms=%llu", page_count, zero, hot,
        (unsigned long long)(fill_us / 1000));
    run_workers(work);

    char line[128];
    size_t length = 0;
    uint64_t next_beat_us = now_us();
    for (;;) {
        uint64_t t = now_us();
        if (t >= next_beat_us) {
            beat();
            next_beat_us = t + opt_beat_ms * 1000ull;
        }
        struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
        if (poll(&input, 1, (next_beat_us - t) / 1000 + 1) <= 0) {
            continue;
        }
        char c;
        if (read(STDIN_FILENO, &c, 1) != 1) {
            usleep(10000); /* the console is gone for a moment */
        } else if (c == '\n' || c == '\r') {
            line[length] = 0;
            length = 0;
            command(line);
        } else if (length < sizeof(line) - 1) {
            line[length++] = c;
        }
    }
}
