/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * What the probe and the agent share: sizes, and the layout of every map value.
 * The agent reads the structs as BCC describes them, and passes MAX_PROCESSES, MAX_FDS and the numbers that
 * it shares (its constants.py, bpf/machine.py) as -D.
 */
#ifndef NETPOLL_H
#define NETPOLL_H

/* Direct-mapped by the low bits of the tgid: an array lookup is inlined by the JIT, and this one is
 * paid by every syscall of the whole machine. Two watched tgids that share a home are refused. */
#define TGID_HOMES 65536

/* Windows are cut by epochs. A bank holds what belongs to one epoch, whose number ends in the bank's; a wakeup
 * that is resolved after the cut still counts in the epoch that woke it, so a window's sums never leak. */

/* The epochs that have a bank, 0 for a bank that nobody asks for. A cut between which no open window distinguishes
 * any more loses its own: what was woken after it counts in the last one before it that is here. */
struct kept_epochs {
	u32 of_bank[BANKS];
};

/* An owner is a process in a slot: slot + 1 in the low bits, and above them a number that differs
 * from that of the slot's former processes. */
#define SLOT(owner) (((owner) & ((1 << SLOT_BITS) - 1)) - 1)
#define BANK(owner, epoch) (SLOT(owner) * BANKS + ((epoch) & (BANKS - 1)))

/* Where only some of the stacks are recorded, all of these first ones are, of a CPU in an epoch. */
#define STACKS_EXACT 256

/* The words of a runtime.g in which goid may be; which it is the agent decides by the version of Go. */
#define GOID_OFFSET 152
#define GOID_WORDS 2

#define NO_EPFD (-1)

enum direction { DIR_READ = 0, DIR_WRITE = 1 };

/* What a syscall means to us; filled by the agent from its per-machine table. */
#define ROLE_READ_ARG(role) ((role) & 0xf)		/* 1 + index of the fd read from, 0 = none */
#define ROLE_WRITE_ARG(role) (((role) >> 4) & 0xf)	/* 1 + index of the fd written to */
#define ROLE_IO_CALL(role) (((role) >> 16) & (IO_CALLS - 1))	/* which of them it is */

/* How an I/O call ended: by a number of errno.h, or one of these. */
#define OUTCOMES 134		/* the kernel's own, that no program sees, are larger */

/* The third call in a row that ended alike is futile, and each after it, unless it comes 1 ms later or more. */
#define FUTILE_FROM 3
#define FAILED_AT_SHIFT 10	/* of ns, so that an hour fits 32 bits */
#define STREAK_PAUSE (1000000 >> FAILED_AT_SHIFT)

/* How a pollDesc is packed into epoll_event.data, and where its waiters are. */
struct layout {
	u8 right;	/* (s64)data >> right << left = address of the pollDesc */
	u8 left;
	u8 tag_bits;	/* low bits of data that must equal pollDesc.fdseq; 0 = no tag */
	u8 waiters;	/* word index of rg; wg follows */
};

/* An epoll instance that may be the runtime's: an fd was registered there as the runtime does its own
 * wake-up fd, with data that is 0 or the address of a variable that holds the fd. The runtime sets that
 * variable only afterwards, so this is left to be proven with the first pollDesc. */
struct candidate {
	u64 data;
	u64 fd;
	s32 epfd;	/* or NO_EPFD */
	u32 unproven;	/* edge-triggered registrations that looked like Go's and did not decode */
};
#define CANDIDATES 4

/* One watched process. The agent fills it in while nobody is watched there, and reads it from then on: it could
 * not change one word without writing back the others, which the kernel may have changed meanwhile. */
struct target {
	u32 tgid;
	u32 root;	/* tgid of the process the agent was told to watch */
	u32 owner;	/* as which it lives in homes: another one with each program that it execs */
	u32 exited;
	u32 kept;	/* its banks may hold numbers: the slot is the agent's to free */
	u32 heir;	/* slot whose banks count what this one does while it is not kept: an ancestor's */
	u32 lost_children;	/* forked and not watched, for want of a slot */
	u32 local;	/* its number in the agent's pid namespace, where that is not the initial one */
	u32 foreign;	/* it has exec'ed a program that is not for the user to know of: it is not watched any more */
	u32 unused;
	u64 capabilities;	/* permitted ones when it was first watched: with more it is not the user's */
	u64 since;	/* when it began to be this owner; monotonic ns */
};

/* What is known of a process's poller; the agent writes it too, once. layout is all zero until calibration has
 * proved one. Of an owner that is not the slot's any more, it says nothing. */
