/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* BCC's BPF_STACK_TRACE rounds its size with it; the value must be a constant. */
#define roundup_pow_of_two(n) (1UL << (64 - __builtin_clzl((n) - 1)))
