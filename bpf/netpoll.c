/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Counts the wakeups of Go's network poller from the kernel side.
 *
 * One raw tracepoint, sys_exit, sees everything: an epoll_pwait that returns n events runs through
 * here before the runtime's netpollready does, so a goroutine found parked in a pollDesc now is one
 * about to be woken; the next I/O syscall on that fd and direction says whether it was for nothing.
 * The fork/exec/exit tracepoints follow a watched process's children.
 *
 * Written in BCC's dialect and kept to what BCC 0.18 compiles: no subprograms, no globals, no
 * kernel headers (see stub/).
 */
#include <uapi/linux/ptrace.h>
#include "netpoll.h"

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

#define EINTR 4
#define EBADF 9
#define EAGAIN 11
#define EEXIST 17
#define EPOLLIN 0x001u
#define EPOLLOUT 0x004u
#define EPOLLERR 0x008u
#define EPOLLHUP 0x010u
#define EPOLLRDHUP 0x2000u
#define EPOLLET 0x80000000u
#define EPOLL_CTL_ADD 1
#define EPOLL_CTL_DEL 2
#define SOL_SOCKET 1
#define SO_ERROR 4
#define SOCK_DGRAM 2
#define SOCK_RAW 3
#define AF_INET 2
#define AF_INET6 10
#define S_IFMT 0170000
#define S_IFSOCK 0140000

/* The mask that netpollopen registers every pollDesc with, in all versions. */
#define GO_EVENTS (EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET)

/* pollDesc.rg and .wg: 0 nobody, 1 readiness stored, 2 about to park, else the parked *g. */
#define PD_READY 1
#define PD_WAIT 2
#define PD_WORDS 6
#define PD_FD 1
#define PD_FDSEQ 2

/* A loop over all 128 events is too complex for the verifier; batches with tail calls are not. */
#define BATCH 8

#ifdef NETPOLL_AARCH64
#define EVENT_WORDS 4		/* u32 events, padding, u64 data */
#define EVENT_DATA 2
#else
#define EVENT_WORDS 3		/* packed on x86-64 */
#define EVENT_DATA 1
#endif

BPF_ARRAY(homes, u64, TGID_HOMES);	/* tgid << 32 | owner; 0 = not watched */
BPF_ARRAY(roles, u32, SYSCALLS);
BPF_ARRAY(layouts, struct layout, LAYOUTS);
BPF_ARRAY(epochs, u32, 1);
BPF_ARRAY(kept_epochs, struct kept_epochs, 1);
BPF_ARRAY(targets, struct target, MAX_PROCESSES);
BPF_ARRAY(pollers, struct poller, MAX_PROCESSES);
BPF_ARRAY(waits, struct wait, MAX_PROCESSES * MAX_FDS * 2);
BPF_PERCPU_ARRAY(counts, struct counters, MAX_PROCESSES * BANKS);
BPF_ARRAY(latencies, struct histogram, MAX_PROCESSES * BANKS);
BPF_PERCPU_ARRAY(slowest, struct slowest, MAX_PROCESSES * BANKS);
BPF_STACK_TRACE(stacks, STACKS);
BPF_STACK_TRACE(more_stacks, STACKS);
BPF_HASH(offenders, struct offender, struct blame, 16384);
BPF_PERCPU_ARRAY(first_blame, struct blame, 1);	/* in the making: too large for the stack */
BPF_ARRAY(keeping, u32, 1);	/* KEEP_… */
BPF_QUEUE(free_slots, u32, MAX_PROCESSES);

struct args {
	u64 arg[4];
	u32 nr;
};

/* A poll whose events do not fit one batch; continued by tail calls on the same CPU. */
struct drain {
	u64 now;
	u64 events;
	u32 owner;
	u32 next;
	u32 n;
	u32 found;
};
BPF_PERCPU_ARRAY(drains, struct drain, 1);
BPF_PROG_ARRAY(continuations, 1);

#ifdef TYPED_ARGS
/* The verifier knows what regs points to, so no call is needed, which is dear where returns are guarded against
 * speculation. Assembler, because BCC makes a call of what C dereferences. */
