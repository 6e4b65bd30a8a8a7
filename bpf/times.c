/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Histograms of times, and what the times in each of their buckets are made of.
 */

static __always_inline u32 bucket_of(u64 ns)
{
	u32 shift = 0;
	u64 v;

	if (ns >> LATENCY_BITS)
		ns = (1ULL << LATENCY_BITS) - 1;
	if (ns < 16)
		return ns;
	v = ns;
	if (v >> 32) {
		v >>= 32;
		shift += 32;
	}
	if (v >> 16) {
		v >>= 16;
		shift += 16;
	}
	if (v >> 8) {
		v >>= 8;
		shift += 8;
	}
	if (v >> 4) {
		v >>= 4;
		shift += 4;
	}
	if (v >> 2) {
		v >>= 2;
		shift += 2;
	}
	if (v >> 1) {
		shift += 1;
	}
	return (shift - 3) * 16 + ((ns >> (shift - 4)) & 15);
}

/* Returns the bucket. */
static __always_inline u64 count_delay(struct delays *d, enum delay what, u64 ns, u64 *max)
{
	u64 bucket = bucket_of(ns);

	if (ns > *max)
		*max = ns;
	/* BCC 0.18's compiler compares one copy and indexes with another; 5.10 then sees no
	 * bound. */
	asm volatile("" : "+r"(bucket));
	if (bucket < LATENCY_BUCKETS)
		d->buckets[what * LATENCY_BUCKETS + bucket]++;
	return bucket;
}

/* The parts of a queue delay, or of a response, that is in this bucket. */
static __always_inline void add_parts(struct delays *d, int of_response, u64 bucket,
				      const struct parts *parts)
{
	struct parts *sums;

	bucket >>= BUDGET_SHIFT;
	asm volatile("" : "+r"(bucket));
	if (bucket >= BUDGETS)
		return;
	sums = &d->budgets[of_response * BUDGETS + bucket];
	sums->poll += parts->poll;
	sums->run += parts->run;
	sums->unparked += parts->unparked;
	sums->handling += parts->handling;
}
