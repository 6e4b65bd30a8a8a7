/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * How long a service kept its peers waiting: a read that takes data ends its queue delay, and the
 * next write of the same goroutine on the same connection ends the response, if the goroutine has
 * not parked there for reading again.
 */

#ifdef ARRIVAL_TIMES
/* The goroutine that made the syscall: Go keeps its address in a register, also during a syscall.
 * 0 if it cannot be read. */
static __always_inline u64 goroutine(u64 regs)
{
	u64 g = 0;

#ifdef NETPOLL_AARCH64
#define G_REGISTER regs[28]
#else
#define G_REGISTER r14
#endif
#ifdef TYPED_ARGS
	LOAD(g, u64, regs, G_REGISTER);
#else
	READ_MEMBER(g, regs + offsetof(struct pt_regs, G_REGISTER));
#endif
	return g;
}

/* A read of an accepted connection took data. */
static __always_inline void expect_answer(struct counters *c, struct wait *w, struct question *q,
					  u64 g, u32 epoch, u64 woken_at, u64 now,
					  const struct parts *delay)
{
	c->requests++;
	if (woken_at && w->g != g) {
		c->strangers++;
		c->unanswered++;
		return;
	}
	/* Several reads without a write are one request, which began with the first. But a
	 * goroutine that was woken had parked in between. */
	if (w->socket & SOCKET_ASKED && q->reader == g && !woken_at) {
		q->joined++;
		return;
	}
	stop_waiting(w, w->owner, q);
	q->reader = g;
	q->delay = *delay;
	q->epoch = epoch;
	q->joined = 0;
	q->read_at = now;
	w->socket |= SOCKET_ASKED;
}

/* This wakeup was resolved by a look at the data (MSG_PEEK), which takes nothing. */
static __always_inline void data_seen(struct wait *w, u32 fd, u64 woken_at)
{
	struct question *q = woken_at ? question_of(w->owner, fd) : 0;

	if (!q)
		return;
	q->woken_at = woken_at;
	w->socket |= SOCKET_LOOKED;
}

/* A read or an accept has returned something. woken_at, epoch, c: of the wakeup that it resolved, 0
 * if there was none. now: when it returned, or 0. messages: how many it took, if the socket has
 * messages. */
static __always_inline void data_taken(void *ctx, struct counters *c, struct wait *w, u32 nr,
				       u32 fd, long ret, u32 messages, u64 g, u64 woken_at,
				       u32 epoch, u64 now)
{
	u64 sk = w->sk, at, bucket, delay;
	struct parts parts = {};
	u32 owner = w->owner;
	struct question *q;
	struct delays *d;
	struct inbox *b;
	u32 head;
	int bank;

	b = sk ? inboxes.lookup(&sk) : 0;
	if (!b) {
		struct target *t = target_of(owner);

		/* Arrivals are recorded from now on, unless it isn't a socket or the process does not poll. */
		if (!(w->socket & SOCKET_NONE) && t && t->kept)
			note_socket(w, owner, fd, w->socket & SOCKET_ACCEPTED);
		return;
	}
	head = b->head;
	if (head == *(volatile u32 *)&b->tail)
		return;
	at = b->arrivals[head & (ARRIVALS - 1)].at;
	take_arrivals(sk, b, messages);
	if (ret <= 0 && b->kind < DATAGRAMS)
		return; /* the end of the stream */
	q = question_of(owner, fd);
	if (!q)
		return;
	if (!woken_at) {
		epoch = kept_epoch(current_epoch());
		c = epoch ? counters_of(owner, epoch) : 0;
		if (w->socket & SOCKET_LOOKED)
			woken_at = q->woken_at;
	}
	w->socket &= ~SOCKET_LOOKED;
	bank = BANK(owner, epoch);
	d = delays.lookup(&bank);
	if (!c || !d)
		return;
	if (!now)
		now = bpf_ktime_get_ns();
	delay = now > at ? now - at : 0;
	if (!woken_at) {
		parts.unparked = delay;
	} else if (woken_at < at) {
		parts.run = delay; /* it was on its way already */
	} else {
		parts.poll = woken_at - at;
		parts.run = now - woken_at;
		count_delay(d, POLL_DELAY, parts.poll, &c->poll_delay_max);
	}
	c->reads++;
	c->queue_delay_ns += delay;
	c->poll_delay_ns += parts.poll;
	c->wake_to_run_ns += parts.run;
	bucket = count_delay(d, QUEUE_DELAY, delay, &c->queue_delay_max);
	add_parts(d, 0, bucket, &parts);
	record_if_slow_answer(ctx, &c->slow_read_floor, bank, 0, delay, now, nr, fd, g, &parts);
	if (b->accepted && b->kind < DATAGRAMS)
		expect_answer(c, w, q, g, epoch, woken_at, now, &parts);
}

/* A read found nothing, and its goroutine will park. */
static __always_inline void nothing_taken(struct wait *w, u32 fd, u64 g)
{
	struct question *q;

	if (w->socket & SOCKET_MESSAGES)
		expire_arrivals(w);
	if (!(w->socket & (SOCKET_ASKED | SOCKET_LOOKED)))
		return;
	w->socket &= ~SOCKET_LOOKED;
	q = question_of(w->owner, fd);
	if (q && q->reader == g)
		stop_waiting(w, w->owner, q);
}

/* A write has returned. */
static __always_inline void data_written(void *ctx, u32 owner, u32 nr, u32 fd, long ret, u64 g)
{
	struct wait *r = wait_of(owner, fd, DIR_READ);
	u64 read_at, now, bucket, response;
	struct counters *c;
	struct question *q;
	struct delays *d;
	u32 epoch;
	int bank;

	if (!r || !(r->socket & SOCKET_ASKED) || ret <= 0)
		return;
	q = question_of(owner, fd);
	if (!q || q->reader != g)
		return;
	read_at = q->read_at;
	r->socket &= ~SOCKET_ASKED;
	epoch = kept_epoch(q->epoch);
	if (!epoch)
		return;
	bank = BANK(owner, epoch);
	c = counts.lookup(&bank);
	d = delays.lookup(&bank);
	if (!c || !d)
		return;
	now = bpf_ktime_get_ns();
	q->delay.handling = now - read_at;
	response = q->delay.poll + q->delay.run + q->delay.unparked + q->delay.handling;
	c->answers++;
	c->answered += 1 + q->joined;
	c->handling_ns += now - read_at;
	count_delay(d, HANDLING, now - read_at, &c->handling_max);
	bucket = count_delay(d, RESPONSE, response, &c->response_max);
	add_parts(d, 1, bucket, &q->delay);
	record_if_slow_answer(ctx, &c->slow_answer_floor, bank, 1, response, now, nr, fd, g,
			      &q->delay);
}

/* A connection was accepted, and will be registered. */
static __always_inline void note_accepted(u32 owner, long fd)
{
	struct wait *w = fd >= 0 ? wait_of(owner, fd, DIR_READ) : 0;

	if (w)
		w->socket = SOCKET_ACCEPTED;
}
#else
#define goroutine(regs) 0
#define data_seen(w, fd, woken_at)
#define data_taken(ctx, c, w, nr, fd, ret, messages, g, woken_at, epoch, now)
#define nothing_taken(w, fd, g)
#define data_written(ctx, owner, nr, fd, ret, g)
#define note_accepted(owner, fd)
#endif
