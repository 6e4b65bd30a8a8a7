/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Records offenders: the user's stack, the syscall and the descriptor, with the number of their
 * offences.
 */

/* The number of the user's stack: below STACKS it is in the first map, else in the second. */
static __always_inline s32 stack_of(void *ctx)
{
	s32 id = stacks.get_stackid(ctx, BPF_F_USER_STACK);

	/* Another stack with the same hash is in this slot: the second map is for such stacks. */
	if (id == -EEXIST) {
		id = more_stacks.get_stackid(ctx, BPF_F_USER_STACK);
		if (id >= 0)
			return id + STACKS;
	}
	return id < 0 ? NO_STACK : id;
}

/* How many offences this one stands for; 0 = don't record it. what: SAMPLE_.... seen: how many
 * there were on this CPU in the epoch. */
static __always_inline u32 sampled(int what, u64 seen)
{
	u32 *every = sampling.lookup(&what);

	if (!every || !*every)
		return 0;
	if (seen <= STACKS_EXACT)
		return 1;
	/* At random, because every n-th could coincide with a pattern in the service's work. */
	return bpf_get_prandom_u32() % *every ? 0 : *every;
}

/* A new entry while it is filled in: too large for the BPF stack. */
BPF_PERCPU_ARRAY(new_offender_stats, struct offender_stats, 1);

/* times: how many such offences this one stands for. bytes: those that it moved. */
static __always_inline void record_offender(struct counters *c, struct offender *o, u32 times,
					    u64 bytes)
{
	struct offender_stats *stats = offenders.lookup(o);
	struct offender_stats *first;
	int zero = 0;

	if (!stats) {
		first = new_offender_stats.lookup(&zero);
		if (!first)
			return;
		__builtin_memset(first, 0, sizeof(*first));
		describe(o->fd, &first->end);
		stats = offenders.lookup_or_try_init(o, first);
		if (!stats) {
			c->lost_offenders++;
			return;
		}
	} else if (stats->end.inode != inode_of(file_of(o->fd))) {
		stats->end.several = 1;
	}
	__sync_fetch_and_add(&stats->count, times);
	if (bytes)
		__sync_fetch_and_add(&stats->bytes, times * bytes);
}
