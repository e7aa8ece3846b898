/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The one program of a lab guest.  It works all the time and says, in a page of guest RAM that an observer on the
 * host can read through the memfd, how far it got and what it noticed:
 *
 *   - a counter, raised once per wake of a periodic timer (never in a spin: six guests share two emulated cores)
 *   - checksummed records, written with O_DIRECT, read back and compared
 *   - a TCP responder (port 7) that answers with one JSON status line
 *   - complaints of the kernel, and jumps of one clock against another
 *
 * guestmon STATUS_PAGE_ADDRESS DISK COUNTER_PERIOD_US RECORD_PERIOD_MS
 *
 * The periods are the caller's: under emulated nested virtualisation one exit costs half a millisecond.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <linux/fs.h>
#include <time.h>
#include <unistd.h>
#include "record.h"

#define PAGE_MAGIC   0x564d4d4c41420001ull
#define STATUS_PERIOD_S 10
#define NS_PER_S     1000000000ll
#define JUMP_NS      20000000ll              /* clocks that part by more than 20 ms have jumped */
#define STEADY_NS    2000000ll               /* a comparison that took longer than this says nothing */

/* The layout is a contract with the hosts' side (docs/architecture.md, "Guest status page"). */
struct status_page {
    _Atomic uint64_t magic, counter, uptime_ms, records, disk_errors, disk_mismatches, max_gap_us, complaints,
                     clock_jumps, requests, nonce;
};

static struct status_page *page;
static const char *disk_path;
static int64_t counter_period_ns, record_period_ns;

static int64_t clock_ns(clockid_t id)
{
    struct timespec t;

    clock_gettime(id, &t);
    return t.tv_sec * NS_PER_S + t.tv_nsec;
}

static void say(const char *format, ...)
{
    char line[400];
    va_list ap;
    int n = snprintf(line, sizeof(line), "guestmon: ");

    va_start(ap, format);
    vsnprintf(line + n, sizeof(line) - n - 1, format, ap);
    va_end(ap);
    strcat(line, "\n");
    /* One write per line, so that lines of several threads do not mix. */
    if (write(STDOUT_FILENO, line, strlen(line)) < 0)
        return; /* there is no other place to say so */
}

static int status_json(char *buffer, size_t size)
{
    return snprintf(buffer, size,
                    "{\"nonce\": \"%016lx\", \"counter\": %lu, \"uptime_ms\": %lu, \"records\": %lu, "
                    "\"disk_errors\": %lu, \"disk_mismatches\": %lu, \"max_gap_us\": %lu, \"complaints\": %lu, "
                    "\"clock_jumps\": %lu, \"requests\": %lu}\n",
                    page->nonce, page->counter, page->uptime_ms, page->records, page->disk_errors,
                    page->disk_mismatches, page->max_gap_us, page->complaints, page->clock_jumps, page->requests);
}

/* ---- disk ---------------------------------------------------------------------------------------------------- */

/* The highest sequence on the disk: a guest that is started again goes on from there. */
static uint64_t last_sequence(int fd, struct record *buffer, uint64_t slots)
{
    uint64_t highest = 0;

    for (uint64_t slot = 0; slot < slots; slot++) {
        if (pread(fd, buffer, RECORD_SIZE, slot * RECORD_SIZE) != RECORD_SIZE) {
            say("cannot read slot %lu: %s", slot, strerror(errno));
            page->disk_errors++;
        } else if (record_valid(buffer) && buffer->seq > highest) {
            highest = buffer->seq;
        } else if (buffer->magic == 0 && buffer->seq == 0) {
            break; /* slots are filled in order: behind an empty one there is nothing */
        }
    }
    return highest;
}

static bool write_and_compare(int fd, struct record *written, struct record *read_back, uint64_t seq, uint64_t slots)
{
    off_t offset = seq % slots * RECORD_SIZE;

    record_fill(written, seq, page->nonce, page->counter);
    if (pwrite(fd, written, RECORD_SIZE, offset) != RECORD_SIZE) {
        say("write of record %lu failed: %s", seq, strerror(errno));
        page->disk_errors++;
        return false;
    }
    memset(read_back, 0, RECORD_SIZE);
    if (pread(fd, read_back, RECORD_SIZE, offset) != RECORD_SIZE) {
        say("read of record %lu failed: %s", seq, strerror(errno));
        page->disk_errors++;
        return false;
    }
    if (memcmp(written, read_back, RECORD_SIZE)) {
        say("record %lu reads back different", seq);
        page->disk_mismatches++;
        return false;
    }
    return true;
}

