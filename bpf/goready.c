/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Counts the goroutine wakeups that do not come from the network poller: uprobes on runtime.ready and
 * runtime.netpollgoready. The agent appends this file to netpoll.c, whose maps and helpers it uses.
 *
 * Attached to the program's file, so that forked and exec'ed children are counted from their first
 * instruction; whose process it is that came by is decided here.
 */

BPF_ARRAY(ready_sampling, u32, 1);	/* keep the stack of one ready call in so many; 0 = of none */
#define READY_EXACT 256	/* and of as many from the first on */

/* Whose stack it is that makes the call. Taking it costs twice what the probe itself does, so after the
 * first calls (of a CPU, in an epoch) only some are looked at, and each stands for those that were not. */
static __always_inline void keep_waker(void *ctx, u32 owner, u32 epoch, u64 calls)
{
	int zero = 0;
	u32 *every = ready_sampling.lookup(&zero);
	struct offender o = {};
	struct blame first = {}, *b;
	u64 weight = 1;

	if (!every || !*every)
		return;
	if (calls > READY_EXACT) {
		/* At random: a count would beat in time with a service that wakes in a pattern. */
		if (bpf_get_prandom_u32() % *every)
			return;
		weight = *every;
	}
	o.owner = owner;
	o.epoch = epoch;
	o.offence = READY;
	o.stack = stack_of(ctx);	/* where there is none, counted all the same: the shares stay true */
	b = offenders.lookup_or_try_init(&o, &first);
	if (b)
		__sync_fetch_and_add(&b->count, weight);
}

/* At runtime.ready. A uprobe's program may be preempted by another on its CPU, hence the atomic adds. */
int ready_called(struct pt_regs *ctx)
{
	u32 owner = owner_of(bpf_get_current_pid_tgid() >> 32), epoch;
	struct counters *c;

	if (!owner)
		return 0;
	epoch = current_epoch();
	c = counters_of(accountable(owner), epoch);
	if (!c)
		return 0;
	__sync_fetch_and_add(&c->ready_calls, 1);
	keep_waker(ctx, owner, epoch, c->ready_calls);
	return 0;
}

/* At runtime.netpollgoready, which goes on to runtime.ready. */
int deadline_woke(struct pt_regs *ctx)
{
	u32 owner = owner_of(bpf_get_current_pid_tgid() >> 32);
	struct counters *c = owner ? counters_of(accountable(owner), current_epoch()) : 0;

	if (c)
		__sync_fetch_and_add(&c->deadline_wakeups, 1);
	return 0;
}
