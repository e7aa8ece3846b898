/*
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The one program of a loaded guest.  It keeps disks, network and a serial line busy and says in a page of guest RAM,
 * which tests read through the memfd, what it did and what went wrong:
 *
 *   - WRITERS threads for each disk, each with one O_DIRECT request in flight.  They write records around a ring; before
 *     a slot is written again it must still hold the record of one round before.  So a write that was lost, or that was
 *     done a second time after a later one, is seen.
 *   - an echo server (TCP port 7)
 *   - on the serial line it echoes lines, and numbers its own
 *
 * guestload STATUS_PAGE_ADDRESS COUNTER_PERIOD_US RECORD_PERIOD_US SERIAL DISK...
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <linux/fs.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>
#include "record.h"

#define PAGE_MAGIC 0x564d4d4c4f414401ull
#define WRITERS    4
#define DISKS      6
#define SLOTS_MOST 8192
#define TICK_US    50000

/* The layout is a contract with status_page.py. */
struct status_page {
    _Atomic uint64_t magic, nonce, counter, complaints, net_bytes, lines, ticks, disks;
    struct {
        _Atomic uint64_t records, errors, mismatches, slots, done[WRITERS];
    } disk[DISKS];
};

struct writer {
    const char *path;
    int disk, number;
};

static struct status_page *page;
static long record_period_us;
static pthread_mutex_t serial_lock = PTHREAD_MUTEX_INITIALIZER;
static const char *serial_path;

static void say(const char *format, ...)
{
    char line[300];
    va_list ap;

    va_start(ap, format);
    vsnprintf(line, sizeof(line), format, ap);
    va_end(ap);
    printf("guestload: %s\n", line);
    fflush(stdout);
}

/* ---- disks --------------------------------------------------------------------------------------------------- */

static bool transfer(const struct writer *me, int fd, bool writing, struct record *record, uint64_t slot)
{
    off_t at = slot * RECORD_SIZE;
    ssize_t n = writing ? pwrite(fd, record, RECORD_SIZE, at) : pread(fd, record, RECORD_SIZE, at);

    if (n == RECORD_SIZE)
        return true;
    say("%s: %s slot %lu: %s", me->path, writing ? "writing" : "reading", slot, n < 0 ? strerror(errno) : "short");
    page->disk[me->disk].errors++;
    return false;
}

static void expect_record(const struct writer *me, int fd, struct record *record, uint64_t seq, uint64_t slots)
{
    if (!transfer(me, fd, false, record, seq % slots))
        return;
    if (!record_valid(record) || record->seq != seq || record->nonce != page->nonce) {
        say("%s: slot %lu holds record %lu, not %lu", me->path, seq % slots, record->seq, seq);
        page->disk[me->disk].mismatches++;
    }
}

/* Writer n has the records n, n + WRITERS, n + 2 * WRITERS... and so slots of its own. */
static void *writer_thread(void *opaque)
{
    const struct writer *me = opaque;
    struct record *record = aligned_alloc(RECORD_SIZE, RECORD_SIZE);
    uint64_t bytes = 0, slots;
    int fd = open(me->path, O_RDWR | O_DIRECT);

    if (fd < 0 || ioctl(fd, BLKGETSIZE64, &bytes) || bytes < RECORD_SIZE * WRITERS) {
        say("cannot use %s: %s", me->path, strerror(errno));
        page->disk[me->disk].errors++;
        return NULL;
    }
    slots = bytes / RECORD_SIZE > SLOTS_MOST ? SLOTS_MOST : bytes / RECORD_SIZE;
    slots -= slots % WRITERS;
    page->disk[me->disk].slots = slots;
    for (uint64_t seq = WRITERS + me->number;; seq += WRITERS) {
        if (seq >= slots + WRITERS)
            expect_record(me, fd, record, seq - slots, slots);
        record_fill(record, seq, page->nonce, page->counter);
        if (transfer(me, fd, true, record, seq % slots)) {
            page->disk[me->disk].done[me->number] = seq;
            page->disk[me->disk].records++;
        }
        expect_record(me, fd, record, seq, slots);
        usleep(record_period_us);
    }
}

/* ---- network ------------------------------------------------------------------------------------------------- */

static void *echo_thread(void *opaque)
{
    int client = (intptr_t)opaque;
    char buffer[16384];
    ssize_t n;

    while ((n = recv(client, buffer, sizeof(buffer), 0)) > 0) {
        for (ssize_t sent = 0, m; sent < n; sent += m) {
            m = send(client, buffer + sent, n - sent, MSG_NOSIGNAL);
            if (m < 0) {
                close(client);
                return NULL;
            }
        }
        page->net_bytes += n;
    }
    close(client);
    return NULL;
}

static void start_thread(void *(*function)(void *), void *argument)
{
    pthread_t thread;

    if (pthread_create(&thread, NULL, function, argument)) {
        say("cannot start a thread: %s", strerror(errno));
        exit(1);
    }
    pthread_detach(thread);
}