static void *disk_thread(void *unused)
{
    struct record *written = aligned_alloc(RECORD_SIZE, RECORD_SIZE);
    struct record *read_back = aligned_alloc(RECORD_SIZE, RECORD_SIZE);
    int fd = open(disk_path, O_RDWR | O_DIRECT);
    struct timespec due;
    uint64_t bytes = 0, slots, seq;

    if (fd < 0 || ioctl(fd, BLKGETSIZE64, &bytes) || bytes < RECORD_SIZE) {
        say("cannot use disk %s: %s", disk_path, strerror(errno));
        page->disk_errors++;
        return NULL;
    }
    slots = bytes / RECORD_SIZE;
    seq = last_sequence(fd, read_back, slots);
    page->records = seq;
    say("disk %s: %lu slots, continuing behind record %lu", disk_path, slots, seq);

    clock_gettime(CLOCK_MONOTONIC, &due);
    for (;;) {
        int64_t next = due.tv_sec * NS_PER_S + due.tv_nsec + record_period_ns, now = clock_ns(CLOCK_MONOTONIC);

        if (next < now) /* late: skip what was missed, a burst would only make it later */
            next = now;
        due.tv_sec = next / NS_PER_S;
        due.tv_nsec = next % NS_PER_S;
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL) == EINTR)
            ;
        if (write_and_compare(fd, written, read_back, seq + 1, slots))
            page->records = ++seq;
    }
    return unused;
}

/* ---- network ------------------------------------------------------------------------------------------------- */

static void *network_thread(void *unused)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(7) };
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (listener < 0 || bind(listener, (void *)&address, sizeof(address)) || listen(listener, 16)) {
        say("cannot listen on port 7: %s", strerror(errno));
        return NULL;
    }
    for (;;) {
        char line[512];
        int client = accept(listener, NULL, NULL);

        if (client < 0)
            continue;
        page->requests++;
        if (send(client, line, status_json(line, sizeof(line)), MSG_NOSIGNAL) < 0)
            say("a client left before it was answered: %s", strerror(errno));
        close(client);
    }
    return unused;
}

/* ---- kernel log and clocks ----------------------------------------------------------------------------------- */

static bool is_complaint(const char *line)
{
    static const char *const signs[] = {
        "lockup", "LOCKUP", "rcu: INFO: rcu", "detected stall", "BUG:", "Oops", "blocked for more than",
        "Marking clocksource", "timekeeping watchdog", "Kernel panic", "I/O error", "WARNING: CPU", "general protection",
    };

    for (size_t i = 0; i < sizeof(signs) / sizeof(signs[0]); i++)
        if (strstr(line, signs[i]))
            return true;
    return false;
}

static void *kernel_log_thread(void *unused)
{
    char line[2048];
    int fd = open("/dev/kmsg", O_RDONLY | O_CLOEXEC);

    if (fd < 0) {
        say("cannot read the kernel log: %s", strerror(errno));
        page->complaints++; /* a watch that is blind must not look like a quiet kernel */
        return NULL;
    }
    for (;;) {
        ssize_t n = read(fd, line, sizeof(line) - 1);

        if (n < 0)
            continue; /* EPIPE: older lines were overwritten, the next read goes on */
        line[n] = 0;
        if (is_complaint(line)) {
            page->complaints++;
            say("the kernel complains: %.300s", strchr(line, ';') ? strchr(line, ';') + 1 : line);
        }
    }
    return unused;
}

