/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* struct pt_regs as the kernel lays it out, with the kernel's field names. */
#ifndef STUB_UAPI_LINUX_PTRACE_H
#define STUB_UAPI_LINUX_PTRACE_H
#include <linux/types.h>
#ifdef NETPOLL_AARCH64
struct pt_regs {
	u64 regs[31];
	u64 sp;
	u64 pc;
	u64 pstate;
	u64 orig_x0;
	s32 syscallno;
	u32 unused;
};
#else
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx;
	unsigned long r11, r10, r9, r8, ax, cx, dx, si, di;
	unsigned long orig_ax, ip, cs, flags, sp, ss;
};
#endif
#endif
