// SPDX-License-Identifier: GPL-2.0-only
/*
 * Numbered records on a disk: written, read back and compared, many at a time.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "record.h"
#include "vfioload.h"

#define MAX_DEPTH      16
#define SLOTS_A_THREAD 64	/* records that a thread writes in turn */

struct disk_thread {
	struct job *job;
	unsigned int number;
};

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

void start_disk(struct job *job)
{
	for (int i = 0; i < atoi(job->argument) && i < MAX_DEPTH; i++) {
		struct disk_thread *thread = malloc(sizeof(*thread));

		*thread = (struct disk_thread){ job, i };
		start(disk_thread, thread);
	}
}
