// SPDX-License-Identifier: GPL-2.0-only
/*
 * Load on the passed-through devices of a guest.  What comes of it is counted in a page of guest RAM (status.h):
 *
 *   disk:SLOT:AT:NAME:/dev/X:DEPTH   DEPTH requests at a time: numbered records, written with O_DIRECT, read back, compared
 *   net:SLOT:AT:NAME:IF:PEER         a flood of pings, and a TCP stream whose every byte comes back from PEER's port 7
 *   late:SLOT:AT:NAME:IF:PEER        the same with an interface that is brought up once the host says so
 *   watch:SLOT:AT:NAME               nothing but the kernel's complaints of the device
 *
 * AT is the device's number on the root bus, and NAME another name that the kernel has for it in its log.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "vfioload.h"

#define TICK_US 10000

struct status_page *page;
struct job jobs[MAX_JOBS];
int job_count;

void add(unsigned long long *word, unsigned long long n)
{
	__atomic_fetch_add(word, n, __ATOMIC_RELAXED);
}

int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * NS_PER_S + t.tv_nsec;
}

void say(const char *format, ...)
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

void failed(struct job *job, const char *what)
{
	add(&job->slot->io_errors, 1);
	say("%s: %s failed: %s", job->name, what, strerror(errno));
}

void done(struct job *job, int64_t began_ns, unsigned int ios)
{
	unsigned long long us = (now_ns() - began_ns) / 1000;

	add(&job->slot->ios, ios);
	if (us > job->slot->longest_us)
		job->slot->longest_us = us;
}

void start(void *(*function)(void *), void *argument)
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
	*job = (struct job){ .kind = kind, .number = strtoul(slot, NULL, 10), .name = strtok(NULL, ":") };
	job->slot = &page->slots[job->number];
	if (!job->name)
		return false;
	snprintf(job->address, sizeof(job->address), "0000:00:%s.", at);
	job->target = strtok(NULL, ":");
	job->argument = strtok(NULL, ":");
	job_count++;
	if (!strcmp(kind, "watch"))
		return true;
	return job->argument && (!strcmp(kind, "disk") || !strcmp(kind, "net") || !strcmp(kind, "late"));
}

static void start_job(struct job *job)
{
	if (!strcmp(job->kind, "disk"))
		start_disk(job);
	else if (!strcmp(job->kind, "net"))
		start_net(job);
	else if (!strcmp(job->kind, "late"))
		start_late(job);
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
	start_kernel_log();
	for (int i = 0; i < job_count; i++)
		start_job(&jobs[i]);
	page->magic = STATUS_MAGIC;
	say("up, %d jobs", job_count);
	tick();
	return 0;
}
