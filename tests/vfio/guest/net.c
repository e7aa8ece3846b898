// SPDX-License-Identifier: GPL-2.0-only
/*
 * A flood of pings, and a TCP stream whose every byte comes back.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "vfioload.h"

#define CHUNK      4096
#define PING_BYTES 512
#define ANSWER_S   20	/* an answer that takes longer is a lost one */
#define LOOK_US    10000

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
	uint16_t id = htons(1000 + job->number);
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

void start_net(struct job *job)
{
	start(ping_thread, job);
	start(tcp_thread, job);
}

static bool bring_up(struct job *job)
{
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	struct ifreq request = { 0 };
	bool ok;

	strncpy(request.ifr_name, job->target, IFNAMSIZ - 1);
	ok = fd >= 0 && !ioctl(fd, SIOCGIFFLAGS, &request);
	request.ifr_flags |= IFF_UP;
	ok = ok && !ioctl(fd, SIOCSIFFLAGS, &request);
	while (ok && !(request.ifr_flags & IFF_RUNNING)) {
		usleep(LOOK_US);
		ok = !ioctl(fd, SIOCGIFFLAGS, &request);
	}
	close(fd);
	return ok;
}

static void *late_thread(void *argument)
{
	struct job *job = argument;

	while (!__atomic_load_n(&page->go, __ATOMIC_RELAXED))
		usleep(LOOK_US); /* a word in RAM tells nobody that it has changed */
	if (bring_up(job))
		start_net(job);
	else
		failed(job, "bringing the interface up");
	return NULL;
}

void start_late(struct job *job)
{
	start(late_thread, job);
}
