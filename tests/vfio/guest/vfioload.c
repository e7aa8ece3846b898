/*
 * SPDX-License-Identifier: GPL-2.0-only
 *
 * Load on the passed-through devices of a guest.  What comes of it is counted in a page of guest RAM (status.h):
 *
 *   disk:SLOT:AT:NAME:/dev/X:DEPTH   DEPTH requests at a time: numbered records, written with O_DIRECT, read back, compared
 *   net:SLOT:AT:NAME:IF:PEER         a flood of pings, and a TCP stream whose every byte comes back from PEER's port 7
 *   watch:SLOT:AT:NAME               nothing but the kernel's complaints of the device
 *
 * AT is the device's number on the root bus, and NAME another name that the kernel has for it in its log.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "record.h"
#include "status.h"

#define MAX_JOBS       STATUS_SLOTS
#define MAX_DEPTH      16
#define SLOTS_A_THREAD 64          /* records that a thread writes in turn */
#define TICK_US        10000
#define CHUNK          4096
#define PING_BYTES     512
#define ANSWER_S       20          /* an answer that takes longer is a lost one */
#define NS_PER_S       1000000000ll

struct job {
	struct status_slot *slot;
	char *kind, *name, *target, *argument;
	char address[16];
};

struct disk_thread {
	struct job *job;
	unsigned int number;
};

static struct status_page *page;
static struct job jobs[MAX_JOBS];
static int job_count;

static void add(unsigned long long *word, unsigned long long n)
{
	__atomic_fetch_add(word, n, __ATOMIC_RELAXED);
}

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * NS_PER_S + t.tv_nsec;
}

static void say(const char *format, ...)
{
	char line[400];
	va_list ap;
	int n = snprintf(line, sizeof(line), "vfioload: ");

	va_start(ap, format);
	vsnprintf(line + n, sizeof(line) - n - 1, format, ap);
	va_end(ap);
	strcat(line, "\n");
	/* One write per line, so that lines of several threads do not mix. */
	if (write(STDOUT_FILENO, line, strlen(line)) < 0)
		return; /* there is no other place to say so */
}

static void failed(struct job *job, const char *what)
{
	add(&job->slot->io_errors, 1);
	say("%s: %s failed: %s", job->name, what, strerror(errno));
}

static void done(struct job *job, int64_t began_ns, unsigned int ios)
{
	unsigned long long us = (now_ns() - began_ns) / 1000;

	add(&job->slot->ios, ios);
	if (us > job->slot->longest_us)
		job->slot->longest_us = us;
}

/* ---- disks --------------------------------------------------------------------------------------------------- */

static void write_and_compare(struct disk_thread *me, int fd, struct record *written, struct record *back, uint64_t seq)
{
	off_t offset = (me->number * SLOTS_A_THREAD + seq % SLOTS_A_THREAD) * RECORD_SIZE;
	int64_t began = now_ns();

	record_fill(written, seq, me->number, page->ticks);
	if (pwrite(fd, written, RECORD_SIZE, offset) != RECORD_SIZE) {
		failed(me->job, "write");
		return;
	}
	memset(back, 0, RECORD_SIZE);
	if (pread(fd, back, RECORD_SIZE, offset) != RECORD_SIZE) {
		failed(me->job, "read");
		return;
	}
	if (memcmp(written, back, RECORD_SIZE) || !record_valid(back)) {
		say("%s: record %lu of thread %u reads back different", me->job->name, seq, me->number);
		add(&me->job->slot->mismatches, 1);
	}
	done(me->job, began, 2);
}

/* The record written a whole round ago must still be there: what was lost in between shows here. */
static void compare_old(struct disk_thread *me, int fd, struct record *back, uint64_t seq)
{
	off_t offset = (me->number * SLOTS_A_THREAD + seq % SLOTS_A_THREAD) * RECORD_SIZE;

	if (seq <= SLOTS_A_THREAD)
		return;
	if (pread(fd, back, RECORD_SIZE, offset) != RECORD_SIZE) {
		failed(me->job, "read");
	} else if (!record_valid(back) || back->seq != seq - SLOTS_A_THREAD || back->nonce != me->number) {
		say("%s: record %lu of thread %u is not there any more", me->job->name, seq - SLOTS_A_THREAD, me->number);
		add(&me->job->slot->mismatches, 1);
	}
	add(&me->job->slot->ios, 1);
}

static void *disk_thread(void *argument)
{
	struct disk_thread *me = argument;
	struct record *written = aligned_alloc(RECORD_SIZE, RECORD_SIZE);
	struct record *back = aligned_alloc(RECORD_SIZE, RECORD_SIZE);
	int fd = open(me->job->target, O_RDWR | O_DIRECT);

	if (fd < 0) {
		failed(me->job, "open");
		return NULL;
	}
	for (uint64_t seq = 1;; seq++) {
		compare_old(me, fd, back, seq);
		write_and_compare(me, fd, written, back, seq);
	}
}

/* ---- network ------------------------------------------------------------------------------------------------- */