struct poller {
	u32 owner;
	s32 epfd;	/* the runtime's epoll instance, or NO_EPFD */
	struct layout layout;
	u64 break_data;	/* of the runtime's own wake-up fd */
	u32 proven;	/* registrations that decoded to a pollDesc holding their fd */
	u32 unproven;	/* those on epfd that did not */
	u32 candidates_seen;
	u32 more_pollers;	/* registrations that prove another Go runtime in this process */
	struct candidate candidates[CANDIDATES];
};

struct counters {
	u64 wakeups;
	u64 productive_wakeups;
	u64 spurious_wakeups;
	u64 abandoned_wakeups;
	u64 stale_retries;
	u64 events;
	u64 unclaimed_events;
	u64 duplicate_events;
	u64 parking_events;
	u64 polls;
	u64 blocking_polls;
	u64 timed_polls;
	u64 nonblocking_polls;
	u64 empty_polls;
	u64 timeout_polls;
	u64 break_polls;
	u64 interrupted_polls;
	u64 lost_fds;		/* wakeups on an fd >= MAX_FDS */
	u64 lost_memory;	/* events or pollDescs that could not be read */
	u64 lost_processes;	/* children that found no free slot */
	u64 lost_offenders;	/* counted, but by whom was not kept */
	u64 latency_max;
	u64 slow_floor;		/* what a wakeup must take longer than to be among the slowest; no counter */
	u64 ready_calls;	/* these two by goready.c */
	u64 deadline_wakeups;
	u64 io_calls;
	u64 futile_calls;
	u64 lost_calls;		/* those without data, on an fd >= MAX_FDS */
	u64 children;		/* forked, and watched from then on */
};

/* The I/O calls that moved no data. */
struct io_failures {
	u64 outcomes[OUTCOMES];
	u64 futile[IO_CALLS];	/* by syscall */
	u8 why[IO_CALLS];	/* the outcome of the last of these */
	u64 failed;		/* 0 = all of them are */
};

/* A process by its numbers. */
struct identity {
	u32 tgid;	/* in the initial pid namespace, whose numbers are used all over here */
	u32 level;	/* of its own pid namespace: the initial one has 0 */
};

struct histogram {
	u32 buckets[LATENCY_BUCKETS];
};

/* State of one direction of one fd of one process. */
struct wait {
	u64 woken_at;	/* ns; 0 = no wakeup pending */
	u64 g;		/* the goroutine woken: address of its runtime.g */
	u64 pd;		/* its pollDesc */
	u32 epoch;	/* when it was woken */
	u32 owner;
	u16 flags;
	u8 outcome;	/* of the last I/O calls, */
	u8 streak;	/* so many of which moved no data */
	u32 failed_at;	/* when the last of them returned, ns >> FAILED_AT_SHIFT */
};

#define WAIT_TRIED 1	/* the last syscall got EAGAIN */
#define WAIT_STORED 2	/* an event was stored in the pollDesc since */
#define WAIT_ARMED 4	/* tried, and a readiness is stored: the wait returns at once */

/* What a descriptor was when somebody was woken for it in vain, or late: by the window's end it may be closed. */
struct endpoint {
	u32 inode;	/* its number; 0 = nothing is known */
	u16 mode;	/* the inode's */
	u16 type;	/* of a socket, as all that follows */
	u16 family;
	u16 port;
	u16 peer_port;	/* in network order; 0 = not connected */
	u8 state;
	u8 several;	/* the descriptor has been this and something else */
	u8 address[16];	/* of IPv4 in the first four */
	u8 peer_address[16];
};

struct slow_wakeup {
	u64 latency;	/* ns; 0 = free */
	u64 at;		/* when it was resolved */
	u64 goid[GOID_WORDS];
	s32 stack;
	u32 fd;
	struct endpoint end;
	u16 syscall;
	u8 direction;
	u8 unused[5];
};

struct slowest {
	struct slow_wakeup kept[SLOWEST];
	u64 least;	/* which of them is the first to go */
};

/* READY is no offence but a place that wakes, and CPU one that was seen running: fd, syscall and direction are 0. UNCLAIMED is an event that
 * found nobody, and so has neither a syscall nor a stack. */
enum offence { SPURIOUS = 0, STALE = 1, READY = 2, UNCLAIMED = 3, FUTILE = 4, IO_CALL = 5,
	CPU = 6 };
#define NO_STACK (-1)

struct offender {
	u32 owner;
	u32 epoch;
	s32 stack;
	u32 fd;
	u16 syscall;
	u8 direction;
	u8 offence;
	u8 outcome;	/* of an I/O call */
	u8 unused[3];
};

/* CPU time of the scheduler, after a goroutine called it. */
struct scheduling {
	u64 pc;		/* in the function that did, such as runtime.Gosched */
	u64 caller;	/* where that returns to */
	u32 owner;
	u32 epoch;
};

struct blame {
	u64 count;
	struct endpoint end;
};

#endif
