/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the parts of vfioload share.
 */
#ifndef VFIOLOAD_H
#define VFIOLOAD_H

#include <stdint.h>

#include "status.h"

#define MAX_JOBS STATUS_SLOTS
#define NS_PER_S 1000000000ll

/* What is to be done with one device.  Kind, name, target and argument are the words of the command line. */
struct job {
	struct status_slot *slot;
	unsigned int number;
	char *kind, *name, *target, *argument;
	char address[16];
};

extern struct status_page *page;
extern struct job jobs[MAX_JOBS];
extern int job_count;

void add(unsigned long long *word, unsigned long long n);
int64_t now_ns(void);
void say(const char *format, ...);
/* Count an error of the job, and say what it was. */
void failed(struct job *job, const char *what);
/* Count what went well. */
void done(struct job *job, int64_t began_ns, unsigned int ios);
/* A thread that is there for good. */
void start(void *(*function)(void *), void *argument);

void start_disk(struct job *job);
void start_net(struct job *job);
void start_late(struct job *job);
void start_kernel_log(void);

#endif