static int net_socket(struct job *job, int type, int protocol)
{
	struct timeval limit = { .tv_sec = ANSWER_S };
	int fd = socket(AF_INET, type, protocol);

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, job->target, strlen(job->target)) ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit))) {
		failed(job, "socket");
		exit(1);
	}
	return fd;
}

static void fill(unsigned char *data, size_t size, uint64_t seq)
{
	for (size_t i = 0; i < size; i += 8) {
		uint64_t word = (seq * 512 + i) * 0x9e3779b97f4a7c15ull;

		memcpy(data + i, &word, 8);
	}
}

static uint16_t checksum(const void *data, size_t size)
{
	const uint16_t *word = data;
	uint32_t sum = 0;

	for (size_t i = 0; i < size / 2; i++)
		sum += word[i];
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* Wait for the answer to ping `seq`; older ones are late, and were counted as lost. */
static bool answered(struct job *job, int fd, const unsigned char *sent, uint16_t id, uint16_t seq)
{
	unsigned char got[PING_BYTES + 128];
	int64_t limit = now_ns() + ANSWER_S * NS_PER_S;

	while (now_ns() < limit) {
		ssize_t n = recv(fd, got, sizeof(got), 0);
		struct icmphdr *header;
		size_t skip;

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return false;
		skip = (got[0] & 15) * 4;
		header = (void *)(got + skip);
		if (n < (ssize_t)(skip + PING_BYTES) || header->type != ICMP_ECHOREPLY || header->un.echo.id != id ||
		    header->un.echo.sequence != seq)
			continue;
		if (memcmp(got + skip + 8, sent + 8, PING_BYTES - 8)) {
			say("%s: the answer to ping %u is different", job->name, seq);
			add(&job->slot->mismatches, 1);
		}
		return true;
	}
	errno = ETIMEDOUT;
	return false;
}

static void *ping_thread(void *argument)
{
	struct job *job = argument;
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_addr.s_addr = inet_addr(job->argument) };
	uint16_t id = htons(1000 + (job - jobs));
	int fd = net_socket(job, SOCK_RAW, IPPROTO_ICMP);

	for (uint64_t seq = 1;; seq++) {
		unsigned char packet[PING_BYTES];
		struct icmphdr *header = (void *)packet;
		int64_t began = now_ns();

		fill(packet, sizeof(packet), seq);
		*header = (struct icmphdr){ .type = ICMP_ECHO, .un.echo = { .id = id, .sequence = htons(seq) } };
		header->checksum = checksum(packet, sizeof(packet));
		if (sendto(fd, packet, sizeof(packet), 0, (void *)&to, sizeof(to)) != sizeof(packet))
			failed(job, "ping");
		else if (!answered(job, fd, packet, id, htons(seq)))
			failed(job, "answer to a ping");
		else
			done(job, began, 1);
	}
	return NULL;
}

static bool transfer(int fd, unsigned char *data, bool out)
{
	for (size_t at = 0; at < CHUNK;) {
		ssize_t n = out ? send(fd, data + at, CHUNK - at, MSG_NOSIGNAL) : recv(fd, data + at, CHUNK - at, 0);

		if (n == 0)
			errno = ECONNRESET;
		if (n <= 0 && errno != EINTR)
			return false;
		at += n > 0 ? n : 0;
	}
	return true;
}

/* Until it breaks: each chunk comes back as it was sent. */
static void stream(struct job *job, int fd, uint64_t *seq)
{
	unsigned char sent[CHUNK], got[CHUNK];

	for (;;) {
		int64_t began = now_ns();

		fill(sent, sizeof(sent), ++*seq);
		if (!transfer(fd, sent, true) || !transfer(fd, got, false)) {
			failed(job, "TCP stream");
			return;
		}
		if (memcmp(sent, got, CHUNK)) {
			say("%s: chunk %lu comes back different", job->name, *seq);
			add(&job->slot->mismatches, 1);
		}
		done(job, began, 1);
	}
}

static void *tcp_thread(void *argument)
{
	struct job *job = argument;
	struct sockaddr_in to = {
		.sin_family = AF_INET, .sin_addr.s_addr = inet_addr(job->argument), .sin_port = htons(7)
	};
	uint64_t seq = 0;

	for (;;) {
		int fd = net_socket(job, SOCK_STREAM, 0), one = 1;

		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		if (connect(fd, (void *)&to, sizeof(to))) {
			failed(job, "connect");
			sleep(1);
		} else {
			stream(job, fd, &seq);
		}
		close(fd);
	}
	return NULL;
}

/* ---- the kernel's log ---------------------------------------------------------------------------------------- */

static bool contains_one_of(const char *line, const char *const *words)
{
	for (; *words; words++)
		if (strstr(line, *words))
			return true;
	return false;
}

