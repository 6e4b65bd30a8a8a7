/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Finds writes that Nagle's algorithm holds back: a small segment waits in a TCP socket until the
 * peer acknowledges the one before. A peer that waits for the rest delays that by 40 ms.
 *
 * The program detects it when the write returns. The next read there shows when the segment left:
 * the kernel stores when the last acknowledged segment was sent. Runs after the syscall is
 * counted, and only while a window asks for it.
 */

#ifdef TCP_NONAGLE_OFFSET
/* A write whose end is still in the socket. */
struct held_write {
	u64 at; /* when it returned, ns */
	u32 end; /* the sequence number behind it */
	s32 stack;
	u32 syscall;
	u32 epoch; /* when it returned */
};
/* By owner << 32 | fd. The least recently used ones are forgotten: those of closed descriptors. */
BPF_TABLE("lru_hash", u64, struct held_write, held_writes, HELD_WRITES);

/* The connection's struct sock; 0 if it isn't a TCP connection. */
static __always_inline u64 tcp_of(u64 fd)
{
	u64 file = file_of(fd), socket = socket_of(file, mode_of(file)), sk;
	u16 type = 0, family = 0, protocol = 0;

	sk = socket ? kernel_word(socket + SOCKET_SK_OFFSET) : 0;
	if (!sk)
		return 0;
	READ_MEMBER(type, socket + SOCKET_TYPE_OFFSET);
	READ_MEMBER(family, sk + SOCK_FAMILY_OFFSET);
	READ_MEMBER(protocol, sk + SOCK_PROTOCOL_OFFSET);
	return type == SOCK_STREAM && protocol == IPPROTO_TCP &&
			       (family == AF_INET || family == AF_INET6) ?
		       sk :
		       0;
}

/* Whether unsent data waits only for an acknowledgement: it is less than a segment, a small
 * segment is on its way, and the peer and the network have room. */
static __always_inline int is_held(u64 sk, u32 end)
{
	u32 next = tcp_word(sk, TCP_SND_NXT_OFFSET), first = tcp_word(sk, TCP_SND_UNA_OFFSET);
	u32 small = tcp_word(sk, TCP_SND_SML_OFFSET), flying;
	u8 nonagle = 0;

	READ_MEMBER(nonagle, sk + TCP_NONAGLE_OFFSET);
	if (nonagle & NAGLE_CHANGED || end == next || end - next >= tcp_word(sk, TCP_MSS_OFFSET))
		return 0;
	flying = tcp_word(sk, TCP_PACKETS_OUT_OFFSET);
	return flying && flying < tcp_word(sk, TCP_CWND_OFFSET) && (s32)(small - first) > 0 &&
	       (s32)(small - next) <= 0 && end - first <= tcp_word(sk, TCP_SND_WND_OFFSET);
}

/* Held data has been sent and acknowledged: records for how long it was held, if that was longer
 * than the network takes and shorter than a retransmission. */
static __always_inline void record_held(u64 sk, struct held_write *h, u32 owner, u32 fd)
{
	u32 epoch = kept_epoch(h->epoch);
	struct counters *c = epoch ? counters_of(owner, epoch) : 0;
	u64 sent = 0, ns;
	struct offender o = {
		.owner = owner,
		.epoch = epoch,
		.stack = h->stack,
		.fd = fd,
		.syscall = h->syscall,
		.direction = DIR_WRITE,
		.offence = HELD,
	};

	READ_MEMBER(sent, sk + TCP_FIRST_TX_OFFSET);
	ns = sent * 1000 - h->at;
	if (c && tcp_word(sk, TCP_SND_NXT_OFFSET) == h->end && sent * 1000 > h->at &&
	    ns >= HELD_LEAST && ns < HELD_MOST)
		record_offender(c, &o, 1, ns);
}

/* An I/O call has returned what it read or wrote. */
int look_at_write(struct bpf_raw_tracepoint_args *ctx)
{
	u32 owner = owner_of(bpf_get_current_pid_tgid() >> 32), *role, fd;
	struct held_write now = {}, *h;
	struct args a;
	u64 sk, key;
	int nr;

	if (!owner || read_args(ctx->args[0], &a))
		return 0;
	nr = a.nr;
	role = roles.lookup(&nr);
	if (!role)
		return 0;
	/* For splice and the like, only the target may hold data. */
	fd = ROLE_WRITE_ARG(*role) == 2 ? a.arg[1] :
	     ROLE_WRITE_ARG(*role) == 3 ? a.arg[2] :
					  a.arg[0];
	key = (u64)owner << 32 | fd;
	h = held_writes.lookup(&key);
	if (!ROLE_WRITE_ARG(*role)) {
		sk = h ? tcp_of(fd) : 0;
		if (sk && ROLE_READ_ARG(*role) == 1)
			record_held(sk, h, owner, fd);
		if (h)
			held_writes.delete(&key);
		return 0;
	}
	sk = tcp_of(fd);
	now.end = sk ? tcp_word(sk, TCP_WRITE_SEQ_OFFSET) : 0;
	if (!sk || !is_held(sk, now.end)) {
		/* If this write was sent at once, the time of the one before is lost. */
		if (h)
			held_writes.delete(&key);
		return 0;
	}
	if (h && (s32)(tcp_word(sk, TCP_SND_NXT_OFFSET) - h->end) < 0) {
		h->end = now.end; /* it joins the data that waits already */
		return 0;
	}
	if (h)
		record_held(sk, h, owner, fd);
	now.at = bpf_ktime_get_ns();
	now.syscall = nr;
	now.epoch = current_epoch();
	now.stack = stack_of(ctx);
	held_writes.update(&key, &now);
	return 0;
}
#else
int look_at_write(struct bpf_raw_tracepoint_args *ctx)
{
	return 0;
}
#endif
