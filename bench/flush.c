/* flush - a disk whose flush costs a given time, and nothing else.
 *
 *   flush DIR FILE MICROSECONDS
 *
 * Mounts a file system on DIR with one file, `disk`, which is FILE. A loop device on it passes each flush of the file system
 * above on as an fsync(2), and that takes MICROSECONDS here. So does a disk that has its data on a medium when it says so; that
 * of a virtual machine often says so at once. Stays in the foreground until DIR is unmounted.
 */
#define _GNU_SOURCE
#define FUSE_USE_VERSION 31
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int file;
static struct timespec cost; /* of a flush */

static int is_disk(const char *path)
{
	return strcmp(path, "/disk") == 0;
}

static int disk_getattr(const char *path, struct stat *st, struct fuse_file_info *info)
{
	(void)info;
	if (is_disk(path))
		return fstat(file, st) ? -errno : 0;
	memset(st, 0, sizeof *st);
	st->st_mode = S_IFDIR | 0700;
	st->st_nlink = 2;
	return strcmp(path, "/") == 0 ? 0 : -ENOENT;
}

static int disk_open(const char *path, struct fuse_file_info *info)
{
	/* No second copy in the page cache: the file system on the loop device has its own. */
	info->direct_io = 1;
	return is_disk(path) ? 0 : -ENOENT;
}

static int disk_read(const char *path, char *data, size_t size, off_t at, struct fuse_file_info *info)
{
	(void)path, (void)info;
	ssize_t n = pread(file, data, size, at);
	return n < 0 ? -errno : n;
}

static int disk_write(const char *path, const char *data, size_t size, off_t at, struct fuse_file_info *info)
{
	(void)path, (void)info;
	ssize_t n = pwrite(file, data, size, at);
	return n < 0 ? -errno : n;
}

static int disk_fsync(const char *path, int only_data, struct fuse_file_info *info)
{
	(void)path, (void)only_data, (void)info;
	return -clock_nanosleep(CLOCK_MONOTONIC, 0, &cost, NULL);
}

static int disk_fallocate(const char *path, int mode, off_t at, off_t length, struct fuse_file_info *info)
{
	(void)path, (void)info;
	return fallocate(file, mode, at, length) ? -errno : 0;
}

static void *disk_init(struct fuse_conn_info *connection, struct fuse_config *config)
{
	connection->max_write = 1 << 20;
	config->attr_timeout = config->entry_timeout = 3600;
	return NULL;
}

int main(int argc, char **argv)
{
	if (argc != 4)
		errx(2, "usage: flush DIR FILE MICROSECONDS");
	if ((file = open(argv[2], O_RDWR | O_CLOEXEC)) < 0)
		err(1, "%s", argv[2]);
	long micros = atol(argv[3]);
	cost = (struct timespec){ micros / 1000000, micros % 1000000 * 1000 };
	static const struct fuse_operations disk = {
		.init = disk_init, .getattr = disk_getattr, .open = disk_open, .read = disk_read, .write = disk_write,
		.fsync = disk_fsync, .fallocate = disk_fallocate,
	};
	char *arguments[] = { argv[0], "-f", argv[1], NULL };
	return fuse_main(3, arguments, &disk, NULL);
}
