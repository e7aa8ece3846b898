// SPDX-License-Identifier: GPL-2.0-only
/*
 * gapwatch FILE: watches, from the host, the words of a guest's status page that count (status.h), in the file that is its RAM.
 * For each line on standard input it writes one: for how long, in microseconds, the ticks and then each slot's I/O stood
 * still at most since the line before.  What stands still yet is part of it.
 */
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "status.h"

#define WORDS   (1 + STATUS_SLOTS)
#define LOOK_MS 1

struct word {
	const unsigned long long *at;
	unsigned long long seen;
	int64_t changed_us, longest_us;
};

static struct word words[WORDS];

static int64_t now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000ll + t.tv_nsec / 1000;
}

static void look(void)
{
	int64_t now = now_us();

	for (struct word *word = words; word < words + WORDS; word++) {
		unsigned long long value = __atomic_load_n(word->at, __ATOMIC_RELAXED);

		if (now - word->changed_us > word->longest_us)
			word->longest_us = now - word->changed_us;
		if (value != word->seen) {
			word->seen = value;
			word->changed_us = now;
		}
	}
}

static void tell(void)
{
	for (struct word *word = words; word < words + WORDS; word++) {
		printf("%lld ", (long long)word->longest_us);
		word->longest_us = 0;
	}
	putchar('\n');
	fflush(stdout);
}

int main(int argc, char **argv)
{
	struct pollfd commands = { .fd = STDIN_FILENO, .events = POLLIN };
	int fd = argc == 2 ? open(argv[1], O_RDONLY) : -1;
	const struct status_page *page = fd < 0 ? MAP_FAILED : mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, STATUS_PAGE);
	char buffer[16];

	if (page == MAP_FAILED) {
		perror("gapwatch: cannot map the RAM of the guest");
		return 1;
	}
	for (int i = 0; i < WORDS; i++) {
		const unsigned long long *at = i ? &page->slots[i - 1].ios : &page->ticks;

		words[i] = (struct word){ .at = at, .seen = *at, .changed_us = now_us() };
	}
	for (;;) {
		if (poll(&commands, 1, LOOK_MS) > 0) {
			if (read(STDIN_FILENO, buffer, sizeof(buffer)) <= 0)
				return 0;
			look();
			tell();
		}
		look();
	}
}
