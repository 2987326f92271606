/* floor - the least that a container costs on this kernel: what scripts/bench measures pgbox against.
 *
 *   floor LOWER:LOWER:LOWER SCRATCH PROGRAM [ARG...]
 *
 * Six namespaces, an overlay of three, pivot_root, /proc, /dev and /sys, a bridge with an address (left in place
 * for the next call), a veth pair whose peer is born in the new namespace with an address and a route (the
 * kernel removes it with the namespace), a cgroup with limits, the program, and the rest taken back. No checks beyond "did the call work", no state, no roll-back, no capabilities,
 * no seccomp, no masked paths: nobody should run a container with this.
 *
 * clone(2), overlayfs, pivot_root(2), rtnetlink(7), cgroups(7).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#define BRIDGE "pgbfloor"

static void must(int result, const char *what)
{
	if (result < 0)
		err(125, "%s", what);
}

/* ---- netlink: one message, one answer */

struct message {
	struct nlmsghdr head;
	char body[1024];
};

static void *tail(struct message *m) { return (char *)m + NLMSG_ALIGN(m->head.nlmsg_len); }

static void start(struct message *m, int type, int flags, const void *body, size_t size)
{
	memset(m, 0, sizeof *m);
	m->head.nlmsg_len = NLMSG_LENGTH(size);
	m->head.nlmsg_type = type;
	m->head.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags;
	memcpy(NLMSG_DATA(&m->head), body, size);
}

static struct rtattr *attribute(struct message *m, int type, const void *data, size_t size)
{
	struct rtattr *a = tail(m);
	a->rta_type = type;
	a->rta_len = RTA_LENGTH(size);
	if (size)
		memcpy(RTA_DATA(a), data, size);
	m->head.nlmsg_len = NLMSG_ALIGN(m->head.nlmsg_len) + RTA_ALIGN(a->rta_len);
	return a;
}

static void close_nest(struct message *m, struct rtattr *a) { a->rta_len = (char *)tail(m) - (char *)a; }

static void ask(int fd, struct message *m, const char *what)
{
	char answer[2048];
	must(send(fd, m, m->head.nlmsg_len, 0), what);
	must(recv(fd, answer, sizeof answer, 0), what);
	int error = ((struct nlmsgerr *)NLMSG_DATA((struct nlmsghdr *)answer))->error;
	if (error)
		errno = -error, err(125, "%s", what);
}

static int route_socket(void)
{
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	must(fd, "socket");
	return fd;
}

static int link_up(int fd, const char *name)
{
	struct message m;
	struct ifinfomsg link = { .ifi_index = if_nametoindex(name), .ifi_flags = IFF_UP, .ifi_change = IFF_UP };
	start(&m, RTM_NEWLINK, 0, &link, sizeof link);
	ask(fd, &m, "link up");
	return link.ifi_index;
}

static void address(int fd, int index, const char *text, int prefix)
{
	struct message m;
	struct in_addr ip;
	struct ifaddrmsg a = { .ifa_family = AF_INET, .ifa_prefixlen = prefix, .ifa_index = index };
	inet_pton(AF_INET, text, &ip);
	start(&m, RTM_NEWADDR, NLM_F_CREATE, &a, sizeof a);
	attribute(&m, IFA_LOCAL, &ip, 4);
	attribute(&m, IFA_ADDRESS, &ip, 4);
	ask(fd, &m, "address");
}

static int make_bridge(int fd)
{
	int index = if_nametoindex(BRIDGE);
	if (index)
		return index;
	struct message m;
	struct ifinfomsg link = { .ifi_flags = IFF_UP, .ifi_change = IFF_UP };
	start(&m, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link, sizeof link);
	attribute(&m, IFLA_IFNAME, BRIDGE, sizeof BRIDGE);
	struct rtattr *info = attribute(&m, IFLA_LINKINFO, NULL, 0);
	attribute(&m, IFLA_INFO_KIND, "bridge", 6);
	close_nest(&m, info);
	ask(fd, &m, "bridge");
	index = if_nametoindex(BRIDGE);
	address(fd, index, "10.212.0.1", 24);
	return index;
}

static void make_veth(int fd, int bridge, int pid)
{
	struct message m;
	struct ifinfomsg link = { .ifi_flags = IFF_UP, .ifi_change = IFF_UP }, none = { 0 };
	start(&m, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link, sizeof link);
	char name[IFNAMSIZ];
	/* The last one may take another 30 ms to go: no two have one name. */
	int length = snprintf(name, sizeof name, "pgvf%d", pid);
	attribute(&m, IFLA_IFNAME, name, length + 1);
	attribute(&m, IFLA_MASTER, &bridge, 4);
	struct rtattr *info = attribute(&m, IFLA_LINKINFO, NULL, 0);
	attribute(&m, IFLA_INFO_KIND, "veth", 4);
	struct rtattr *data = attribute(&m, IFLA_INFO_DATA, NULL, 0);
	struct rtattr *peer = attribute(&m, VETH_INFO_PEER, &none, sizeof none);
	attribute(&m, IFLA_IFNAME, "eth0", 5);
	attribute(&m, IFLA_NET_NS_PID, &pid, 4);
	close_nest(&m, peer);
	close_nest(&m, data);
	close_nest(&m, info);
	ask(fd, &m, "veth");
}

