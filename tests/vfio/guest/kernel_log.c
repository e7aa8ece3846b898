// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the kernel has to say of the devices.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vfioload.h"

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

void start_kernel_log(void)
{
	start(log_thread, NULL);
}
