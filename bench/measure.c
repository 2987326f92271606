/* measure - run commands in turn, many times, and print what each cost.
 *
 *   measure ROUNDS < PLAN
 *
 * A line of PLAN is LABEL, PREPARE, COMMAND and CLEANUP between tabs. COMMAND is split at blanks and started
 * directly; only it is timed. PREPARE and CLEANUP go to sh. `{i}` in any of them is the number of the round.
 * Commands alternate within a round, so that whatever else the machine does meets all of them alike.
 *
 * What a command writes is thrown away, but when it fails for the first time, its standard error is shown.
 *
 * Output: LABEL, median wall ms, median CPU ms (user and system, of the command and of all it waited for),
 * least wall ms, peak RSS in KB (the largest of its processes), failures; between tabs.
 *
 * posix_spawn(3), wait4(2).
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_COMMANDS 16
#define MAX_ROUNDS 1000
extern char **environ;

struct command {
	char *label, *prepare, *line, *cleanup;
	double wall[MAX_ROUNDS], cpu[MAX_ROUNDS];
	long peak;
	int failures, told;
};

static FILE *said;

static char *numbered(const char *text, int round)
{
	char *out = NULL;
	size_t size;
	FILE *f = open_memstream(&out, &size);
	for (const char *at; (at = strstr(text, "{i}")); text = at + 3)
		fprintf(f, "%.*s%d", (int)(at - text), text, round);
	fputs(text, f);
	fclose(f);
	return out;
}

static void quietly(const char *line, int round)
{
	if (!*line)
		return;
	char *command = numbered(line, round);
	int status = system(command);
	if (status)
		fprintf(stderr, "measure: status %d: %s\n", WEXITSTATUS(status), command);
	free(command);
}

static void run(struct command *c, int round)
{
	char *line = numbered(c->line, round), *argv[64], *rest = line;
	int argc = 0, status;
	for (char *word; (word = strsep(&rest, " ")) && argc < 63;)
		if (*word)
			argv[argc++] = word;
	argv[argc] = NULL;

	posix_spawn_file_actions_t files;
	posix_spawn_file_actions_init(&files);
	posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_addopen(&files, 1, "/dev/null", O_WRONLY, 0);
	rewind(said);
	if (ftruncate(fileno(said), 0))
		err(1, "ftruncate");
	posix_spawn_file_actions_adddup2(&files, fileno(said), 2);
	struct timespec before, after;
	struct rusage usage;
	pid_t pid;
	clock_gettime(CLOCK_MONOTONIC, &before);
	if (posix_spawnp(&pid, argv[0], &files, NULL, argv, environ))
		errx(1, "cannot start %s", argv[0]);
	wait4(pid, &status, 0, &usage);
	clock_gettime(CLOCK_MONOTONIC, &after);
	posix_spawn_file_actions_destroy(&files);

	if (status && round > 0)
		c->failures++;
	if (status && !c->told) {
		c->told = 1;
		char text[4096];
		rewind(said);
		size_t length = fread(text, 1, sizeof text, said);
		fprintf(stderr, "measure: status %d: %s\n%.*s\n", WEXITSTATUS(status), c->line, (int)length, text);
	}
	c->wall[round] = (after.tv_sec - before.tv_sec) * 1e3 + (after.tv_nsec - before.tv_nsec) / 1e6;
	c->cpu[round] = (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1e3 +
			(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e3;
	if (usage.ru_maxrss > c->peak)
		c->peak = usage.ru_maxrss;
	free(line);
}

static int ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static double median(double *values, int count)
{
	qsort(values, count, sizeof *values, ascending);
	return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

int main(int argc, char **argv)
{
	static struct command commands[MAX_COMMANDS];
	int rounds = argc > 1 ? atoi(argv[1]) : 0, count = 0;
	char *line = NULL;
	size_t size = 0;
	if (rounds < 1 || rounds > MAX_ROUNDS)
		errx(2, "usage: measure ROUNDS < PLAN");
	if (!(said = tmpfile()))
		err(1, "tmpfile");
	while (count < MAX_COMMANDS && getline(&line, &size, stdin) > 0) {
		char *rest = strdup(line);
		struct command *c = &commands[count++];
		rest[strcspn(rest, "\n")] = 0;
		c->label = strsep(&rest, "\t");
		c->prepare = strsep(&rest, "\t");
		c->line = strsep(&rest, "\t");
		c->cleanup = strsep(&rest, "\t");
		if (!c->cleanup)
			errx(2, "not four fields: %s", line);
	}
	/* Round 0 warms caches and is not counted; each round begins with another command. */
	for (int round = 0; round <= rounds; round++)
		for (int i = 0; i < count; i++) {
			struct command *c = &commands[(i + round) % count];
			quietly(c->prepare, round);
			run(c, round);
			quietly(c->cleanup, round);
		}
	for (int i = 0; i < count; i++) {
		struct command *c = &commands[i];
		if (c->failures == rounds) {
			fprintf(stderr, "measure: failed in every round: %s\n", c->line);
			continue;
		}
		double wall = median(c->wall + 1, rounds);
		printf("%s\t%.2f\t%.2f\t%.2f\t%ld\t%d\n", c->label, wall, median(c->cpu + 1, rounds), c->wall[1], c->peak, c->failures);
	}
}