static void *network_thread(void *unused)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(7) };
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (listener < 0 || bind(listener, (void *)&address, sizeof(address)) || listen(listener, 16)) {
        say("cannot listen: %s", strerror(errno));
        exit(1);
    }
    for (;;) {
        intptr_t client = accept(listener, NULL, NULL);

        if (client >= 0)
            start_thread(echo_thread, (void *)client);
    }
    return unused;
}

/* ---- serial line --------------------------------------------------------------------------------------------- */

static void serial_write(int fd, const char *line)
{
    pthread_mutex_lock(&serial_lock);
    if (write(fd, line, strlen(line)) < 0)
        say("%s: %s", serial_path, strerror(errno));
    pthread_mutex_unlock(&serial_lock);
}

static void *tick_thread(void *opaque)
{
    char line[40];

    for (;;) {
        usleep(TICK_US);
        snprintf(line, sizeof(line), "tick %lu\n", page->ticks + 1);
        serial_write((intptr_t)opaque, line);
        page->ticks++;
    }
    return NULL;
}

static void *serial_thread(void *unused)
{
    int fd = open(serial_path, O_RDWR | O_NOCTTY);
    struct termios mode;
    char line[200], answer[220];
    size_t used = 0;

    if (fd < 0 || tcgetattr(fd, &mode)) {
        say("cannot use %s: %s", serial_path, strerror(errno));
        exit(1);
    }
    cfmakeraw(&mode);
    mode.c_cflag |= CLOCAL;
    tcsetattr(fd, TCSANOW, &mode);
    start_thread(tick_thread, (void *)(intptr_t)fd);
    for (;;) {
        if (read(fd, line + used, 1) != 1)
            continue;
        if (line[used] != '\n' && used < sizeof(line) - 2) {
            used++;
            continue;
        }
        line[used + 1] = 0;
        used = 0;
        snprintf(answer, sizeof(answer), "echo %s", line);
        serial_write(fd, answer);
        page->lines++;
    }
    return unused;
}

/* ---- kernel log and counter ---------------------------------------------------------------------------------- */

static void *kernel_log_thread(void *unused)
{
    static const char *const signs[] = {
        "BUG:", "Oops", "Kernel panic", "I/O error", "WARNING: CPU", "general protection", "is not a head",
    };
    char line[2048];
    int fd = open("/dev/kmsg", O_RDONLY | O_CLOEXEC);

    for (;;) {
        ssize_t n = read(fd, line, sizeof(line) - 1);

        if (fd < 0) {
            page->complaints++; /* a watch that is blind must not look like a quiet kernel */
            return unused;
        }
        if (n < 0)
            continue; /* EPIPE: older lines were overwritten, the next read goes on */
        line[n] = 0;
        for (size_t i = 0; i < sizeof(signs) / sizeof(signs[0]); i++) {
            if (strstr(line, signs[i])) {
                page->complaints++;
                break;
            }
        }
    }
}

int main(int argc, char **argv)
{
    struct sched_param priority = { .sched_priority = 10 };
    struct timespec period = { 0 };
    uint64_t nonce = 0;
    int memory = open("/dev/mem", O_RDWR | O_CLOEXEC);

    if (argc < 6 || argc - 5 > DISKS || memory < 0) {
        fprintf(stderr, "guestload STATUS_PAGE COUNTER_PERIOD_US RECORD_PERIOD_US SERIAL DISK... (needs /dev/mem)\n");
        return 1;
    }
    page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, memory, strtoull(argv[1], NULL, 0));
    if (page == MAP_FAILED || getrandom(&nonce, sizeof(nonce), 0) != sizeof(nonce)) {
        perror("guestload");
        return 1;
    }
    period.tv_nsec = atol(argv[2]) * 1000;
    record_period_us = atol(argv[3]);
    serial_path = argv[4];
    memset(page, 0, 4096);
    page->nonce = nonce;
    page->disks = argc - 5;

    start_thread(kernel_log_thread, NULL);
    start_thread(network_thread, NULL);
    start_thread(serial_thread, NULL);
    for (int disk = 0; disk < argc - 5; disk++) {
        for (int number = 0; number < WRITERS; number++) {
            struct writer *writer = malloc(sizeof(*writer));

            *writer = (struct writer){ argv[5 + disk], disk, number };
            start_thread(writer_thread, writer);
        }
    }
    say("up, boot nonce %016lx, %d disks", nonce, argc - 5);
    page->magic = PAGE_MAGIC; /* last: whoever sees it sees a page that is set up */
    /* The other threads must not make gaps that an observer would take for the host's. */
    pthread_setschedparam(pthread_self(), SCHED_FIFO, &priority);
    for (;;) {
        nanosleep(&period, NULL);
        page->counter++;
    }
}