static void configure_inside(void)
{
	int fd = route_socket();
	struct message m;
	struct in_addr gateway;
	link_up(fd, "lo");
	int index = if_nametoindex("eth0");
	address(fd, index, "10.212.0.2", 24);
	link_up(fd, "eth0");
	struct rtmsg route = { .rtm_family = AF_INET, .rtm_table = RT_TABLE_MAIN, .rtm_protocol = RTPROT_BOOT,
			       .rtm_scope = RT_SCOPE_UNIVERSE, .rtm_type = RTN_UNICAST };
	inet_pton(AF_INET, "10.212.0.1", &gateway);
	start(&m, RTM_NEWROUTE, NLM_F_CREATE, &route, sizeof route);
	attribute(&m, RTA_GATEWAY, &gateway, 4);
	ask(fd, &m, "route");
	close(fd);
}

/* ---- cgroup: v2, or the v1 hierarchies of the same three controllers */

static const char *groups[] = { "/sys/fs/cgroup/memory/pgbox-floor", "/sys/fs/cgroup/cpu/pgbox-floor",
				"/sys/fs/cgroup/pids/pgbox-floor", NULL };
static const char *group[] = { "/sys/fs/cgroup/pgbox-floor", NULL };
static int v2;

static void put(const char *dir, const char *file, const char *text)
{
	char path[256];
	snprintf(path, sizeof path, "%s/%s", dir, file);
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	must(fd, path);
	must(write(fd, text, strlen(text)), path);
	close(fd);
}

static const char **make_cgroup(void)
{
	v2 = access("/sys/fs/cgroup/cgroup.controllers", F_OK) == 0;
	const char **dirs = v2 ? group : groups;
	for (int i = 0; dirs[i]; i++)
		must(mkdir(dirs[i], 0755), dirs[i]);
	put(dirs[0], v2 ? "memory.max" : "memory.limit_in_bytes", "268435456");
	put(dirs[v2 ? 0 : 1], v2 ? "cpu.max" : "cpu.cfs_quota_us", v2 ? "100000 100000" : "100000");
	put(dirs[v2 ? 0 : 2], "pids.max", "100");
	return dirs;
}

/* ---- the child: namespaces are there, the file system is to be made */

static void device(const char *path, int minor)
{
	must(mknod(path, S_IFCHR | 0666, makedev(1, minor)), path);
}

static void make_root(const char *lowers, const char *scratch)
{
	char options[2048], merged[256];
	snprintf(merged, sizeof merged, "%s/merged", scratch);
	snprintf(options, sizeof options, "volatile,lowerdir=%s,upperdir=%s/upper,workdir=%s/work", lowers, scratch, scratch);
	must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "private");
	must(mount("overlay", merged, "overlay", 0, options), "overlay");
	must(chdir(merged), merged);
	must(syscall(SYS_pivot_root, ".", "."), "pivot_root");
	must(umount2(".", MNT_DETACH), "umount");
	must(chdir("/"), "/");
	must(mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL), "/proc");
	must(mount("dev", "/dev", "tmpfs", MS_NOSUID, "mode=755"), "/dev");
	device("/dev/null", 3);
	device("/dev/zero", 5);
	device("/dev/full", 7);
	device("/dev/random", 8);
	device("/dev/urandom", 9);
	must(mount("sysfs", "/sys", "sysfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL), "/sys");
	must(sethostname("floor", 5), "sethostname");
}

int main(int argc, char **argv)
{
	if (argc < 4)
		errx(2, "usage: floor LOWER:LOWER:LOWER SCRATCH PROGRAM [ARG...]");
	char path[3][256];
	const char *names[] = { "upper", "work", "merged" };
	must(mkdir(argv[2], 0755), argv[2]);
	for (int i = 0; i < 3; i++) {
		snprintf(path[i], sizeof path[i], "%s/%s", argv[2], names[i]);
		must(mkdir(path[i], 0755), path[i]);
	}
	const char **dirs = make_cgroup();
	int ready[2];
	must(pipe2(ready, O_CLOEXEC), "pipe2");

	int flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWCGROUP;
	long pid = syscall(SYS_clone, flags | SIGCHLD, NULL, NULL, NULL, NULL);
	must(pid, "clone");
	if (pid == 0) {
		char byte;
		close(ready[1]);
		make_root(argv[1], argv[2]);
		if (read(ready[0], &byte, 1) != 1)
			_exit(125);
		configure_inside();
		execv(argv[3], argv + 3);
		err(127, "%s", argv[3]);
	}
	close(ready[0]);
	char text[16];
	snprintf(text, sizeof text, "%ld", pid);
	int fd = route_socket();
	int bridge = make_bridge(fd);
	make_veth(fd, bridge, pid);
	for (int i = 0; dirs[i]; i++)
		put(dirs[i], "cgroup.procs", text);
	must(write(ready[1], "x", 1), "write");

	int status;
	must(waitpid(pid, &status, 0), "waitpid");
	for (int i = 0; dirs[i]; i++)
		must(rmdir(dirs[i]), dirs[i]);
	/* What overlayfs leaves in its work directory: the mark of a volatile mount. */
	const char *left[] = { "work/incompat/volatile/dirty", "work/incompat/volatile", "work/incompat", "work" };
	for (int i = 0; i < 4; i++) {
		char inner[300];
		snprintf(inner, sizeof inner, "%s/%s", path[1], left[i]);
		must(remove(inner), inner);
	}
	for (int i = 2; i >= 0; i--)
		must(rmdir(path[i]), path[i]);
	must(rmdir(argv[2]), argv[2]);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
