/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Records when the data in a socket's queue arrived: the tracepoint sk_data_ready (since Linux 6.3)
 * fires for each packet, message and connection that is queued. It runs in interrupts, too, so it
 * only stores times; the read that takes the data does the counting.
 *
 * A socket gets its inbox when the runtime registers it. A connection of TCP or of a unix socket
 * gets it when it is queued at its listener, so that data that comes before accept is not missed.
 * A socket registered before the probe gets one when the agent has the kernel walk over the
 * process's descriptors. Where that fails it gets one with its first read, and the agent reports no
 * times.
 *
 * The times are exact for the oldest seven unread arrivals. Later ones are merged, with the time
 * of the latest: they have waited at least that long.
 */

#ifdef ARRIVAL_TIMES
BPF_F_TABLE("hash", u64, struct inbox, inboxes, INBOXES, BPF_F_NO_PREALLOC);
BPF_PERCPU_ARRAY(new_inbox, struct inbox, 1); /* while it is filled in at a syscall's return */
BPF_ARRAY(questions, struct question, ALL_FDS);
/* 1 for each local port that a socket with an inbox has or had; [0] is for sockets without a port
 * yet. The tracepoint fires for every socket of the machine. Most of the others end at this check,
 * which is cheap: the JIT inlines the lookup, and neighbours share a cache line. A port is never
 * forgotten: others that use it later cost a lookup among the inboxes, which decides. */
BPF_ARRAY(known_ports, u8, 1 << 16);

static __always_inline int shut_down(u64 sk)
{
	u8 shutdown = 0;

	READ_MEMBER(shutdown, sk + SOCK_SHUTDOWN_OFFSET);
	return shutdown & RCV_SHUTDOWN;
}

static __always_inline int is_listening(u64 sk)
{
	u8 state = 0;

	READ_MEMBER(state, sk + SOCK_STATE_OFFSET);
	return state == TCP_LISTEN;
}

static __always_inline int is_known_port(u16 port)
{
	int key = port;
	u8 *known = known_ports.lookup(&key);

	return known && *known;
}

static __always_inline int add_inbox(u64 sk, struct inbox *b)
{
	u16 port = 0;
	u8 *known;
	int key;

	READ_MEMBER(port, sk + SOCK_PORT_OFFSET);
	key = port;
	known = known_ports.lookup(&key);
	if (known && !*known)
		*known = 1;
	return inboxes.update(&sk, b);
}

/* Whether it may have an inbox. */
static __always_inline int may_be_watched(u64 sk)
{
	u16 family = 0, port = 0;

#ifdef TYPED_ARGS
	LOAD_AT(family, u16, sk, SOCK_FAMILY_OFFSET);
	LOAD_AT(port, u16, sk, SOCK_PORT_OFFSET);
#else
	READ_MEMBER(family, sk + SOCK_FAMILY_OFFSET);
	READ_MEMBER(port, sk + SOCK_PORT_OFFSET);
#endif
	if (family != AF_INET && family != AF_INET6)
		return 1;
	return is_known_port(port) || is_known_port(0);
}

/* Something was queued. */
static __always_inline void note_arrival(struct inbox *b, u32 end, u64 now)
{
	u32 tail = b->tail, slot = tail;

	if (tail - b->head >= ARRIVALS)
		slot = tail - 1;
	b->arrivals[slot & (ARRIVALS - 1)].at = now;
	b->arrivals[slot & (ARRIVALS - 1)].end = end;
	b->end = end;
	/* Last, because from here on a read may take it. */
	*(volatile u32 *)&b->tail = slot + 1;
}

/* The connection that was queued last at the listener; 0 if unknown. */
static __always_inline u64 newest_connection(u64 listener, u32 kind)
{
	u64 entry;

	if (kind == UNIX_LISTENER) {
		entry = kernel_word(listener + SOCK_QUEUE_OFFSET + QUEUE_LAST_OFFSET);
		return entry ? kernel_word(entry + SKB_SK_OFFSET) : 0;
	}
#ifdef MPTCP_FIRST_OFFSET
	/* Go listens with MPTCP since 1.24. Nearly all its connections are plain TCP. */
	if (kind == MPTCP_LISTENER)
		listener = kernel_word(listener + MPTCP_FIRST_OFFSET);
#endif
	entry = kernel_word(listener + ICSK_ACCEPT_QUEUE_OFFSET + RSKQ_TAIL_OFFSET);
	return entry ? kernel_word(entry + REQUEST_SK_OFFSET) : 0;
}

/* A connection was queued at its listener: its data may come before it is accepted. */
static __always_inline void note_child(u64 listener, const struct inbox *l, u64 now)
{
	struct inbox child = {.owner = l->owner, .fd = NO_FD, .accepted = 1};
	u64 sk = newest_connection(listener, l->kind);
	u32 nxt;

	if (!sk)
		return;
	child.kind = l->kind == UNIX_LISTENER ? UNIX_STREAM : TCP_STREAM;
	if (child.kind == TCP_STREAM) {
		child.end = tcp_word(sk, TCP_COPIED_OFFSET);
		nxt = tcp_word(sk, TCP_RCV_NXT_OFFSET);
		/* The packet that completed it may have brought data. */
		if (nxt != child.end)
			note_arrival(&child, nxt, now);
	}
	add_inbox(sk, &child);
}