/* Nobody sets a clock in this guest, so REALTIME and BOOTTIME keep their distance to MONOTONIC for ever. */
static void check_clocks(void)
{
    static const clockid_t others[] = { CLOCK_REALTIME, CLOCK_BOOTTIME };
    static int64_t distance[2], last_monotonic;
    static bool known[2];

    for (int i = 0; i < 2; i++) {
        int64_t before = clock_ns(CLOCK_MONOTONIC), other = clock_ns(others[i]), after = clock_ns(CLOCK_MONOTONIC);
        int64_t now = other - before;

        if (before < last_monotonic || after < before) {
            page->clock_jumps++;
            say("CLOCK_MONOTONIC went back by %ld ns", (after < before ? before - after : last_monotonic - before));
        }
        last_monotonic = after;
        if (after - before > STEADY_NS)
            continue;
        if (known[i] && llabs(now - distance[i]) > JUMP_NS) {
            page->clock_jumps++;
            say("%s jumped by %ld us", i ? "CLOCK_BOOTTIME" : "CLOCK_REALTIME", (now - distance[i]) / 1000);
        }
        distance[i] = now;
        known[i] = true;
    }
}

static void *status_thread(void *unused)
{
    for (;;) {
        for (int i = 0; i < STATUS_PERIOD_S; i++) {
            sleep(1);
            check_clocks();
        }
        /* Short: each character of a serial line is an exit to QEMU. */
        say("t=%lu n=%lu rec=%lu err=%lu bad=%lu gap_us=%lu kern=%lu clk=%lu net=%lu", page->uptime_ms, page->counter,
            page->records, page->disk_errors, page->disk_mismatches, page->max_gap_us, page->complaints,
            page->clock_jumps, page->requests);
    }
    return unused;
}

/* ---- counter ------------------------------------------------------------------------------------------------- */

static void count(void)
{
    struct timespec step = { counter_period_ns / NS_PER_S, counter_period_ns % NS_PER_S };
    struct itimerspec period = { .it_value = step, .it_interval = step };
    struct sched_param priority = { .sched_priority = 10 };
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    int64_t last = clock_ns(CLOCK_MONOTONIC);

    /* The other threads must not make gaps that the observer would take for the host's. */
    pthread_setschedparam(pthread_self(), SCHED_FIFO, &priority);
    if (timer < 0 || timerfd_settime(timer, 0, &period, NULL)) {
        say("no timer: %s", strerror(errno));
        exit(1);
    }
    for (;;) {
        uint64_t expirations;
        int64_t now;

        if (read(timer, &expirations, sizeof(expirations)) != sizeof(expirations))
            continue;
        now = clock_ns(CLOCK_MONOTONIC);
        if (now - last > (int64_t)page->max_gap_us * 1000)
            page->max_gap_us = (now - last) / 1000;
        last = now;
        page->uptime_ms = now / 1000000;
        page->counter++;
    }
}

static void start_thread(void *(*function)(void *))
{
    pthread_t thread;

    if (pthread_create(&thread, NULL, function, NULL)) {
        say("cannot start a thread: %s", strerror(errno));
        exit(1);
    }
}

int main(int argc, char **argv)
{
    uint64_t nonce = 0;
    int memory = open("/dev/mem", O_RDWR | O_CLOEXEC);

    if (argc != 5 || memory < 0) {
        fprintf(stderr, "guestmon STATUS_PAGE_ADDRESS DISK COUNTER_PERIOD_US RECORD_PERIOD_MS (needs /dev/mem)\n");
        return 1;
    }
    page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, memory, strtoull(argv[1], NULL, 0));
    if (page == MAP_FAILED) {
        perror("guestmon: cannot map the status page");
        return 1;
    }
    disk_path = argv[2];
    counter_period_ns = atoll(argv[3]) * 1000;
    record_period_ns = atoll(argv[4]) * 1000000;
    if (counter_period_ns <= 0 || record_period_ns <= 0) {
        fprintf(stderr, "guestmon: periods must be positive\n");
        return 1;
    }
    memset(page, 0, 4096);
    if (getrandom(&nonce, sizeof(nonce), 0) != sizeof(nonce))
        return 1;
    page->nonce = nonce;
    page->uptime_ms = clock_ns(CLOCK_MONOTONIC) / 1000000;
    page->magic = PAGE_MAGIC; /* last: whoever sees it sees a page that is set up */
    mlockall(MCL_CURRENT | MCL_FUTURE);

    start_thread(kernel_log_thread);
    start_thread(network_thread);
    start_thread(disk_thread);
    start_thread(status_thread);
    say("up, boot nonce %016lx", nonce);
    count();
    return 0;
}
