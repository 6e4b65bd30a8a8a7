/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * The arguments of the syscall that has returned.
 */

struct args {
	u64 arg[4];
	u32 nr;
};

#ifdef TYPED_ARGS
/* The verifier knows what regs points to, so a load is enough; a helper call is expensive on CPUs
 * whose returns are guarded against speculation. Assembler, because BCC turns a dereference in C
 * into a call. */
#define LOAD_AT(value, size, from, offset) \
	asm volatile("%0 = *(" #size " *)(%1 + %2)" : "=r"(value) : "r"(from), "i"(offset))
#define LOAD(value, size, regs, member) LOAD_AT(value, size, regs, offsetof(struct pt_regs, member))

static __always_inline int read_args(u64 regs, struct args *a)
{
#ifdef NETPOLL_AARCH64
	LOAD(a->arg[0], u64, regs, orig_x0);
	LOAD(a->arg[1], u64, regs, regs[1]);
	LOAD(a->arg[2], u64, regs, regs[2]);
	LOAD(a->arg[3], u64, regs, regs[3]);
	LOAD(a->nr, u32, regs, syscallno);
#else
	u64 nr;

	LOAD(a->arg[0], u64, regs, di);
	LOAD(a->arg[1], u64, regs, si);
	LOAD(a->arg[2], u64, regs, dx);
	LOAD(a->arg[3], u64, regs, r10);
	LOAD(nr, u64, regs, orig_ax);
	a->nr = nr;
#endif
	return 0;
}
#else
static __always_inline int read_args(u64 regs, struct args *a)
{
#ifdef NETPOLL_AARCH64
	/* x0 holds the result by now; the kernel keeps the argument in orig_x0. */
	u64 x[3];
	struct {
		u64 orig_x0;
		s32 nr;
	} tail;

	if (bpf_probe_read_kernel(x, sizeof(x), (void *)(regs + offsetof(struct pt_regs, regs[1]))))
		return -1;
	if (bpf_probe_read_kernel(&tail, 12, (void *)(regs + offsetof(struct pt_regs, orig_x0))))
		return -1;
	a->arg[0] = tail.orig_x0;
	a->arg[1] = x[0];
	a->arg[2] = x[1];
	a->arg[3] = x[2];
	a->nr = tail.nr;
#else
	/* One read: r10 r9 r8 ax cx dx si di orig_ax are neighbours. */
	u64 r[9];

	if (bpf_probe_read_kernel(r, sizeof(r), (void *)(regs + offsetof(struct pt_regs, r10))))
		return -1;
	a->arg[0] = r[7];
	a->arg[1] = r[6];
	a->arg[2] = r[5];
	a->arg[3] = r[0];
	a->nr = r[8];
#endif
	return 0;
}
#endif
