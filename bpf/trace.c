/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Records single polls, events, I/O calls that follow a wakeup, and ready calls, for a trace. Only
 * a program loaded for a trace has this (TRACE); in others the macros are empty.
 */
#ifdef TRACE

/* What happened at one moment, for a trace. */
enum trace_kind { TRACE_POLL = 0, TRACE_EVENT = 1, TRACE_IO = 2, TRACE_READY = 3 };
enum poll_kind { POLL_BLOCKING = 0, POLL_TIMED = 1, POLL_NONBLOCKING = 2 };

struct trace_record {
	u64 at; /* ns; for an event, when its poll returned */
	u64 began; /* the call, of POLL and IO; 0 = not known */
	u64 g; /* the goroutine woken (of an event the reader), or making the I/O call */
	u64 other; /* EVENT: the writer woken; IO: when g was woken; READY: where g was parked */
	u32 owner;
	u32 epoch;
	u32 tid;
	u32 fd;
	s32 value; /* POLL, IO: what was returned; EVENT: its bits */
	s32 stack; /* of IO, and of the waker of READY */
	u16 syscall;
	u8 kind;
	u8 detail; /* POLL: enum poll_kind; IO: enum direction */
	u32 unused;
};

/* The first records are kept: a trace with a gap would show waits that never happened. The agent
 * makes the queue as large as requested. */
BPF_QUEUE(trace_records, struct trace_record, 1);
BPF_ARRAY(trace_dropped, u64, BANKS); /* by the epoch's bank: records that found no room */
BPF_TABLE("lru_hash", u32, u64, entered, 16384); /* thread -> when its last call began, ns */

/* Stored even if no window is open: a poll may have begun before it. */
RAW_TRACEPOINT_PROBE(sys_enter)
{
	u64 id = bpf_get_current_pid_tgid(), now;
	int nr = ctx->args[1];
	u32 tid = id, *role;

	if (!owner_of(id >> 32))
		return 0;
	role = roles.lookup(&nr);
	if (!role || !*role)
		return 0;
	now = bpf_ktime_get_ns();
	entered.update(&tid, &now);
	return 0;
}

static __always_inline void push_record(struct trace_record *r)
{
	int bank = r->epoch & (BANKS - 1);
	u64 *dropped;

	if (!trace_records.push(r, 0))
		return;
	dropped = trace_dropped.lookup(&bank);
	if (dropped)
		__sync_fetch_and_add(dropped, 1);
}

/* When the call that has returned in this thread began; 0 = before the probe was there. */
static __always_inline u64 entered_at(u32 tid)
{
	u64 *at = entered.lookup(&tid);

	return at ? *at : 0;
}

/* now: 0 for a poll without events. */
static __always_inline void trace_poll(u32 owner, u32 epoch, s64 timeout, long ret, u64 now)
{
	struct trace_record r = {
		.kind = TRACE_POLL,
		.owner = owner,
		.epoch = epoch,
		.tid = bpf_get_current_pid_tgid(),
		.value = ret,
		.detail = timeout == 0 ? POLL_NONBLOCKING :
			  timeout < 0  ? POLL_BLOCKING :
					 POLL_TIMED,
		.stack = NO_STACK,
	};

	if (!keeps(KEEP_TRACE))
		return;
	r.at = now ? now : bpf_ktime_get_ns();
	r.began = entered_at(r.tid);
	push_record(&r);
}

/* rg, wg: what the poll found in the pollDesc; 0 for a goroutine that it does not wake. */
static __always_inline void trace_event(u32 owner, u32 epoch, u32 fd, u32 events, u64 rg, u64 wg,
					u64 now)
{
	struct trace_record r = {
		.kind = TRACE_EVENT,
		.at = now,
		.owner = owner,
		.epoch = epoch,
		.tid = bpf_get_current_pid_tgid(),
		.fd = fd,
		.value = events,
		.stack = NO_STACK,
	};

	if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR) && rg > PD_WAIT)
		r.g = rg;
	if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR) && wg > PD_WAIT)
		r.other = wg;
	if (keeps(KEEP_TRACE))
		push_record(&r);
}

/* An I/O call has resolved the wakeup of the goroutine g. */
static __always_inline void trace_io(void *ctx, u32 owner, u32 epoch, u64 g, u64 woken_at, u64 now,
				     u32 nr, u32 fd, int direction, long ret)
{
	struct trace_record r = {
		.kind = TRACE_IO,
		.at = now,
		.g = g,
		.other = woken_at,
		.owner = owner,
		.epoch = epoch,
		.tid = bpf_get_current_pid_tgid(),
		.fd = fd,
		.value = ret,
		.syscall = nr,
		.detail = direction,
	};

	if (!keeps(KEEP_TRACE))
		return;
	r.began = entered_at(r.tid);
	r.stack = stack_of(ctx);
	push_record(&r);
}

/* woken: the id of the stack at which g had been parked; 0 = not known. */
static __always_inline void trace_ready(u32 owner, u32 epoch, u64 g, s32 stack, u64 woken)
{
	struct trace_record r = {
		.kind = TRACE_READY,
		.at = bpf_ktime_get_ns(),
		.g = g,
		.other = woken,
		.owner = owner,
		.epoch = epoch,
		.tid = bpf_get_current_pid_tgid(),
		.stack = stack,
	};

	if (keeps(KEEP_TRACE))
		push_record(&r);
}

#else
#define trace_poll(owner, epoch, timeout, ret, now) \
	do {                                        \
	} while (0)
#define trace_event(owner, epoch, fd, events, rg, wg, now) \
	do {                                               \
	} while (0)
#define trace_io(ctx, owner, epoch, g, woken_at, now, nr, fd, direction, ret) \
	do {                                                                  \
	} while (0)
#define trace_ready(owner, epoch, g, stack, woken) \
	do {                                       \
	} while (0)
#endif
