/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Keeps the slowest wakeups, reads and answers: which goroutine, where, and on what.
 */

/* g: the goroutine. */
static __always_inline void fill_slow(void *ctx, struct slow_wakeup *kept, u64 latency, u64 at,
				      u32 nr, u32 fd, int direction, u64 g)
{
	kept->latency = latency;
	kept->at = at;
	kept->syscall = nr;
	kept->fd = fd;
	kept->direction = direction;
	kept->stack = stack_of(ctx);
	__builtin_memset(&kept->end, 0, sizeof(kept->end));
	describe(fd, &kept->end);
	if (bpf_probe_read_user(kept->goid, sizeof(kept->goid), (void *)(g + GOID_OFFSET)))
		__builtin_memset(kept->goid, 0, sizeof(kept->goid));
}

/* Records the wakeup if it is one of the bank's slowest so far. Nearly all return at the
 * comparison. */
static __always_inline void record_if_slow(void *ctx, struct counters *c, int key, struct wait *w,
					   u64 woken_at, u64 latency, u32 nr, u32 fd, int direction)
{
	struct slow_wakeup *kept;
	u64 least = ~0ULL;
	struct slowest *s;
	int i;

	if (latency <= c->slow_floor || !keeps(KEEP_CULPRITS))
		return;
	s = slowest.lookup(&key);
	if (!s)
		return;
	kept = &s->kept[s->least & (SLOWEST - 1)];
	fill_slow(ctx, kept, latency, woken_at + latency, nr, fd, direction, w->g);
	/* The index of the next one to replace is stored in memory. If it were one of eight
	 * pointers in a register, the verifier would walk through everything below eight times. */
#pragma clang loop unroll(full)
	for (i = 0; i < SLOWEST; i++) {
		if (s->kept[i].latency < least) {
			least = s->kept[i].latency;
			s->least = i;
		}
	}
	c->slow_floor = least;
}

#ifdef ARRIVAL_TIMES
/* The same for a queue delay or a response. floor: its field in the counters. */
static __always_inline void record_if_slow_answer(void *ctx, u64 *floor, int bank, int of_response,
						  u64 ns, u64 now, u32 nr, u32 fd, u64 g,
						  const struct parts *parts)
{
	int key = bank * 2 + of_response, i;
	struct slow_answer *kept;
	struct slow_answers *s;
	u64 least = ~0ULL;

	if (ns <= *floor || !keeps(KEEP_CULPRITS))
		return;
	s = slow_answers.lookup(&key);
	if (!s)
		return;
	kept = &s->kept[s->least & (SLOWEST - 1)];
	fill_slow(ctx, &kept->wakeup, ns, now, nr, fd, of_response ? DIR_WRITE : DIR_READ, g);
	kept->parts = *parts;
#pragma clang loop unroll(full)
	for (i = 0; i < SLOWEST; i++) {
		if (s->kept[i].wakeup.latency < least) {
			least = s->kept[i].wakeup.latency;
			s->least = i;
		}
	}
	*floor = least;
}
#endif
