/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Counts polls and the events that they return. A poll's events are drained in batches, by tail
 * calls: each event's pollDesc shows what netpollready will find there.
 */

/* Events a program drains: a loop over all 128 is too complex for the verifier. */
#define BATCH 8

/* The poll that is being drained on this CPU. */
struct drain {
	u64 now;
	u64 events;
	u32 owner;
	u32 next;
	u32 n;
	u32 found;
	u32 recorded; /* by woken.c, */
	u32 weight; /* and for how many polls each event; 0 = none is to be recorded */
};
BPF_PERCPU_ARRAY(drains, struct drain, 1);
BPF_PROG_ARRAY(continuations, 3);
#define DRAIN_EVENTS 0
#define RECORD_WOKEN 1
#define LOOK_AT_WRITE 2
BPF_PERCPU_ARRAY(polls_by_events, struct polls_by_events, ALL_BANKS);

static __always_inline void count_events(u32 owner, u32 epoch, u32 events)
{
	int key = BANK(owner, epoch);
	struct polls_by_events *by = polls_by_events.lookup(&key);
	u32 index = events - 1;

	if (index >= MOST_EVENTS)
		index = MOST_EVENTS - 1;
	/* The indexed variable must be the compared one, so hide it from the optimizer. */
	asm volatile("" : "+r"(index));
	if (by && index < MOST_EVENTS)
		by->polls[index]++;
}

/* An event that found nobody. */
static __always_inline void count_unclaimed(struct counters *c, u32 owner, u32 epoch, u64 fd,
					    int direction)
{
	c->unclaimed_events++;
	/* A pollDesc holds the number of a descriptor; anything else isn't a pollDesc, and has no
	 * offender. */
	if (fd >> 31 == 0 && keeps(KEEP_UNCLAIMED)) {
		struct offender o = {
			.owner = owner,
			.epoch = epoch,
			.stack = NO_STACK,
			.fd = fd,
			.direction = direction,
			.offence = UNCLAIMED,
		};

		record_offender(c, &o, 1, 0);
	}
}

/* One direction of one event. waiter: what netpollready will find in the pollDesc. */
static __always_inline void event_in_direction(struct counters *c, u32 owner, u32 epoch, u64 fd,
					       int direction, u64 pd, u64 waiter, u32 events,
					       u64 now)
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
		w->events = events;
		/* Last: from here on it may be taken. */
#ifdef ATOMIC_EXCHANGE
		if (exchange(&w->woken_at, now))
			c->abandoned_wakeups++; /* of a poll at the same time, so of this epoch */
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
		count_unclaimed(c, owner, epoch, fd, direction);
	if (w && !(w->flags & WAIT_STORED)) {
		w->pd = pd;
		w->events = events;
		w->flags |= WAIT_STORED | (w->flags & WAIT_TRIED ? WAIT_ARMED : 0);
	}
}

/* Returns 1 if the event is a pollDesc's, 0 if it is the runtime's own wake-up. */
static __always_inline int drain_event(struct counters *c, struct poller *p, u32 owner, u32 epoch,
				       u32 events, u64 data, u64 now)
{
	u64 pd[PD_WORDS];
	u64 address, rg, wg;

	if (data == p->break_data)
		return 0;
	c->events++;
	address = unpack(data, &p->layout);
	if (bpf_probe_read_user(pd, sizeof(pd), (void *)address)) {
		c->lost_memory++;
		trace_event(owner, epoch, NO_FD, events, 0, 0, now);
		return 1;
	}
	rg = p->layout.waiters == 3 ? pd[3] : pd[4];
	wg = p->layout.waiters == 3 ? pd[4] : pd[5];
	/* The fd was closed since, and its pollDesc reused: the runtime drops the event. */
	if ((data ^ pd[PD_FDSEQ]) & ((1ULL << (p->layout.tag_bits & 63)) - 1)) {
		c->unclaimed_events++;
		trace_event(owner, epoch, NO_FD, events, 0, 0, now);
		return 1;
	}
	trace_event(owner, epoch, pd[PD_FD], events, rg, wg, now);
	if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		event_in_direction(c, owner, epoch, pd[PD_FD], DIR_READ, address, rg,
				   EVENT_BITS(events & ~EPOLLOUT), now);
	if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
		event_in_direction(c, owner, epoch, pd[PD_FD], DIR_WRITE, address, wg,
				   EVENT_BITS(events & ~(EPOLLIN | EPOLLRDHUP)), now);
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
	if (bpf_probe_read_user(batch, sizeof(batch),
				(void *)(d->events + d->next * EVENT_WORDS * 4))) {
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
		continuations.call(ctx, DRAIN_EVENTS);
		c->lost_memory++; /* reached only when the tail call was refused */
		return;
	}
	if (d->found == 0)
		c->break_polls++;
	else
		count_events(owner, epoch, d->found);
	if (d->found && d->weight)
		continuations.call(ctx, RECORD_WOKEN);
}

int drain_events(struct bpf_raw_tracepoint_args *ctx)
{
	int zero = 0;
	struct drain *d = drains.lookup(&zero);

	if (d)
		drain_batch(ctx, d);
	return 0;
}

/* 0: the poll does not block; less: it blocks until there are events. */
static __always_inline s64 timeout_of(const struct args *a, u32 role)
{
	s64 ts[2];

	if (!(role & ROLE_POLL_TIMESPEC))
		return (s32)a->arg[3];
	if (!a->arg[3] || bpf_probe_read_user(ts, sizeof(ts), (void *)a->arg[3]))
		return -1;
	return ts[0] | ts[1];
}

/* epoll_pwait, or a similar call, has returned. */
static __always_inline void poll_returned(void *ctx, u32 owner, const struct args *a, u32 role,
					  long ret)
{
	u32 epoch = current_epoch();
	struct counters *c = counters_of(owner, epoch);
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
	if (ret <= 0)
		trace_poll(owner, epoch, timeout, ret, 0);
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
	d->recorded = 0;
	trace_poll(owner, epoch, timeout, ret, d->now);
	d->weight = sampled(SAMPLE_WOKEN, c->wakeups);
	continuations.call(ctx, DRAIN_EVENTS);
	c->lost_memory++; /* reached only when the tail call was refused */
}
