/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* BCC brings its own linux/bpf.h and has read it by now. */
