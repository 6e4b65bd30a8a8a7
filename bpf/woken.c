/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Records where goroutines that a poll wakes were parked, and on what. goready.c does this for
 * runtime.ready.
 *
 * A parked goroutine's registers are in its g, and frame pointers lead from there to its
 * outermost function. So this needs no symbols.
 */

/* Stacks are found by the hash of their addresses: the kernel's own maps of stacks take only
 * those of the current thread. */
BPF_HASH(parked_stacks, u64, struct parked_stack, PARKED_STACKS);

/* The initial value of a stack; it is never written. */
BPF_ARRAY(no_stack, struct parked_stack, 1);

/* The hash of the stack at which the goroutine is parked; 0 if g isn't a parked goroutine. s:
 * where to store the stack, unless 0. */
static __always_inline u64 walk_parked(u64 g, struct parked_stack *s)
{
	u64 gobuf[GOBUF_WORDS], frame[2], bp, id = 0xcbf29ce484222325ULL;
	int i;

	if (bpf_probe_read_user(gobuf, sizeof(gobuf), (void *)(g + GOBUF_OFFSET)) ||
	    gobuf[GOBUF_G] != g)
		return 0;
	bp = gobuf[GOBUF_BP] ? gobuf[GOBUF_BP] : gobuf[GOBUF_BP + 1];
	frame[1] = gobuf[GOBUF_PC];
#pragma clang loop unroll(full)
	for (i = 0; i < PARKED_FRAMES; i++) {
		id = (id ^ frame[1]) * 0x100000001b3ULL;
		if (s)
			s->pc[i] = frame[1];
		/* The outermost frame leads to 0, where nothing is. */
		if (bpf_probe_read_user(frame, sizeof(frame), (void *)bp))
			break;
		/* Frames lie above those that they call. */
		bp = frame[0] > bp ? frame[0] : 0;
	}
	return id | 1;
}

/* The id of the stack at which the goroutine is parked; 0 if g isn't a parked goroutine, or there
 * was no room. A new stack is walked twice: the BPF stack has no room to keep it meanwhile, and a
 * program that preempts this one could overwrite a per-CPU buffer. */
static __always_inline u64 parked_at(u64 g)
{
	u64 id = walk_parked(g, 0);
	struct parked_stack *s;
	int zero = 0;

	if (!id || parked_stacks.lookup(&id))
		return id;
	s = no_stack.lookup(&zero);
	if (!s || parked_stacks.update(&id, s))
		return 0;
	s = parked_stacks.lookup(&id);
	if (s)
		walk_parked(g, s);
	return id;
}

/* SEEN_LOCKED if the parked goroutine is locked to a thread: the thread that makes it run hands
 * its P over to that thread. */
static __always_inline u32 locked(u64 g)
{
	u64 words[LOCKEDM_WORDS], g0, m;
	int i;

	if (bpf_probe_read_user(words, sizeof(words), (void *)(g + LOCKEDM_OFFSET)))
		return 0;
#pragma clang loop unroll(full)
	for (i = 0; i < LOCKEDM_WORDS; i++) {
		if (words[i] && !bpf_probe_read_user(&g0, sizeof(g0), (void *)words[i]) &&
		    !bpf_probe_read_user(&m, sizeof(m), (void *)(g0 + G_M_OFFSET)) && m == words[i])
			return SEEN_LOCKED;
	}
	return 0;
}

/* The next event of the poll: if it wakes a goroutine, records where that is parked. */
static __always_inline void record_event(struct drain *d, struct counters *c, struct poller *p,
					 u32 epoch)
{
	u32 event[EVENT_WORDS], at = d->recorded, weight = d->weight;
	u64 pd[PD_WORDS], data, rg, wg;
	struct offender o = {};

	/* If there are many events, some of them are chosen at random and stand for all, since one
	 * descriptor's may be at the same place in each poll. */
	if (d->n > MOST_RECORDED) {
		at = bpf_get_prandom_u32() % d->n;
		weight *= d->n / MOST_RECORDED + (d->recorded < d->n % MOST_RECORDED);
	}
	if (bpf_probe_read_user(event, sizeof(event), (void *)(d->events + at * EVENT_WORDS * 4)))
		return;
	data = (u64)event[EVENT_DATA + 1] << 32 | event[EVENT_DATA];
	if (data == p->break_data ||
	    bpf_probe_read_user(pd, sizeof(pd), (void *)unpack(data, &p->layout)) ||
	    (data ^ pd[PD_FDSEQ]) & ((1ULL << (p->layout.tag_bits & 63)) - 1))
		return;
	rg = p->layout.waiters == 3 ? pd[3] : pd[4];
	wg = p->layout.waiters == 3 ? pd[4] : pd[5];
	if (!(event[0] & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)))
		rg = 0;
	if (!(event[0] & (EPOLLOUT | EPOLLHUP | EPOLLERR)))
		wg = 0;
	/* If two goroutines are woken, the reader's place: usually it is the end of a connection. */
	if (rg <= PD_WAIT) {
		rg = wg;
		o.direction = DIR_WRITE;
	}
	if (rg <= PD_WAIT)
		return;
	o.owner = d->owner;
	o.epoch = epoch;
	o.offence = WOKEN;
	o.stack = NO_STACK;
	o.fd = pd[PD_FD];
	o.woken = parked_at(rg);
	o.seen = o.woken ? locked(rg) : 0;
	record_offender(c, &o, weight, 0);
}

/* Continues a poll whose events are all counted, before the runtime sees them. */
int record_woken(struct bpf_raw_tracepoint_args *ctx)
{
	u32 epoch = current_epoch();
	struct counters *c;
	struct poller *p;
	struct drain *d;
	int zero = 0;

	d = drains.lookup(&zero);
	if (!d)
		return 0;
	c = counters_of(d->owner, epoch);
	p = poller_of(d->owner);
	if (!c || !p)
		return 0;
	record_event(d, c, p, epoch);
	if (++d->recorded < d->n && d->recorded < MOST_RECORDED)
		continuations.call(ctx, RECORD_WOKEN);
	return 0;
}
