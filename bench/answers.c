/* answers - wait until a Postgres answers `SELECT 1`, asking every millisecond.
 *
 *   answers IP PORT
 *
 * pg_ctl -w and pg_isready ask every 100 ms, psql takes 10 ms to start: too coarse to time a start of 40 ms by.
 * Speaks the frontend/backend protocol, version 3.0, as user `postgres` without a password (trust).
 */
#include <arpa/inet.h>
#include <err.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* Reads messages until one of type `wanted`; false when the server says no, or nothing. */
static int until(int fd, char wanted)
{
	unsigned char head[5], byte;
	for (;;) {
		for (size_t got = 0; got < sizeof head;) {
			ssize_t n = read(fd, head + got, sizeof head - got);
			if (n <= 0)
				return 0;
			got += n;
		}
		unsigned length = (unsigned)head[1] << 24 | head[2] << 16 | head[3] << 8 | head[4];
		for (unsigned i = 4; i < length; i++)
			if (read(fd, &byte, 1) != 1)
				return 0;
		if (head[0] == (unsigned char)wanted)
			return 1;
		if (head[0] == 'E')
			return 0;
	}
}

static int asked(const struct sockaddr_in *server)
{
	static const char hello[] = "\0\0\0\x29\0\3\0\0user\0postgres\0database\0postgres\0";
	static const char query[] = "Q\0\0\0\x0dSELECT 1";
	struct timeval patience = { .tv_sec = 1 };
	int fd = socket(AF_INET, SOCK_STREAM, 0), good = 0;
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
	if (connect(fd, (const struct sockaddr *)server, sizeof *server) == 0 &&
	    write(fd, hello, sizeof hello) == sizeof hello && until(fd, 'Z') &&
	    write(fd, query, sizeof query) == sizeof query)
		good = until(fd, 'D');
	close(fd);
	return good;
}

int main(int argc, char **argv)
{
	if (argc != 3)
		errx(2, "usage: answers IP PORT");
	struct sockaddr_in server = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[2])) };
	struct timespec pause = { .tv_nsec = 1000000 };
	inet_pton(AF_INET, argv[1], &server.sin_addr);
	time_t deadline = time(NULL) + 60;
	while (!asked(&server)) {
		if (time(NULL) > deadline)
			errx(1, "%s:%s does not answer", argv[1], argv[2]);
		nanosleep(&pause, NULL);
	}
}
