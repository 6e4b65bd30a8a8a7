/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Counts I/O calls: how many returned, how those without data ended, and which of them were
 * futile.
 *
 * For a call that moved data, this costs a counter and a check of the streak that it ends. Only
 * other calls read the clock.
 */

BPF_PERCPU_ARRAY(io_failures, struct io_failures, ALL_BANKS);

/* The descriptor was closed, or replaced by dup2. */
static __always_inline void end_streaks(u32 owner, u32 fd)
{
	struct wait *r = wait_of(owner, fd, DIR_READ), *w = wait_of(owner, fd, DIR_WRITE);

	if (r)
		r->streak = 0;
	if (w)
		w->streak = 0;
}

/* Whether 0 bytes were an empty datagram, not the end of a file. */
static __always_inline int is_datagram(u32 role, u32 fd)
{
#ifdef TASK_FILES_OFFSET
	u64 file = file_of(fd), socket = socket_of(file, mode_of(file));
	u16 type = 0;

	if (!socket)
		return 0;
	READ_MEMBER(type, socket + SOCKET_TYPE_OFFSET);
	return type == SOCK_DGRAM || type == SOCK_RAW;
#else
	/* A guess: streams are mostly read, datagrams received. */
	return role & ROLE_RECEIVE;
#endif
}

/* As charged_owner. It is looked up only until the descriptor's owner is kept, because that
 * doesn't change any more. */
static __always_inline u32 charged_for(struct wait *w, u32 owner)
{
	u32 charged;

	if (w && w->kept)
		return owner;
	charged = charged_owner(owner);
	if (w && charged == owner)
		w->kept = 1;
	return charged;
}

static __always_inline int in_streak(const struct wait *w, u32 outcome)
{
	return w && w->streak && w->outcome == outcome;
}

/* One more call on this descriptor and direction had this outcome. Returns how many had it in a
 * row, at most FUTILE_FROM. now: ns >> FAILED_AT_SHIFT. */
static __always_inline u32 lengthen_streak(struct wait *w, u32 outcome, u32 now)
{
	u32 streak = w->streak;

	if (w->outcome != outcome || now - w->failed_at > STREAK_PAUSE)
		streak = 0;
	if (streak < FUTILE_FROM)
		streak++;
	w->streak = streak;
	w->outcome = outcome;
	w->failed_at = now;
	return streak;
}

/* Records where the call was made. bytes: those that it moved. filled: as many as it asked for. */
static __always_inline void record_io_call(void *ctx, struct counters *c, u32 owner, u32 epoch,
					   u32 nr, u32 outcome, u32 fd, int direction, int futile,
					   u64 bytes, int filled)
{
	/* How many such calls this CPU has counted in the epoch. */
	u32 weight = sampled(SAMPLE_IO_CALLS, futile ? c->futile_calls : c->io_calls);
	struct offender o = {
		.owner = owner,
		.epoch = epoch,
		.fd = fd,
		.syscall = nr,
		.direction = direction,
		.offence = futile ? FUTILE : IO_CALL,
		.outcome = outcome,
		.seen = filled ? SEEN_FILLED : 0,
	};

	if (!weight)
		return;
	o.stack = stack_of(ctx);
	record_offender(c, &o, weight, bytes);
}

/* An I/O syscall has returned. r, w: the waits of what it reads from and writes to; 0 where it does
 * neither, or where the table does not hold the descriptor. length: the argument that for read and
 * recvfrom is how many bytes they ask for. */
static __always_inline void count_io_call(void *ctx, u32 owner, u32 role, u32 nr, struct wait *r,
					  u32 read_fd, struct wait *w, u32 write_fd, u64 length,
					  long ret)
{
	u32 reads = ROLE_READ_ARG(role), writes = ROLE_WRITE_ARG(role);
	u32 outcome = OUTCOME_DATA, streak = 0, epoch, now;
	struct settings *s = current_settings();
	struct io_failures *f;
	struct counters *c;
	int key;
	u64 row;

	/* A call that a signal interrupted and that the kernel restarts has no outcome yet. */
	if (!s || (ret < 0 && -ret >= OUTCOMES))
		return;
	epoch = s->epoch;
	key = BANK(charged_for(r ? r : w, owner), epoch);
	c = counts.lookup(&key);
	if (!c)
		return;
	c->io_calls++;
	if (ret < 0)
		outcome = -ret;
	else if (ret == 0 && role & ROLE_EOF &&
		 (in_streak(r, OUTCOME_EOF) || !is_datagram(role, read_fd)))
		outcome = OUTCOME_EOF;
	if (outcome == OUTCOME_DATA) {
		if (r && r->streak)
			r->streak = 0;
		if (w && w->streak)
			w->streak = 0;
	} else {
		/* End of file concerns only the file that is read, not the one that is written. */
		if (outcome == OUTCOME_EOF)
			writes = 0;
		now = bpf_ktime_get_ns() >> FAILED_AT_SHIFT;
		streak = FUTILE_FROM;
		/* With two descriptors either may be the cause, so both streaks must be that
		 * long. */
		if (reads)
			streak = r ? lengthen_streak(r, outcome, now) : 0;
		if (writes) {
			u32 other = w ? lengthen_streak(w, outcome, now) : 0;

			if (other < streak)
				streak = other;
		}
		if (outcome != EBADF && ((reads && !r) || (writes && !w)))
			c->lost_calls++;
		f = io_failures.lookup(&key);
		if (!f)
			return;
		/* Linux 5.10 and 6.1 lose the bounds of a negated number. */
		row = outcome;
		asm volatile("" : "+r"(row));
		if (row < OUTCOMES)
			f->outcomes[row]++;
		f->failed = 1;
		if (streak == FUTILE_FROM) {
			u32 call = ROLE_IO_CALL(role);

			c->futile_calls++;
			f->futile[call]++;
			f->why[call] = outcome;
		}
	}
	if (s->keeping & (KEEP_IO_CALLS | (streak == FUTILE_FROM ? KEEP_FUTILE_CALLS : 0)))
		record_io_call(ctx, c, owner, epoch, nr, outcome, writes ? write_fd : read_fd,
			       writes ? DIR_WRITE : DIR_READ, streak == FUTILE_FROM,
			       ret > 0 ? ret : 0, ret > 0 && !writes && ret == length);
}
