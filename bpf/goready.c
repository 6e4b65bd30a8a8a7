/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Counts the goroutine wakeups that do not come from the network poller: uprobes on runtime.ready
 * and runtime.netpollgoready.
 *
 * They are attached to the program's file, so that forked and exec'ed children are counted from
 * their first instruction. Processes that are not watched reach them, too, and are dropped here.
 */

/* The first argument of a Go function, in its internal ABI. */
#ifdef NETPOLL_AARCH64
#define FIRST_ARGUMENT(ctx) ((ctx)->regs[0])
#else
#define FIRST_ARGUMENT(ctx) ((ctx)->ax)
#endif

/* The initial value of an entry; it is never written. It isn't on the stack, which newer compilers
 * would exceed. */
BPF_ARRAY(no_offences, struct offender_stats, 1);

/* Records the waker's stack, and where the woken goroutine had been parked. That costs twice as
 * much as the probe itself, so after the first calls only some are recorded. */
static __always_inline void record_waker(struct pt_regs *ctx, u32 owner, u32 charged, u32 epoch,
					 u64 calls)
{
	u32 weight = sampled(SAMPLE_READY_CALLS, calls);
	struct offender_stats *first, *stats;
	struct offender o = {};
	int zero = 0;

	first = no_offences.lookup(&zero);
	if (!weight || !first)
		return;
	o.owner = owner;
	o.epoch = epoch;
	o.offence = READY;
	/* Counted even without a stack, so that shares stay correct. */
	o.stack = stack_of(ctx);
	o.woken = parked_at(FIRST_ARGUMENT(ctx));
	o.seen = o.woken ? locked(FIRST_ARGUMENT(ctx)) : 0;
	trace_ready(charged, epoch, FIRST_ARGUMENT(ctx), o.stack, o.woken);
	stats = offenders.lookup_or_try_init(&o, first);
	if (stats)
		__sync_fetch_and_add(&stats->count, weight);
}

/* At runtime.ready. Atomic adds, because another uprobe on this CPU may preempt the program. */
int ready_called(struct pt_regs *ctx)
{
	u32 owner = owner_of(bpf_get_current_pid_tgid() >> 32), charged, epoch;
	struct counters *c;

	if (!owner)
		return 0;
	epoch = current_epoch();
	charged = charged_owner(owner);
	c = counters_of(charged, epoch);
	if (!c)
		return 0;
	__sync_fetch_and_add(&c->ready_calls, 1);
	record_waker(ctx, owner, charged, epoch, c->ready_calls);
	return 0;
}

/* At runtime.netpollgoready, which then calls runtime.ready. */
int deadline_woke(struct pt_regs *ctx)
{
	u32 owner = owner_of(bpf_get_current_pid_tgid() >> 32);
	struct counters *c = owner ? counters_of(charged_owner(owner), current_epoch()) : 0;

	if (c)
		__sync_fetch_and_add(&c->deadline_wakeups, 1);
	return 0;
}