/* The agent loads it in the same way as the one at sys_exit. */
int data_ready(struct bpf_raw_tracepoint_args *ctx)
{
	u64 sk = ctx->args[0], now;
	struct inbox *b;
	u32 end;

	if (!may_be_watched(sk))
		return 0;
	b = inboxes.lookup(&sk);
	if (!b)
		return 0;
	now = bpf_ktime_get_ns();
	end = b->end + 1;
	if (b->kind == TCP_STREAM) {
		u32 nxt = tcp_word(sk, TCP_RCV_NXT_OFFSET);

		/* The end of the stream has a sequence number, too, but isn't data. */
		if (nxt == b->end || (nxt == end && shut_down(sk)))
			return 0;
		end = nxt;
	} else if (b->kind >= LISTENER) {
		/* Another socket may have the memory of a listener whose process has ended. */
		if (!is_listening(sk))
			return 0;
		note_child(sk, b, now);
	}
	note_arrival(b, end, now);
	return 0;
}

/* What kind of socket it is, 0 for others. *sk is set. */
static __always_inline u32 kind_of(u64 file, u64 *sk)
{
	u64 socket = socket_of(file, mode_of(file));
	u16 type = 0, family = 0, protocol = 0;
	u8 state = 0;

	if (!socket)
		return 0;
	*sk = kernel_word(socket + SOCKET_SK_OFFSET);
	if (!*sk)
		return 0;
	READ_MEMBER(type, socket + SOCKET_TYPE_OFFSET);
	READ_MEMBER(family, *sk + SOCK_FAMILY_OFFSET);
	READ_MEMBER(protocol, *sk + SOCK_PROTOCOL_OFFSET);
	READ_MEMBER(state, *sk + SOCK_STATE_OFFSET);
	if (family != AF_UNIX && family != AF_INET && family != AF_INET6)
		return 0;
	if (type != SOCK_STREAM)
		return DATAGRAMS;
	if (family == AF_UNIX)
		return state == TCP_LISTEN ? UNIX_LISTENER : UNIX_STREAM;
	if (protocol == IPPROTO_TCP)
		return state == TCP_LISTEN ? LISTENER : TCP_STREAM;
	/* For a real MPTCP connection it is unknown what was read. */
	return protocol == IPPROTO_MPTCP && state == TCP_LISTEN ? MPTCP_LISTENER : 0;
}

/* Whether the process that an inbox belonged to has ended. */
static __always_inline int is_orphan(const struct inbox *b)
{
	struct target *t = target_of(b->owner);

	return !t || t->owner != b->owner || t->exited;
}

/* The descriptor is a socket that a watched process may read from. accepted: it comes from
 * accept. */
static __always_inline void note_file(struct wait *w, u32 owner, u32 fd, u64 file, int accepted)
{
	struct inbox *b, *fresh;
	u64 sk = 0;
	u32 kind = kind_of(file, &sk);
	int zero = 0;

	w->sk = 0;
	w->socket = kind ? 0 : SOCKET_NONE;
	if (!kind)
		return;
	if (kind >= DATAGRAMS)
		w->socket = SOCKET_MESSAGES;
	if (accepted) /* in case it needs another inbox */
		w->socket |= SOCKET_ACCEPTED;
	b = inboxes.lookup(&sk);
	/* The connection came through a listener of ours, or another descriptor is the same
	 * socket. Anything else was left by a socket that is gone. */
	if (b && b->kind == kind && !is_orphan(b) &&
	    (accepted ? b->fd == NO_FD : b->fd != NO_FD && (b->fd != fd || b->owner != owner))) {
		if (accepted)
			b->fd = fd;
		w->sk = sk;
		return;
	}
	fresh = new_inbox.lookup(&zero);
	if (!fresh)
		return;
	__builtin_memset(fresh, 0, sizeof(*fresh));
	fresh->owner = owner;
	fresh->fd = fd;
	fresh->kind = kind;
	fresh->accepted = accepted;
	if (kind == TCP_STREAM)
		fresh->end = tcp_word(sk, TCP_RCV_NXT_OFFSET);
	if (!add_inbox(sk, fresh))
		w->sk = sk;
}

static __always_inline void note_socket(struct wait *w, u32 owner, u32 fd, int accepted)
{
	note_file(w, owner, fd, file_of(fd), accepted);
}

static __always_inline struct question *question_of(u32 owner, u32 fd)
{
	int key = SLOT(owner) * MAX_FDS + fd;

	return fd < MAX_FDS ? questions.lookup(&key) : 0;
}

