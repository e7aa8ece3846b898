// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * Stands in for the ssh client towards simulated hosts: it is called as ssh is, and carries what it is given on its
 * standard input to the process that answers for the hosts, and the answer back.
 *
 * It is in C because there is one for each call of a host: started as often as ssh would be, it has to cost no more.
 */

#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* What ssh exits with when it, and not the command, has failed. */
#define SSH_FAILED 255

static char buffer[1 << 16];

static void write_all(int fd, const char *bytes, size_t size)
{
	while (size) {
		ssize_t done = write(fd, bytes, size);

		if (done < 0)
			err(SSH_FAILED, "write");
		bytes += done;
		size -= done;
	}
}

static int connect_to(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		err(SSH_FAILED, "socket");
	if (strlen(path) >= sizeof(address.sun_path))
		errx(SSH_FAILED, "%s: too long for the path of a socket", path);
	strcpy(address.sun_path, path);
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)))
		err(SSH_FAILED, "%s", path);
	return fd;
}

/* The answer begins with one byte, the exit status of the command. */
static int carry_back(int fd)
{
	int status = -1;
	ssize_t got;

	while ((got = read(fd, buffer, sizeof(buffer))) > 0) {
		char *output = buffer;

		if (status < 0) {
			status = (unsigned char)*output++;
			got--;
		}
		write_all(STDOUT_FILENO, output, got);
	}
	if (got < 0)
		err(SSH_FAILED, "read");
	if (status < 0)
		errx(SSH_FAILED, "the host gave no answer");
	return status;
}

int main(int argc, char **argv)
{
	const char *path = getenv("SIMULATED_HOSTS");
	ssize_t got;
	int fd;

	if (!path || argc < 3)
		errx(SSH_FAILED, "call it as ssh [options] HOST COMMAND, with the socket's path in SIMULATED_HOSTS");
	fd = connect_to(path);
	write_all(fd, argv[argc - 2], strlen(argv[argc - 2]));
	write_all(fd, "\n", 1);
	while ((got = read(STDIN_FILENO, buffer, sizeof(buffer))) > 0)
		write_all(fd, buffer, got);
	if (got < 0)
		err(SSH_FAILED, "read");
	shutdown(fd, SHUT_WR);
	return carry_back(fd);
}
