/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * What Go's runtime keeps in a process's memory (runtime/netpoll.go).
 */
#ifndef NETPOLL_GO_H
#define NETPOLL_GO_H

/* The mask with which netpollopen registers every pollDesc, in all versions. */
#define GO_EVENTS (EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET)

/* pollDesc.rg and .wg: 0 nobody, 1 readiness stored, 2 about to park, else the parked *g. A
 * pollDesc is read as PD_WORDS words; fd and fdseq are at these. */
#define PD_READY 1
#define PD_WAIT 2
#define PD_WORDS 6
#define PD_FD 1
#define PD_FDSEQ 2

/* runtime.g.sched: where a goroutine that does not run will continue. It holds the g itself, which
 * proves it. The frame pointer is in word GOBUF_BP or the next one, depending on the Go version;
 * in the second case the first word is 0. */
#define GOBUF_OFFSET 56
#define GOBUF_WORDS 7
#define GOBUF_PC 1
#define GOBUF_G 2
#define GOBUF_BP 5

/* runtime.g.lockedm, the thread that a goroutine is locked to, is in one of these words, depending
 * on the Go version: 208, 216 or, in 1.19, 232 bytes from the start. An m is proven by its g0,
 * with which it begins and which points back to it. */
#define LOCKEDM_OFFSET 208
#define LOCKEDM_WORDS 4
#define G_M_OFFSET 48

#endif