#define LOAD(value, size, regs, member) \
	asm volatile("%0 = *(" #size " *)(%1 + %2)" : "=r"(value) : "r"(regs), "i"(offsetof(struct pt_regs, member)))

static __always_inline int read_args(u64 regs, struct args *a)
{
#ifdef NETPOLL_AARCH64
	LOAD(a->arg[0], u64, regs, orig_x0);
	LOAD(a->arg[1], u64, regs, regs[1]);
	LOAD(a->arg[2], u64, regs, regs[2]);
	LOAD(a->arg[3], u64, regs, regs[3]);
	LOAD(a->nr, u32, regs, syscallno);
#else
	u64 nr;

	LOAD(a->arg[0], u64, regs, di);
	LOAD(a->arg[1], u64, regs, si);
	LOAD(a->arg[2], u64, regs, dx);
	LOAD(a->arg[3], u64, regs, r10);
	LOAD(nr, u64, regs, orig_ax);
	a->nr = nr;
#endif
	return 0;
}
#else
static __always_inline int read_args(u64 regs, struct args *a)
{
#ifdef NETPOLL_AARCH64
	/* x0 holds the result by now; the kernel keeps the argument in orig_x0. */
	u64 x[3];
	struct { u64 orig_x0; s32 nr; } tail;

	if (bpf_probe_read_kernel(x, sizeof(x), (void *)(regs + offsetof(struct pt_regs, regs[1]))))
		return -1;
	if (bpf_probe_read_kernel(&tail, 12, (void *)(regs + offsetof(struct pt_regs, orig_x0))))
		return -1;
	a->arg[0] = tail.orig_x0;
	a->arg[1] = x[0];
	a->arg[2] = x[1];
	a->arg[3] = x[2];
	a->nr = tail.nr;
#else
	/* r10 r9 r8 ax cx dx si di orig_ax stand in a row. */
	u64 r[9];

	if (bpf_probe_read_kernel(r, sizeof(r), (void *)(regs + offsetof(struct pt_regs, r10))))
		return -1;
	a->arg[0] = r[7];
	a->arg[1] = r[6];
	a->arg[2] = r[5];
	a->arg[3] = r[0];
	a->nr = r[8];
#endif
	return 0;
}
#endif

static __always_inline u32 current_epoch(void)
{
	int zero = 0;
	u32 *epoch = epochs.lookup(&zero);

	return epoch ? *epoch : 0;
}

static __always_inline u64 *home_of(u32 tgid)
{
	int home = tgid & (TGID_HOMES - 1);

	return homes.lookup(&home);
}

/* 0: it is not watched. */
static __always_inline u32 owner_of(u32 tgid)
{
	u64 *home = home_of(tgid);

	return home && *home >> 32 == tgid ? (u32)*home : 0;
}

static __always_inline struct target *target_of(u32 owner)
{
	int key = SLOT(owner);

	return targets.lookup(&key);
}

static __always_inline void forget(struct poller *p, u32 owner)
{
	__builtin_memset(p, 0, sizeof(*p));
	p->epfd = NO_EPFD;
	p->candidates[0].epfd = NO_EPFD;
	p->candidates[1].epfd = NO_EPFD;
	p->candidates[2].epfd = NO_EPFD;
	p->candidates[3].epfd = NO_EPFD;
	p->owner = owner;
}

static __always_inline struct poller *poller_of(u32 owner)
{
	int key = SLOT(owner);
	struct poller *p = pollers.lookup(&key);

	/* Left by the slot's former process, or by the program that this one ran before. */
	if (p && p->owner != owner)
		forget(p, owner);
	return p;
}

static __always_inline struct counters *counters_of(u32 owner, u32 epoch)
{
	int key = BANK(owner, epoch);

	return counts.lookup(&key);
}

static __always_inline struct wait *wait_of(u32 owner, u64 fd, int direction)
{
	struct wait *w;
	int key;

	if (fd >= MAX_FDS)
		return 0;
	key = (SLOT(owner) * MAX_FDS + fd) * 2 + direction;
	w = waits.lookup(&key);
	if (w && w->owner != owner) {
		/* Left by the slot's former process. */
		w->woken_at = 0;
		w->flags = 0;
		w->streak = 0;
		w->owner = owner;
	}
	return w;
}

#ifdef ATOMIC_EXCHANGE
/* xchg as a number, which old compilers do not know by name; in registers that BCC's first pass, which compiles for
 * the machine itself, knows too. */
static __always_inline u64 exchange(u64 *word, u64 value)
{
	register u64 *at asm("r8") = word;
	register u64 was asm("r9") = value;

	asm volatile(".quad 0x000000e1000098db" : "+r"(was) : "r"(at) : "memory");
	return was;
}
#else
/* Before 5.12 the kernel knows none. Of the helpers this one is atomic; who comes first is remembered long enough. */
struct claim {
	u64 woken_at;
	u64 g;
	u64 owner;
};
BPF_TABLE("lru_hash", struct claim, u8, claims, 4096);
#endif

/* Takes the wakeup that is pending in w: of several that come at once, one gets when it was, and the others 0.
 * epoch: whose it is. */
static __always_inline u64 take(struct wait *w, u32 *epoch)
{
	u64 seen = *(volatile u64 *)&w->woken_at, taken;

	if (!seen)
		return 0;
	*epoch = *(volatile u32 *)&w->epoch;
#ifdef ATOMIC_EXCHANGE
	taken = exchange(&w->woken_at, 0);
	if (taken != seen)	/* another one, which has come meanwhile */
		*epoch = w->epoch;
	return taken;
#else
	struct claim claim = { .woken_at = seen, .g = w->g, .owner = w->owner };
	u8 value = 0;

	if (claims.insert(&claim, &value))
		return 0;
	w->woken_at = 0;
	return seen;
#endif
}

/* The epoch in whose bank a wakeup of this one counts; 0: nobody asks for it. */
static __always_inline u32 kept_epoch(u32 epoch)
{
	int zero = 0, i;
	struct kept_epochs *kept = kept_epochs.lookup(&zero);
	u32 last = 0;

	if (!kept)
		return 0;
	if (kept->of_bank[epoch & (BANKS - 1)] == epoch)
		return epoch;
#pragma clang loop unroll(full)
	for (i = 0; i < BANKS; i++) {
		u32 other = kept->of_bank[i];

		if (other <= epoch && other > last)
			last = other;
	}
	return last;
}

/* A wakeup that nothing followed. */
static __always_inline void abandon_wakeup(struct wait *w)
{
	struct counters *c;
	u32 epoch;

	if (!take(w, &epoch))
		return;
	epoch = kept_epoch(epoch);
	c = epoch ? counters_of(w->owner, epoch) : 0;
	if (c)
		c->abandoned_wakeups++;
}

static __always_inline u32 bucket_of(u64 ns)
{
	u32 shift = 0;
	u64 v;

	if (ns >> LATENCY_BITS)
		ns = (1ULL << LATENCY_BITS) - 1;
	if (ns < 16)
		return ns;
	v = ns;
	if (v >> 32) { v >>= 32; shift += 32; }
	if (v >> 16) { v >>= 16; shift += 16; }
	if (v >> 8) { v >>= 8; shift += 8; }
	if (v >> 4) { v >>= 4; shift += 4; }
	if (v >> 2) { v >>= 2; shift += 2; }
	if (v >> 1) { shift += 1; }
	return (shift - 3) * 16 + ((ns >> (shift - 4)) & 15);
}

static __always_inline int keeps(u32 what)
{
	int zero = 0;
	u32 *kept = keeping.lookup(&zero);

	return kept && *kept & what;
}

/* Where the user's stack is kept: below STACKS in the first map. */
static __always_inline s32 stack_of(void *ctx)
{
	s32 id = stacks.get_stackid(ctx, BPF_F_USER_STACK);

	/* The place that its hash gives it is another one's: there is a second map for those. */
	if (id == -EEXIST) {
		id = more_stacks.get_stackid(ctx, BPF_F_USER_STACK);
		if (id >= 0)
			return id + STACKS;
	}
	return id < 0 ? NO_STACK : id;
}

#if defined(TASK_FILES_OFFSET) || defined(TASK_CRED_OFFSET)
static __always_inline u64 kernel_word(u64 address)
{
	u64 word = 0;

	bpf_probe_read_kernel(&word, sizeof(word), (void *)address);
	return word;
}

#define READ_MEMBER(member, from) bpf_probe_read_kernel(&(member), sizeof(member), (void *)(from))
#endif

#ifdef TASK_FILES_OFFSET
/* The current process's struct file; 0 where it has no such descriptor. The number may be anything: some come
 * from the process's memory. Neither the table nor what it holds is freed before this program ends (RCU). */
static __always_inline u64 file_of(u64 fd)
{
	u64 files = kernel_word(bpf_get_current_task() + TASK_FILES_OFFSET);
	u64 table = files ? kernel_word(files + FILES_FDT_OFFSET) : 0;
	u64 slots = table ? kernel_word(table + FDT_FD_OFFSET) : 0;
	u32 size = 0;

	if (!slots || READ_MEMBER(size, table + FDT_MAX_FDS_OFFSET) || fd >= size)
		return 0;
	return kernel_word(slots + fd * 8);
}

static __always_inline u32 inode_of(u64 file)
{
	return file ? kernel_word(kernel_word(file + FILE_INODE_OFFSET) + INODE_INO_OFFSET) : 0;
}

static __always_inline void describe_socket(u64 file, u64 socket, struct endpoint *e)
{
	u64 sk;

	/* Not all that has a socket's mode is one: an O_PATH descriptor of a unix socket's name is not. */
	if (!socket || kernel_word(socket + SOCKET_FILE_OFFSET) != file)
		return;
	sk = kernel_word(socket + SOCKET_SK_OFFSET);
	if (!sk)
		return;
	READ_MEMBER(e->type, socket + SOCKET_TYPE_OFFSET);
	READ_MEMBER(e->family, sk + SOCK_FAMILY_OFFSET);
	/* Of other families something else is kept there. */
	if (e->family != AF_INET && e->family != AF_INET6)
		return;
	READ_MEMBER(e->state, sk + SOCK_STATE_OFFSET);
	READ_MEMBER(e->port, sk + SOCK_PORT_OFFSET);
	READ_MEMBER(e->peer_port, sk + SOCK_PEER_PORT_OFFSET);
	if (e->family == AF_INET6) {
		READ_MEMBER(e->address, sk + SOCK_ADDRESS6_OFFSET);
		READ_MEMBER(e->peer_address, sk + SOCK_PEER_ADDRESS6_OFFSET);
	} else {
		bpf_probe_read_kernel(e->address, 4, (void *)(sk + SOCK_ADDRESS_OFFSET));
		bpf_probe_read_kernel(e->peer_address, 4, (void *)(sk + SOCK_PEER_ADDRESS_OFFSET));
	}
}

/* e: all zero, and it stays so where the descriptor is closed meanwhile: what was read of its file may be
 * another process's by then. */
static __always_inline void describe(u64 fd, struct endpoint *e)
{
	u64 file = file_of(fd), inode;

	if (!file)
		return;
	inode = kernel_word(file + FILE_INODE_OFFSET);
	READ_MEMBER(e->mode, inode + INODE_MODE_OFFSET);
	e->inode = kernel_word(inode + INODE_INO_OFFSET);
	if ((e->mode & S_IFMT) == S_IFSOCK)
		describe_socket(file, kernel_word(file + FILE_PRIVATE_OFFSET), e);
	if (file_of(fd) != file)
		__builtin_memset(e, 0, sizeof(*e));
}
#else
#define file_of(fd) 0
#define inode_of(file) 0
#define describe(fd, e)
#endif

/* Keeps whose fault it was. times: how many such offences this one stands for. */
static __always_inline void accuse(struct counters *c, struct offender *o, u32 times)
{
	struct blame *b = offenders.lookup(o);
	struct blame *first;
	int zero = 0;

	if (!b) {
		first = first_blame.lookup(&zero);
		if (!first)
			return;
		__builtin_memset(first, 0, sizeof(*first));
		describe(o->fd, &first->end);
		b = offenders.lookup_or_try_init(o, first);
		if (!b) {
			c->lost_offenders++;
			return;
		}
	} else if (b->end.inode != inode_of(file_of(o->fd))) {
		b->end.several = 1;
	}
	__sync_fetch_and_add(&b->count, times);
}

/* Keeps the wakeup where it is one of the bank's slowest so far. Nearly all end at the comparison. */
static __always_inline void keep_if_slow(void *ctx, struct counters *c, int key, struct wait *w, u64 woken_at,
					 u64 latency, u32 nr, u32 fd, int direction)
{
	struct slow_wakeup *kept;
	u64 least = ~0ULL;
	struct slowest *s;
	int i;

	if (latency <= c->slow_floor || !keeps(KEEP_CULPRITS))
		return;
	s = slowest.lookup(&key);
	if (!s)
		return;
	kept = &s->kept[s->least & (SLOWEST - 1)];
	kept->latency = latency;
	kept->at = woken_at + latency;
	kept->syscall = nr;
	kept->fd = fd;
	kept->direction = direction;
	kept->stack = stack_of(ctx);
	__builtin_memset(&kept->end, 0, sizeof(kept->end));
	describe(fd, &kept->end);
	if (bpf_probe_read_user(kept->goid, sizeof(kept->goid), (void *)(w->g + GOID_OFFSET)))
		__builtin_memset(kept->goid, 0, sizeof(kept->goid));
	/* Which makes room for the next is noted in memory: as one of eight pointers here, it would have the
	 * verifier walk eight times through all that follows. */
#pragma clang loop unroll(full)
	for (i = 0; i < SLOWEST; i++) {
		if (s->kept[i].latency < least) {
			least = s->kept[i].latency;
			s->least = i;
		}
	}
	c->slow_floor = least;
}

/* The syscall that follows a wakeup of the epoch has returned. Returns the counters that the wakeup is in. */
static __always_inline struct counters *resolve_wakeup(void *ctx, struct wait *w, u64 woken_at, u32 epoch, u32 nr,
						       u32 fd, int direction, long ret)
{
	u64 latency = bpf_ktime_get_ns() - woken_at;
	int key = BANK(w->owner, epoch);
	struct counters *c = epoch ? counts.lookup(&key) : 0;
	u64 bucket = bucket_of(latency);
	struct histogram *h;

	if (!c)
		return 0;
	keep_if_slow(ctx, c, key, w, woken_at, latency, nr, fd, direction);
	if (latency > c->latency_max)
		c->latency_max = latency;
	h = latencies.lookup(&key);
	/* The compiler of BCC 0.18 compares one copy and indexes with another, which 5.10 takes for unbounded. */
	asm volatile("" : "+r"(bucket));
	if (h && bucket < LATENCY_BUCKETS)
		__sync_fetch_and_add(&h->buckets[bucket], 1);
	if (ret == -EAGAIN)
		c->spurious_wakeups++;
	else
		c->productive_wakeups++;
	return c;
}

/* Will the wait that follows this EAGAIN return at once? Only now can it be known: a Read or Write
 * begins by dropping a readiness stored before it. */
static __always_inline int readiness_is_stored(struct wait *w, int direction)
{
	struct poller *p = poller_of(w->owner);
	u64 waiter = 0;

	if (!(w->flags & WAIT_STORED) || !p)
		return 0;
	bpf_probe_read_user(&waiter, sizeof(waiter), (void *)(w->pd + (p->layout.waiters + direction) * 8));
	return waiter == PD_READY;
}

/* An I/O syscall on fd has returned. */
static __always_inline void io_returned(void *ctx, u32 owner, u32 nr, u32 fd, int direction, long ret)
{
	struct wait *w = wait_of(owner, fd, direction);
	struct offender o = {};
	struct counters *c = 0;
	u64 woken_at;

	if (!w)
		return;
	woken_at = take(w, &o.epoch);
	if (woken_at) {
		o.epoch = kept_epoch(o.epoch);
		o.offence = SPURIOUS;
		c = resolve_wakeup(ctx, w, woken_at, o.epoch, nr, fd, direction, ret);
		w->flags = ret == -EAGAIN ? WAIT_TRIED : 0;
		if (ret != -EAGAIN)
			return;
	} else if (ret != -EAGAIN) {
		if (w->flags & (WAIT_TRIED | WAIT_ARMED))
			w->flags &= WAIT_STORED;
		return;
	} else {
		if (w->flags & WAIT_ARMED) {
			o.epoch = current_epoch();
			o.offence = STALE;
			c = counters_of(owner, o.epoch);
			if (c)
				c->stale_retries++;
		}
		w->flags = WAIT_TRIED | (readiness_is_stored(w, direction) ? WAIT_ARMED : 0);
	}
	if (!c || !keeps(KEEP_CULPRITS))
		return;
	/* Somebody was woken for nothing: keep whose line it was. */
	o.owner = owner;
	o.fd = fd;
	o.syscall = nr;
	o.direction = direction;
	o.stack = stack_of(ctx);
	accuse(c, &o, 1);
}

static __always_inline void abandon(u32 owner, u64 fd, int direction)
{
	struct wait *w = wait_of(owner, fd, direction);

	if (!w)
		return;
	abandon_wakeup(w);
	w->flags = 0;
	w->streak = 0;
}

static __always_inline void found_nobody(struct counters *c, u32 owner, u32 epoch, u64 fd, int direction)
{
	c->unclaimed_events++;
	/* What is no number of a descriptor is no pollDesc's: there is nobody to name. */
	if (fd >> 31 == 0 && keeps(KEEP_UNCLAIMED)) {
		struct offender o = {
			.owner = owner, .epoch = epoch, .stack = NO_STACK, .fd = fd,
			.direction = direction, .offence = UNCLAIMED,
		};

		accuse(c, &o, 1);
	}
}

/* One direction of one event: whom will netpollready find? */
static __always_inline void event_in_direction(struct counters *c, u32 owner, u32 epoch, u64 fd, int direction,
					       u64 pd, u64 waiter, u64 now)
{
	struct wait *w = wait_of(owner, fd, direction);

	if (w)
		w->streak = 0;
	if (waiter > PD_WAIT) {
		c->wakeups++;
		if (!w) {
			c->lost_fds++;
			return;
		}
		abandon_wakeup(w);
		w->g = waiter;
		w->pd = pd;
		w->epoch = epoch;
		w->flags = 0;
		/* Last: from now on it may be taken. */
#ifdef ATOMIC_EXCHANGE
		if (exchange(&w->woken_at, now))
			c->abandoned_wakeups++;	/* another poll's, at the same time and so of this epoch */
#else
		*(volatile u64 *)&w->woken_at = now;
#endif
		return;
	}
	if (waiter == PD_READY)
		c->duplicate_events++;
	else if (waiter == PD_WAIT)
		c->parking_events++;
	else
		found_nobody(c, owner, epoch, fd, direction);
	if (w && !(w->flags & WAIT_STORED)) {
		w->pd = pd;
		w->flags |= WAIT_STORED | (w->flags & WAIT_TRIED ? WAIT_ARMED : 0);
	}
}

static __always_inline u64 unpack(u64 data, const struct layout *l)
{
#ifdef NETPOLL_AARCH64
	return data >> (l->right & 63) << (l->left & 63);
#else
	return (s64)data >> (l->right & 63) << (l->left & 63);
#endif
}

/* Returns whether the event is a pollDesc's and not the runtime's own wake-up. */
static __always_inline int drain_event(struct counters *c, struct poller *p, u32 owner, u32 epoch, u32 events,
				       u64 data, u64 now)
{
	u64 pd[PD_WORDS];
	u64 address, rg, wg;

	if (data == p->break_data)
		return 0;
	c->events++;
	address = unpack(data, &p->layout);
	if (bpf_probe_read_user(pd, sizeof(pd), (void *)address)) {
		c->lost_memory++;
		return 1;
	}
	rg = p->layout.waiters == 3 ? pd[3] : pd[4];
	wg = p->layout.waiters == 3 ? pd[4] : pd[5];
	/* The fd was closed and its pollDesc reused after the event: the runtime drops it. */
	if ((data ^ pd[PD_FDSEQ]) & ((1ULL << (p->layout.tag_bits & 63)) - 1)) {
		c->unclaimed_events++;
		return 1;
	}
	if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		event_in_direction(c, owner, epoch, pd[PD_FD], DIR_READ, address, rg, now);
	if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
		event_in_direction(c, owner, epoch, pd[PD_FD], DIR_WRITE, address, wg, now);
	return 1;
}

static __always_inline void drain_batch(void *ctx, struct drain *d)
{
	u32 batch[BATCH * EVENT_WORDS];
	u32 owner = d->owner;
	u32 epoch = current_epoch();
	u32 left = d->n - d->next;
	struct counters *c = counters_of(owner, epoch);
	struct poller *p = poller_of(owner);
	int i;

	if (!c || !p)
		return;
	/* The runtime's buffer holds 128 events, so a whole batch can always be read. */
	if (bpf_probe_read_user(batch, sizeof(batch), (void *)(d->events + d->next * EVENT_WORDS * 4))) {
		c->lost_memory++;
		return;
	}
	for (i = 0; i < BATCH; i++) {
		u32 *e = &batch[i * EVENT_WORDS];
		u64 data = (u64)e[EVENT_DATA + 1] << 32 | e[EVENT_DATA];

		if (i >= left)
			break;
		d->found += drain_event(c, p, owner, epoch, e[0], data, d->now);
	}
	if (left > BATCH) {
		d->next += BATCH;
		continuations.call(ctx, 0);
		c->lost_memory++;	/* reached only when the tail call was refused */
		return;
	}
	if (d->found == 0)
		c->break_polls++;
}

int drain_events(struct bpf_raw_tracepoint_args *ctx)
{
	int zero = 0;
	struct drain *d = drains.lookup(&zero);

	if (d)
		drain_batch(ctx, d);
	return 0;
}

static __always_inline s64 timeout_of(const struct args *a, u32 role)
{
	s64 ts[2];

	if (!(role & ROLE_POLL_TIMESPEC))
		return (s32)a->arg[3];
	if (!a->arg[3] || bpf_probe_read_user(ts, sizeof(ts), (void *)a->arg[3]))
		return -1;
	return ts[0] | ts[1];
}

static __always_inline void poll_returned(void *ctx, u32 owner, const struct args *a, u32 role, long ret)
{
	struct counters *c = counters_of(owner, current_epoch());
	struct target *t = target_of(owner);
	s64 timeout;
	int zero = 0;
	struct drain *d;

	if (!c || !t)
		return;
	if (!t->kept)
		t->kept = 1;
	timeout = timeout_of(a, role);
	c->polls++;
	if (timeout == 0)
		c->nonblocking_polls++;
	else if (timeout < 0)
		c->blocking_polls++;
	else
		c->timed_polls++;
	if (ret == 0) {
		if (timeout == 0)
			c->empty_polls++;
		else if (timeout > 0)
			c->timeout_polls++;
		return;
	}
	if (ret < 0) {
		if (ret == -EINTR)
			c->interrupted_polls++;
		return;
	}
	d = drains.lookup(&zero);
	if (!d)
		return;
	d->now = bpf_ktime_get_ns();
	d->events = a->arg[1];
	d->owner = owner;
	d->next = 0;
	d->n = ret;
	d->found = 0;
	continuations.call(ctx, 0);
	c->lost_memory++;	/* reached only when the tail call was refused */
}

/* Does this registration decode to a pollDesc that holds its fd and on which nobody waits yet? An event
 * may have come already. */
static __always_inline int proves(u64 data, u64 fd, const struct layout *l)
{
	u64 pd[PD_WORDS];

	if (bpf_probe_read_user(pd, sizeof(pd), (void *)unpack(data, l)) || pd[PD_FD] != fd)
		return 0;
	if ((data ^ pd[PD_FDSEQ]) & ((1ULL << (l->tag_bits & 63)) - 1))
		return 0;
	return l->waiters == 3 ? (pd[3] | pd[4]) <= PD_READY : (pd[4] | pd[5]) <= PD_READY;
}

static __always_inline void note_candidate(struct poller *p, s32 epfd, u64 fd, u64 data)
{
	struct candidate *c = 0;
	int i;

#pragma clang loop unroll(full)
	for (i = 0; i < CANDIDATES; i++)
		if (p->candidates[i].epfd == epfd)
			c = &p->candidates[i];
	if (!c)
		c = &p->candidates[p->candidates_seen++ & (CANDIDATES - 1)];
	c->data = data;
	c->fd = fd;
	c->epfd = epfd;
	c->unproven = 0;
}

/* Does the candidate's data lead to its fd? */
static __always_inline int has_own_wakeup(const struct candidate *c)
{
	u64 fd = 0;

	return !c->data || (!bpf_probe_read_user(&fd, sizeof(fd), (void *)c->data) && fd == c->fd);
}

/* Proves the layout in the kernel, at the first registration: no event is missed, and a service
 * that opens its first socket late, or a child that has just been exec'ed, is calibrated too.
 * What it proves after that is another runtime in the same process, as of a second c-shared library. */
static __always_inline void calibrate(struct poller *p, s32 epfd, u64 fd, u32 events, u64 data)
{
	struct candidate *c = 0;
	int i;

	if (events == EPOLLIN) {
		note_candidate(p, epfd, fd, data);
		return;
	}
	if (events != GO_EVENTS)
		return;
#pragma clang loop unroll(full)
	for (i = 0; i < CANDIDATES; i++)
		if (p->candidates[i].epfd == epfd)
			c = &p->candidates[i];
	if (!c || !has_own_wakeup(c))
		return;
#pragma clang loop unroll(full)
	for (i = 0; i < LAYOUTS; i++) {
		int key = i;
		struct layout *l = layouts.lookup(&key);

		if (l && proves(data, fd, l)) {
			if (p->epfd != NO_EPFD) {
				p->more_pollers++;
				return;
			}
			p->layout = *l;
			p->break_data = c->data;
			p->unproven = c->unproven;
			p->proven++;
			p->epfd = epfd;
			return;
		}
	}
	c->unproven++;
}

static __always_inline void ctl_returned(u32 owner, struct poller *p, const struct args *a, long ret)
{
	u32 event[EVENT_WORDS];
	s32 epfd = a->arg[0];
	u32 op = a->arg[1];
	u64 fd = (u32)a->arg[2];
	int direction;
	u64 data;

	if (ret)
		return;
	if (epfd == p->epfd) {
		/* The runtime registers after open and removes before close, in the same thread, so this
		 * is where an fd's life begins and ends: close itself could race with the fd's reuse. */
#pragma clang loop unroll(full)
		for (direction = DIR_READ; direction <= DIR_WRITE; direction++)
			abandon(owner, fd, direction);
	}
	if (op != EPOLL_CTL_ADD)
		return;
	if (bpf_probe_read_user(event, sizeof(event), (void *)a->arg[3]))
		return;
	data = (u64)event[EVENT_DATA + 1] << 32 | event[EVENT_DATA];
	if (epfd != p->epfd) {
		calibrate(p, epfd, fd, event[0], data);
	} else if (proves(data, fd, &p->layout)) {
		p->proven++;
	} else {
		p->unproven++;
	}
}

/* In io_calls.c. */
static __always_inline void io_call(void *ctx, u32 owner, const struct args *a, u32 role, long ret);
static __always_inline void io_closed(u32 owner, u32 fd);

/* At sys_exit; loaded by the agent, with types where the kernel has them. */
int syscall_returned(struct bpf_raw_tracepoint_args *ctx)
{
	u32 owner = owner_of(bpf_get_current_pid_tgid() >> 32), *role;
	long ret = ctx->args[1];
	struct poller *p;
	struct args a;
	int nr, direction;

	if (!owner)
		return 0;
	if (read_args(ctx->args[0], &a))
		return 0;
	nr = a.nr;
	role = roles.lookup(&nr);
	if (!role || !*role)
		return 0;
	if (*role & (ROLE_POLL | ROLE_CTL)) {
		p = poller_of(owner);
		if (!p)
			return 0;
		if (*role & ROLE_CTL)
			ctl_returned(owner, p, &a, ret);
		else if ((s32)a.arg[0] == p->epfd)
			poll_returned(ctx, owner, &a, *role, ret);
		return 0;
	}
	if (*role & ROLE_CLOSE) {
		io_closed(owner, ROLE_READ_ARG(*role) == 1 ? a.arg[0] : a.arg[1]);
		return 0;
	}
	if (*role & ROLE_SOCKOPT && (a.arg[1] != SOL_SOCKET || a.arg[2] != SO_ERROR))
		return 0;
	/* The index of the fd argument is data; comparisons, because the verifier refuses a
	 * variable offset into the stack. */
#pragma clang loop unroll(full)
	for (direction = DIR_READ; direction <= DIR_WRITE; direction++) {
		u32 arg = *role >> (direction * 4) & 0xf;

		if (arg)
			io_returned(ctx, owner, nr, arg == 1 ? a.arg[0] : arg == 2 ? a.arg[1] : a.arg[2], direction, ret);
	}
	/* Last: the verifier would walk through all of the above from each place where it ends. */
	if (!(*role & ROLE_SOCKOPT))
		io_call(ctx, owner, &a, *role, ret);
	return 0;
}

#ifdef PID_NAMESPACE_INODE
/* The agent lives in a pid namespace where processes have other numbers than here. It asks for the one
 * that counts here by waiting for the process, which is in vain and goes unnoticed by it. */
BPF_ARRAY(asked, struct identity, 1);
BPF_ARRAY(agent_level, u32, 1);

#define UPID_SIZE 16

RAW_TRACEPOINT_PROBE(sched_process_wait)
{
	struct bpf_pidns_info waiting = {};
	struct identity *answer;
	int zero = 0;

	if (bpf_get_ns_current_pid_tgid(PID_NAMESPACE_DEVICE, PID_NAMESPACE_INODE, &waiting, sizeof(waiting)) ||
	    waiting.tgid != AGENT_PID)
		return 0;
	answer = asked.lookup(&zero);
	if (!answer)
		return 0;
	bpf_probe_read_kernel(&answer->tgid, sizeof(u32), (void *)(ctx->args[0] + PID_NUMBERS_OFFSET));
	bpf_probe_read_kernel(&answer->level, sizeof(u32), (void *)(ctx->args[0] + PID_LEVEL_OFFSET));
	return 0;
}

/* The number by which the agent knows a process. */
static __always_inline u32 local_number(u64 task)
{
	int zero = 0;
	u32 *level = agent_level.lookup(&zero);
	u32 number = 0, levels = 0;
	u64 pid = 0;

	if (!level)
		return 0;
	bpf_probe_read_kernel(&pid, sizeof(pid), (void *)(task + TASK_THREAD_PID_OFFSET));
	/* It has a number for each level down to its own. */
	if (bpf_probe_read_kernel(&levels, sizeof(levels), (void *)(pid + PID_LEVEL_OFFSET)) || levels < *level)
		return 0;
	bpf_probe_read_kernel(&number, sizeof(number), (void *)(pid + PID_NUMBERS_OFFSET + *level * UPID_SIZE));
	return number;
}
#else
#define local_number(task) 0
#endif

/* What the slot's waits and its poller still hold is the former owner's from here on. */
static __always_inline void settle(u64 *home, struct target *t, u32 slot)
{
	t->since = bpf_ktime_get_ns();
	t->owner = (u32)(t->since >> 10) << SLOT_BITS | (slot + 1);
	*home = (u64)t->tgid << 32 | t->owner;
}

#ifdef TASK_CRED_OFFSET
#define DUMPABLE 3	/* the bits of mm_struct.flags; 1: whoever its user is may look into it */

/* Whether the program that this process has just begun is the user's alone, as the kernel asks of a tracer:
 * no other ids, nothing gained by the program's file, nothing hidden from its user. */
static __always_inline int is_the_users(const struct target *t)
{
	u64 task = bpf_get_current_task();
	u64 cred = kernel_word(task + TASK_CRED_OFFSET);
	u64 mm = kernel_word(task + TASK_MM_OFFSET);
	u64 users = kernel_word(cred + CRED_USER_NS_OFFSET);
	u32 uid = 0, euid = 0, suid = 0, fsuid = 0, gid = 0, egid = 0, sgid = 0, fsgid = 0, level = 0;

	/* What cannot be read is not known to be the user's. */
	if (READ_MEMBER(uid, cred + CRED_UID_OFFSET) || READ_MEMBER(euid, cred + CRED_EUID_OFFSET) ||
	    READ_MEMBER(suid, cred + CRED_SUID_OFFSET) || READ_MEMBER(fsuid, cred + CRED_FSUID_OFFSET) ||
	    READ_MEMBER(gid, cred + CRED_GID_OFFSET) || READ_MEMBER(egid, cred + CRED_EGID_OFFSET) ||
	    READ_MEMBER(sgid, cred + CRED_SGID_OFFSET) || READ_MEMBER(fsgid, cred + CRED_FSGID_OFFSET) ||
	    READ_MEMBER(level, users + USER_NS_LEVEL_OFFSET))
		return 0;
	if (uid != SERVED_UID || euid != uid || suid != uid || fsuid != uid)
		return 0;
	if (egid != gid || sgid != gid || fsgid != gid)
		return 0;
	if ((kernel_word(mm + MM_FLAGS_OFFSET) & DUMPABLE) != 1)
		return 0;
	/* In a user namespace of its own it has them all; they count for nothing outside. */
	return level || !(kernel_word(cred + CRED_CAPABILITIES_OFFSET) & ~t->capabilities);
}
#else
#define is_the_users(t) 1	/* root is served, who may watch anybody */
#endif

/* A new program: nothing of the old one's calibration holds. One that is not for the user we serve to know
 * of is not watched from here on, before its first instruction. */
RAW_TRACEPOINT_PROBE(sched_process_exec)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	u32 owner = owner_of(tgid);
	u64 *home = home_of(tgid);
	struct target *t;

	if (!owner || !home)
		return 0;
	t = target_of(owner);
	if (!t)
		return 0;
	if (!is_the_users(t)) {
		*home = 0;
		t->kept = 1;	/* until the agent has heard of it */
		t->foreign = 1;
		return 0;
	}
	settle(home, t, SLOT(owner));
	return 0;
}

