/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Samples what watched processes spend CPU time on, using perf events of each CPU's clock. The
 * agent enables these only while a limit asks for samples.
 */

BPF_HASH(switches, struct scheduling, u64, 4096);

#ifndef NETPOLL_AARCH64
#define DEEPEST 12

/* On the scheduler's stack: finds the goroutine whose call entered the scheduler. runtime.mcall
 * left that g above the outermost frame, which has a frame pointer of 0. */
static __always_inline int find_switch(void *ctx, struct scheduling *s)
{
	u64 frame, words[2], g = 0, gobuf[GOBUF_WORDS];
	int i;

	asm volatile("%0 = *(u64 *)(%1 + %2)"
		     : "=r"(frame)
		     : "r"(ctx), "i"(offsetof(struct pt_regs, bp)));
#pragma clang loop unroll(full)
	for (i = 0; i < DEEPEST; i++) {
		if (bpf_probe_read_user(words, sizeof(words), (void *)frame))
			return 0;
		if (!words[0])
			break;
		frame = words[0];
	}
	if (words[0] || bpf_probe_read_user(&g, sizeof(g), (void *)(frame + 16)))
		return 0;
	if (bpf_probe_read_user(gobuf, sizeof(gobuf), (void *)(g + GOBUF_OFFSET)) || !g ||
	    gobuf[GOBUF_G] != g)
		return 0;
	s->pc = gobuf[GOBUF_PC];
	frame = gobuf[GOBUF_BP] ? gobuf[GOBUF_BP] : gobuf[GOBUF_BP + 1];
	return !bpf_probe_read_user(&s->caller, sizeof(s->caller), (void *)(frame + 8));
}
#else
#define find_switch(ctx, s) 0
#endif

int cpu_sampled(struct bpf_perf_event_data *ctx)
{
	u32 owner = owner_of(bpf_get_current_pid_tgid() >> 32);
	struct offender_stats first = {}, *stats;
	struct scheduling s = {};
	struct offender o = {};
	u64 zero = 0, *count;

	if (!owner)
		return 0;
	s.owner = owner;
	s.epoch = current_epoch();
	if (find_switch(ctx, &s)) {
		count = switches.lookup_or_try_init(&s, &zero);
		if (count) {
			__sync_fetch_and_add(count, 1);
			return 0;
		}
	}
	o.owner = owner;
	o.epoch = s.epoch;
	o.offence = CPU;
	/* Counted even without a stack, so that shares stay correct. */
	o.stack = stack_of(ctx);
	stats = offenders.lookup_or_try_init(&o, &first);
	if (stats)
		__sync_fetch_and_add(&stats->count, 1);
	return 0;
}
