/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Histograms of times, and the parts of the times in each bucket.
 */

/* Whether v is above the limit; neither may be 1 << 63. It takes no branch: the verifier walks
 * through everything that follows once for each outcome, and a bucket would have 40. */
static __always_inline u64 above(u64 v, u64 limit)
{
	u64 left = limit - v;

	asm volatile("" : "+r"(left)); /* or the compiler makes a branch of it */
	return left >> 63;
}

static __always_inline u32 bucket_of(u64 ns)
{
	u64 shift = 0, step, v;
	int i;

	if (ns >> LATENCY_BITS)
		ns = (1ULL << LATENCY_BITS) - 1;
	v = ns | 16;
#pragma clang loop unroll(full)
	for (i = 5; i; i--) {
		step = above(v, (1ULL << (1 << i)) - 1) << i;
		v >>= step;
		shift += step;
	}
	shift += v >> 1;
	/* The first 16 values have a bucket each, and so do the next 16. */
	return (shift - 3 - above(16, ns)) * 16 + ((ns >> (shift - 4)) & 15);
}

/* Returns the bucket. */
static __always_inline u64 count_delay(struct delays *d, enum delay what, u64 ns, u64 *max)
{
	u64 bucket = bucket_of(ns);

	if (ns > *max)
		*max = ns;
	/* BCC 0.18's compiler compares one copy and indexes with another; then 5.10 sees no bound. */
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