static void judge_line(const char *line)
{
	/* Drivers that miss an interrupt find out after a while, and say so. */
	static const char *const lost[] = {
		"completion polled", "NETDEV WATCHDOG", "Hardware Unit Hang", "transmit queue", "not responding",
		"No irq handler", "Stop Endpoint Command", NULL
	};
	static const char *const errors[] = {
		"I/O error", "timeout, aborting", "reset controller", "Device not ready", "USB disconnect", "reset high-speed",
		"reset SuperSpeed", "HC died", "host controller not", "Link is Down", "failed", NULL
	};
	static const char *const complaints[] = {
		"lockup", "LOCKUP", "rcu: INFO: rcu", "detected stall", "BUG:", "Oops", "blocked for more than",
		"Marking clocksource", "Kernel panic", "WARNING: CPU", "general protection", "nobody cared", NULL
	};

	if (contains_one_of(line, complaints)) {
		add(&page->complaints, 1);
		say("the kernel complains: %.300s", line);
	}
	for (struct job *job = jobs; job < jobs + job_count; job++) {
		if (!strstr(line, job->name) && !strstr(line, job->address))
			continue;
		if (contains_one_of(line, lost))
			add(&job->slot->lost_interrupts, 1);
		else if (contains_one_of(line, errors))
			add(&job->slot->io_errors, 1);
		else
			continue;
		say("%s: the kernel says: %.300s", job->name, line);
	}
}

static void *log_thread(void *unused)
{
	char line[2048];
	int fd = open("/dev/kmsg", O_RDONLY);

	if (fd < 0) {
		say("cannot read the kernel's log: %s", strerror(errno));
		exit(1); /* a watch that is blind must not look like a quiet kernel */
	}
	lseek(fd, 0, SEEK_END);
	for (;;) {
		ssize_t n = read(fd, line, sizeof(line) - 1);

		if (n < 0)
			continue; /* EPIPE: older lines were overwritten, the next read goes on */
		line[n] = 0;
		judge_line(strchr(line, ';') ? strchr(line, ';') + 1 : line);
	}
	return unused;
}

/* ---- start --------------------------------------------------------------------------------------------------- */

static void start(void *(*function)(void *), void *argument)
{
	pthread_attr_t attributes;
	pthread_t thread;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 64 << 10);
	if (pthread_create(&thread, &attributes, function, argument)) {
		say("cannot start a thread: %s", strerror(errno));
		exit(1);
	}
}

static bool read_job(char *text)
{
	struct job *job = &jobs[job_count];
	char *kind = strtok(text, ":"), *slot = strtok(NULL, ":"), *at = strtok(NULL, ":");

	if (job_count == MAX_JOBS || !at || strtoul(slot, NULL, 10) >= STATUS_SLOTS)
		return false;
	*job = (struct job){ .kind = kind, .slot = &page->slots[strtoul(slot, NULL, 10)], .name = strtok(NULL, ":") };
	if (!job->name)
		return false;
	snprintf(job->address, sizeof(job->address), "0000:00:%s.", at);
	job->target = strtok(NULL, ":");
	job->argument = strtok(NULL, ":");
	job_count++;
	return !strcmp(kind, "watch") || ((!strcmp(kind, "disk") || !strcmp(kind, "net")) && job->argument);
}

static void start_job(struct job *job)
{
	if (!strcmp(job->kind, "disk")) {
		for (int i = 0; i < atoi(job->argument) && i < MAX_DEPTH; i++) {
			struct disk_thread *thread = malloc(sizeof(*thread));

			*thread = (struct disk_thread){ job, i };
			start(disk_thread, thread);
		}
	} else if (!strcmp(job->kind, "net")) {
		start(ping_thread, job);
		start(tcp_thread, job);
	}
}

/* Before all others: they must not make gaps that the host would take for those of the hand-over. */
static void tick(void)
{
	struct sched_param priority = { .sched_priority = 10 };
	struct timespec due;

	pthread_setschedparam(pthread_self(), SCHED_FIFO, &priority);
	clock_gettime(CLOCK_MONOTONIC, &due);
	for (;;) {
		int64_t next = due.tv_sec * NS_PER_S + due.tv_nsec + TICK_US * 1000ll;

		if (next < now_ns()) /* late: ticks that were missed are not made up for */
			next = now_ns();
		due.tv_sec = next / NS_PER_S;
		due.tv_nsec = next % NS_PER_S;
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
		page->uptime_ms = now_ns() / 1000000;
		page->ticks++;
	}
}

int main(int argc, char **argv)
{
	int memory = open("/dev/mem", O_RDWR);

	page = memory < 0 ? MAP_FAILED : mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, memory, STATUS_PAGE);
	if (page == MAP_FAILED) {
		perror("vfioload: cannot map the status page");
		return 1;
	}
	for (int i = 1; i < argc; i++) {
		if (!read_job(argv[i])) {
			fprintf(stderr, "vfioload: what is job %d?\n", i);
			return 1;
		}
	}
	mlockall(MCL_CURRENT | MCL_FUTURE);
	start(log_thread, NULL);
	for (int i = 0; i < job_count; i++)
		start_job(&jobs[i]);
	page->magic = STATUS_MAGIC;
	say("up, %d jobs", job_count);
	tick();
	return 0;
}