/* In whose banks a process's calls and children count. A server may run program after program that never polls,
 * each of which would keep its slot if it left numbers behind; so those are the server's. */
static __always_inline u32 accountable(u32 owner)
{
	struct target *t = target_of(owner), *heir;
	int slot;

	if (!t || t->kept)
		return owner;
	slot = t->heir;
	heir = targets.lookup(&slot);
	if (heir && heir->kept && heir->root == t->root)
		return slot + 1;
	t->kept = 1;	/* the heir is long gone */
	return owner;
}

#ifdef TASK_TGID_OFFSET
/* A watched process forks: its child is watched too. */
RAW_TRACEPOINT_PROBE(sched_process_fork)
{
	u32 parent = bpf_get_current_pid_tgid() >> 32;
	u32 owner = owner_of(parent);
	struct target *p, *t;
	struct counters *c;
	u32 child = 0, slot;
	u64 *home;
	int key;

	if (!owner)
		return 0;
	bpf_probe_read_kernel(&child, sizeof(child), (void *)(ctx->args[1] + TASK_TGID_OFFSET));
	if (child == parent)
		return 0;
	p = target_of(owner);
	home = home_of(child);
	if (!p || !home)
		return 0;
	if (*home || free_slots.pop(&slot)) {
		c = counters_of(owner, current_epoch());
		if (c)
			c->lost_processes++;
		__sync_fetch_and_add(&p->lost_children, 1);
		p->kept = 1;
		return 0;
	}
	key = slot;
	t = targets.lookup(&key);
	if (!t)
		return 0;
	/* Until it execs, the child shares the parent's memory but polls nothing itself. */
	__builtin_memset(t, 0, sizeof(*t));
	t->tgid = child;
	t->root = p->root;
	t->heir = p->kept ? SLOT(owner) : p->heir;
	t->capabilities = p->capabilities;
	t->local = local_number(ctx->args[1]);
	settle(home, t, slot);
	c = counters_of(accountable(owner), current_epoch());
	if (c)
		c->children++;
	return 0;
}

RAW_TRACEPOINT_PROBE(sched_process_exit)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	u32 owner = owner_of(tgid);
	u64 *home = home_of(tgid);
	u32 slot = SLOT(owner);
	u64 signal = 0;
	u32 live = 0;
	struct target *t;

	if (!owner || !home)
		return 0;
	/* The process ends with its last thread. The main one may go before, as it does when another
	 * thread execs. */
	if (bpf_probe_read_kernel(&signal, sizeof(signal), (void *)(ctx->args[0] + TASK_SIGNAL_OFFSET)) ||
	    bpf_probe_read_kernel(&live, sizeof(live), (void *)(signal + SIGNAL_LIVE_OFFSET)) || live)
		return 0;
	t = target_of(owner);
	if (!t)
		return 0;
	*home = 0;
	t->exited = 1;
	/* A child that never polled left no numbers behind: its ready calls went to its heir. A process that did
	 * keeps its slot until the agent has read them. */
	if (!t->kept) {
		t->tgid = 0;
		free_slots.push(&slot, 0);
	}
	return 0;
}
#endif