/* No write will answer what was read. */
static __always_inline void stop_waiting(struct wait *w, u32 owner, struct question *q)
{
	struct counters *c;
	u32 epoch;

	if (!(w->socket & SOCKET_ASKED))
		return;
	w->socket &= ~SOCKET_ASKED;
	epoch = kept_epoch(q->epoch);
	c = epoch ? counters_of(owner, epoch) : 0;
	if (c)
		c->unanswered += 1 + q->joined;
}

/* The descriptor is about to be closed, or was closed. */
static __always_inline void drop_socket(struct wait *w, u32 owner, u32 fd)
{
	struct question *q = question_of(owner, fd);
	u64 sk = w->sk;
	struct inbox *b;

	if (q)
		stop_waiting(w, owner, q);
	w->sk = 0;
	w->socket = 0;
	if (!sk)
		return;
	b = inboxes.lookup(&sk);
	if (b && b->owner == owner && b->fd == fd)
		inboxes.delete(&sk);
}

/* close or dup2 has returned. The runtime removes a descriptor before it closes it; this is for
 * code that closes it without the runtime. */
static __always_inline void closed(u32 owner, u32 fd)
{
	struct wait *w = wait_of(owner, fd, DIR_READ);
	u64 sk = 0;

	/* Another thread may have got the same number for a new descriptor. */
	if (w && !w->sk && w->socket & SOCKET_ACCEPTED && !file_of(fd))
		w->socket = 0;
	if (w && (w->sk || w->socket & SOCKET_NONE) && (!kind_of(file_of(fd), &sk) || sk != w->sk))
		drop_socket(w, owner, fd);
}

/* A read has taken something from the queue. taken: how many messages, if it holds messages. */
static __always_inline void take_arrivals(u64 sk, struct inbox *b, u32 taken)
{
	u32 tail = *(volatile u32 *)&b->tail, head = b->head, end, upto;
	int i;

	/* The order matters: data that comes meanwhile has a higher end. */
	end = *(volatile u32 *)&b->end;
	if (b->kind == TCP_STREAM) {
		upto = tcp_word(sk, TCP_COPIED_OFFSET);
	} else if (b->kind == UNIX_STREAM) {
		/* Each message stays in the queue until it is read completely. */
		upto = end - tcp_word(sk, SOCK_QUEUE_OFFSET + QUEUE_LENGTH_OFFSET);
	} else {
		b->taken += taken;
		upto = b->taken;
	}
	if (upto == end) {
		b->head = tail;
		return;
	}
#pragma clang loop unroll(full)
	for (i = 0; i < ARRIVALS; i++) {
		if (head == tail || (s32)(b->arrivals[head & (ARRIVALS - 1)].end - upto) > 0)
			break;
		head++;
	}
	/* Only the end of the stream is left. */
	if (b->kind == TCP_STREAM && head != tail && end - upto == 1 && shut_down(sk))
		head = tail;
	if (head == tail)
		b->taken = end; /* if one was missed, the counts agree again */
	b->head = head;
}

/* A read found nothing, although something had arrived: another reader took it, or the kernel
 * dropped it. Data that came just now may have come after the read. */
static __always_inline void expire_arrivals(struct wait *w)
{
	u64 sk = w->sk;
	struct inbox *b = inboxes.lookup(&sk);
	u32 head;

	if (!b)
		return;
	head = b->head;
	if (head != b->tail &&
	    bpf_ktime_get_ns() - b->arrivals[head & (ARRIVALS - 1)].at > SURELY_GONE) {
		b->head = b->tail;
		b->taken = b->end;
	}
}

#ifdef TASK_TGID_OFFSET
/* The listening ports of the process whose descriptors are walked over. */
BPF_HASH(listening, u16, u8, 1024);

/* The kernel walks over the descriptors of a process (bpf_iter/task_file), because it registered
 * some before it was watched. The arguments are the iterator's: meta, task, fd, file. */
int note_descriptor(struct bpf_raw_tracepoint_args *ctx)
{
	u64 task = ctx->args[1], file = ctx->args[3];
	u32 tgid = 0, fd = ctx->args[2], owner, kind;
	struct wait *w;
	u16 port = 0;
	u64 sk = 0;

	if (!task || !file)
		return 0;
	READ_MEMBER(tgid, task + TASK_TGID_OFFSET);
	owner = owner_of(tgid);
	w = owner ? wait_of(owner, fd, DIR_READ) : 0;
	if (!w || w->sk || w->socket & SOCKET_NONE)
		return 0;
	kind = kind_of(file, &sk);
	if (!kind)
		return 0;
	READ_MEMBER(port, sk + SOCK_PORT_OFFSET);
	note_file(w, owner, fd, file, kind == TCP_STREAM && listening.lookup(&port));
	/* If it was closed meanwhile, nothing else will remove the inbox. */
	if (w->sk == sk && file_in(task, fd) != file)
		drop_socket(w, owner, fd);
	return 0;
}
#endif
#else
#define note_socket(w, owner, fd, accepted)
#define drop_socket(w, owner, fd)
#define closed(owner, fd)
#endif
