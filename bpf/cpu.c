/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Samples what watched processes do with their CPU time: at perf events of each CPU's clock, which the agent enables
 * while a limit asks for it. It appends this file to netpoll.c.
 */

BPF_HASH(switches, struct scheduling, u64, 4096);

#ifndef NETPOLL_AARCH64
#define GOBUF_OFFSET 56		/* of a runtime.g */
#define GOBUF_WORDS 7
#define DEEPEST 12

/* On the scheduler's stack: which goroutine's call brought it here? runtime.mcall left its g above the outermost
 * frame, from which a frame pointer of 0 tells that frame. That it is one is proven by the g in its gobuf. Its
 * caller's frame is kept in words 5 or 6, by the version of Go; what is before it is 0 then. */
static __always_inline int find_switch(void *ctx, struct scheduling *s)
{
	u64 frame, words[2], g = 0, gobuf[GOBUF_WORDS];
	int i;

	asm volatile("%0 = *(u64 *)(%1 + %2)" : "=r"(frame) : "r"(ctx), "i"(offsetof(struct pt_regs, bp)));
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
	if (bpf_probe_read_user(gobuf, sizeof(gobuf), (void *)(g + GOBUF_OFFSET)) || !g || gobuf[2] != g)
		return 0;
	s->pc = gobuf[1];
	frame = gobuf[5] ? gobuf[5] : gobuf[6];
	return !bpf_probe_read_user(&s->caller, sizeof(s->caller), (void *)(frame + 8));
}
#else
#define find_switch(ctx, s) 0
#endif

int cpu_sampled(struct bpf_perf_event_data *ctx)
{
	u32 owner = owner_of(bpf_get_current_pid_tgid() >> 32);
	struct blame first = {}, *b;
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
	o.stack = stack_of(ctx);	/* where there is none, counted all the same: the shares stay true */
	b = offenders.lookup_or_try_init(&o, &first);
	if (b)
		__sync_fetch_and_add(&b->count, 1);
	return 0;
}
