/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The page of guest RAM in which a guest of the passthrough tests reports; the host reads it through the memfd
 * (host/status.py has the same layout).  The kernel is told to leave it alone.
 */
#ifndef STATUS_H
#define STATUS_H

#define STATUS_PAGE  0x8000000ul
#define STATUS_MAGIC 0x564d4d4c56464901ull
#define STATUS_SLOTS 16

/* One device.  Each word has one writer, or is added to atomically. */
struct status_slot {
	unsigned long long ios;
	unsigned long long io_errors;
	unsigned long long mismatches;
	unsigned long long lost_interrupts;
	unsigned long long extra_interrupts;
	unsigned long long longest_us;
	unsigned long long reserved[2];
};

struct status_page {
	unsigned long long magic;
	unsigned long long ticks;
	unsigned long long uptime_ms;
	unsigned long long complaints;
	unsigned long long go;	/* written by the host */
	unsigned long long reserved[3];
	struct status_slot slots[STATUS_SLOTS];
};

#endif
