/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Each direction of each descriptor has a wait. A poll makes a wakeup pending there (polls.c),
 * and the next I/O syscall resolves it: EAGAIN makes it spurious, anything else productive.
 */

#ifdef ATOMIC_EXCHANGE
/* BPF's xchg, on x86-64. Old compilers do not know its name, so it is written as a number. The
 * registers have the host's names, which BCC's first pass knows. */
static __always_inline u64 exchange(u64 *word, u64 value)
{
	register u64 *at asm("r8") = word;
	register u64 was asm("r9") = value;

	asm volatile(".quad 0x000000e1000098db" : "+r"(was) : "r"(at) : "memory");
	return was;
}
#else
/* Kernels before 5.12 have no xchg, and on arm64 BCC can't compile it. Inserting into a map is
 * atomic, too: the first thread to insert the wakeup takes it. The entry stays long enough for the
 * others to find it. */
struct claim {
	u64 woken_at;
	u64 g;
	u64 owner;
};
BPF_TABLE("lru_hash", struct claim, u8, claims, 4096);
#endif

/* Takes the pending wakeup. If several threads try at once, one gets the time of the wakeup and
 * the others get 0. *epoch is set to the wakeup's. */
static __always_inline u64 take_wakeup(struct wait *w, u32 *epoch)
{
	u64 seen = *(volatile u64 *)&w->woken_at, taken;

	if (!seen)
		return 0;
	*epoch = *(volatile u32 *)&w->epoch;
#ifdef ATOMIC_EXCHANGE
	taken = exchange(&w->woken_at, 0);
	if (taken != seen) /* a newer one has come meanwhile */
		*epoch = w->epoch;
	return taken;
#else
	struct claim claim = {.woken_at = seen, .g = w->g, .owner = w->owner};
	u8 value = 0;

	if (claims.insert(&claim, &value))
		return 0;
	w->woken_at = 0;
	return seen;
#endif
}

/* No I/O syscall followed the pending wakeup. */
static __always_inline void abandon_wakeup(struct wait *w)
{
	struct counters *c;
	u32 epoch;

	if (!take_wakeup(w, &epoch))
		return;
	epoch = kept_epoch(epoch);
	c = epoch ? counters_of(w->owner, epoch) : 0;
	if (c)
		c->abandoned_wakeups++;
}

/* The first syscall after the wakeup has returned. Returns the counters in which the wakeup
 * counts. */
static __always_inline struct counters *resolve_wakeup(void *ctx, struct wait *w, u64 woken_at,
						       u64 now, u32 epoch, u32 nr, u32 fd,
						       int direction, long ret)
{
	u64 latency = now - woken_at;
	int key = BANK(w->owner, epoch);
	struct counters *c = epoch ? counts.lookup(&key) : 0;
	u64 bucket = bucket_of(latency);
	struct histogram *h;

	if (!c)
		return 0;
	record_if_slow(ctx, c, key, w, woken_at, latency, nr, fd, direction);
	if (latency > c->latency_max)
		c->latency_max = latency;
	h = latencies.lookup(&key);
	/* BCC 0.18's compiler compares one copy and indexes with another; 5.10 then sees no
	 * bound. */
	asm volatile("" : "+r"(bucket));
	if (h && bucket < LATENCY_BUCKETS)
		__sync_fetch_and_add(&h->buckets[bucket], 1);
	if (ret == -EAGAIN)
		c->spurious_wakeups++;
	else
		c->productive_wakeups++;
	trace_io(ctx, w->owner, epoch, w->g, woken_at, now, nr, fd, direction, ret);
	return c;
}

/* Whether the wait that follows this EAGAIN will return at once. That isn't certain earlier: a
 * Read or Write begins by dropping a readiness that was stored before. */
static __always_inline int readiness_is_stored(struct wait *w, int direction)
{
	struct poller *p = poller_of(w->owner);
	u64 waiter = 0;

	if (!(w->flags & WAIT_STORED) || !p)
		return 0;
	bpf_probe_read_user(&waiter, sizeof(waiter),
			    (void *)(w->pd + (p->layout.waiters + direction) * 8));
	return waiter == PD_READY;
}

/* A goroutine was woken for nothing: records where it was. */
static __always_inline void record_culprit(void *ctx, struct counters *c, struct wait *w, u32 epoch,
					   u32 nr, u32 fd, int direction, int offence)
{
	struct offender o = {
		.owner = w->owner,
		.epoch = epoch,
		.fd = fd,
		.syscall = nr,
		.direction = direction,
		.offence = offence,
		.events = w->events,
		.seen = look_at_socket(fd),
	};

	o.stack = stack_of(ctx);
	record_offender(c, &o, 1, 0);
}

/* An I/O syscall on fd has returned: resolves the pending wakeup, if any. g: the goroutine that
 * made it. messages: see data_taken. look: it took nothing (MSG_PEEK). */
static __always_inline void resolve_wait(void *ctx, struct wait *w, u32 nr, u32 fd, int direction,
					 long ret, u32 messages, u64 look, u64 g)
{
	struct counters *c = 0;
	u64 woken_at, now = 0;
	int offence = SPURIOUS;
	u32 epoch = 0;

	woken_at = take_wakeup(w, &epoch);
	if (woken_at) {
		epoch = kept_epoch(epoch);
		now = bpf_ktime_get_ns();
		c = resolve_wakeup(ctx, w, woken_at, now, epoch, nr, fd, direction, ret);
		w->flags = ret == -EAGAIN ? WAIT_TRIED : 0;
	} else if (ret != -EAGAIN) {
		if (w->flags & (WAIT_TRIED | WAIT_ARMED))
			w->flags &= WAIT_STORED;
	} else {
		if (w->flags & WAIT_ARMED) {
			epoch = current_epoch();
			offence = STALE;
			c = counters_of(w->owner, epoch);
			if (c)
				c->stale_retries++;
		}
		w->flags = WAIT_TRIED | (readiness_is_stored(w, direction) ? WAIT_ARMED : 0);
	}
	if (ret != -EAGAIN) {
		if (direction == DIR_READ && ret >= 0) {
			if (look)
				data_seen(w, fd, woken_at);
			else
				data_taken(ctx, c, w, nr, fd, ret, messages, g, woken_at, epoch,
					   now);
		}
		if (direction == DIR_WRITE)
			data_written(ctx, w->owner, nr, fd, ret, g);
		return;
	}
	if (direction == DIR_READ && !look)
		nothing_taken(w, fd, g);
	if (c && keeps(KEEP_CULPRITS))
		record_culprit(ctx, c, w, epoch, nr, fd, direction, offence);
}

/* From here on the descriptor is another file, or none. */
static __always_inline void reset_wait(u32 owner, u64 fd, int direction)
{
	struct wait *w = wait_of(owner, fd, direction);

	if (!w)
		return;
	abandon_wakeup(w);
	w->flags = 0;
	w->streak = 0;
	if (direction == DIR_READ)
		drop_socket(w, owner, fd);
}
