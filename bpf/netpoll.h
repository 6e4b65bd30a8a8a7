/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * What the probe and the agent share: sizes, and the layout of every map value. The agent reads the
 * structs as BCC describes them, and passes MAX_PROCESSES, MAX_FDS and the numbers that it shares
 * (its constants.py, bpf/machine.py) as -D.
 */
#ifndef NETPOLL_H
#define NETPOLL_H

/* The map `watched` is indexed by the low bits of the tgid: the JIT inlines an array lookup, and
 * every syscall of the whole machine pays for this one. The agent refuses a second tgid for the
 * same entry. */
#define WATCHED_ENTRIES 65536

/* Windows are cut by epochs. A bank holds the counters of one epoch; the low bits of the epoch's
 * number are the bank's. A wakeup that is resolved after the cut still counts in the epoch that
 * woke it, so a window's sums never leak. */
#define ALL_BANKS (MAX_PROCESSES * BANKS)
#define ALL_FDS (MAX_PROCESSES * MAX_FDS)

/* Together, because every I/O call needs both, and each lookup costs 1 to 2 ns. */
struct settings {
	u32 epoch; /* the current one */
	u32 keeping; /* KEEP_... */
};

/* The epoch of each bank, 0 for a bank that is not in use. Once no open window needs the cut
 * between two epochs, the later one loses its bank: its wakeups then count in the last epoch
 * before it that has one. */
struct kept_epochs {
	u32 of_bank[BANKS];
};

/* An owner is a process in a slot: slot + 1 in the low bits, and above them a number that
 * distinguishes it from the processes that had the slot before. */
#define SLOT(owner) (((owner) & ((1 << SLOT_BITS) - 1)) - 1)
#define BANK(owner, epoch) (SLOT(owner) * BANKS + ((epoch) & (BANKS - 1)))

/* If stacks are sampled, each CPU records this many of an epoch in full before it skips any. */
#define STACKS_EXACT 256

/* The words of a runtime.g that may hold goid; the agent picks one by the Go version. */
#define GOID_OFFSET 152
#define GOID_WORDS 2

/* A write counts as held back from this long on, in ns. A delayed ACK comes after 40 ms, a lost
 * segment is sent again after 200. */
#define HELD_LEAST 20000000
#define HELD_MOST 200000000
#define HELD_WRITES 4096

#define NO_EPFD (-1)

enum direction { DIR_READ = 0, DIR_WRITE = 1 };

/* What a syscall means here; the agent fills the map `roles` from its table for the machine. */
#define ROLE_READ_ARG(role) ((role) & 0xf) /* 1 + index of the fd read from, 0 = none */
#define ROLE_WRITE_ARG(role) (((role) >> 4) & 0xf) /* 1 + index of the fd written to */
/* The MSG_... flags of a call that receives. Without a branch, because the verifier would walk
 * through everything after it twice. */
#define ROLE_FLAGS(role, a)                             \
	(-(u64)((role) >> FLAGS_ARG & 1) & (a).arg[2] | \
	 -(u64)((role) >> FLAGS_ARG >> 1 & 1) & (a).arg[3])
#define ROLE_MESSAGES(role, ret) \
	(((role) & (ROLE_RECEIVE | ROLE_EOF)) == ROLE_RECEIVE ? (ret) : 1) /* that were read */
#define ROLE_IO_CALL(role) (((role) >> 16) & (IO_CALLS - 1)) /* its number among the I/O calls */

/* How an I/O call ended: by a number of errno.h, or one of these. */
#define OUTCOMES 134 /* larger ones are the kernel's own; programs never see them */

/* From the third call in a row that ended alike, calls are futile, as long as each comes within
 * 1 ms of the one before. */
#define FUTILE_FROM 3
#define FAILED_AT_SHIFT 10 /* from ns: an hour fits 32 bits */
#define STREAK_PAUSE (1000000 >> FAILED_AT_SHIFT)

/* How a pollDesc is packed into epoll_event.data, and where its waiters are. */
struct layout {
	u8 right; /* (s64)data >> right << left = address of the pollDesc */
	u8 left;
	u8 tag_bits; /* low bits of data that must equal pollDesc.fdseq; 0 = no tag */
	u8 waiters; /* word index of rg; wg follows */
};

/* An epoll instance that may be the runtime's: an fd was registered there the way the runtime
 * registers its own wake-up fd, with data that is 0 or the address of a variable that holds the
 * fd. The runtime sets that variable only afterwards, so the proof has to wait for the first
 * pollDesc. */
struct candidate {
	u64 data;
	u64 fd;
	s32 epfd; /* or NO_EPFD */
	u32 unproven; /* registrations that looked like Go's and did not decode */
};
#define CANDIDATES 4

/* One watched process. The agent writes it before the process is watched and only reads it
 * afterwards: it cannot change one word without writing back the others, which BPF may have
 * changed meanwhile. */
struct target {
	u32 tgid;
	u32 root; /* tgid of the process the agent was told to watch */
	u32 owner; /* its owner in `watched`: a new one with each program that it execs */
	u32 exited;
	u32 kept; /* its banks may hold numbers, so only the agent frees the slot */
	u32 charged_slot; /* an ancestor's: its banks count for this one while it is not kept */
	u32 lost_children; /* forked but not watched: no slot was free */
	u32 local; /* its pid in the agent's pid namespace, if that is not the initial one */
	u32 foreign; /* it exec'ed a program that the user may not inspect: no longer watched */
	u32 unused;
	u64 capabilities; /* the permitted ones when it was first watched; it may not gain any */
	u64 since; /* when it got this owner; monotonic ns */
};

/* What is known about a process's poller; the agent may also write it, once. layout is all zero
 * until calibration has proved one. It is valid only while its owner is the slot's. */
struct poller {
	u32 owner;
	s32 epfd; /* the runtime's epoll instance, or NO_EPFD */
	struct layout layout;
	u64 break_data; /* of the runtime's own wake-up fd */
	u32 proven; /* registrations that decoded to a pollDesc holding their fd */
	u32 unproven; /* those on epfd that did not */
	u32 candidates_seen;
	u32 more_pollers; /* registrations that prove another Go runtime in this process */
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
	u64 lost_fds; /* wakeups on an fd >= MAX_FDS */
	u64 lost_memory; /* events or pollDescs that could not be read */
	u64 lost_processes; /* children that found no free slot */
	u64 lost_offenders; /* offences that were counted but not recorded */
	u64 latency_max;
	u64 slow_floor; /* not a counter: a slower wakeup is among the slowest */
	u64 slow_read_floor; /* the same for queue delays, */
	u64 slow_answer_floor; /* and for responses */
	u64 ready_calls; /* these two by goready.c */
	u64 deadline_wakeups;
	u64 queue_delay_max; /* these by inboxes.c and answers.c */
	u64 poll_delay_max;
	u64 handling_max;
	u64 response_max;
	u64 requests; /* reads that took data of an accepted connection */
	u64 answered; /* those of them that a write answered */
	u64 unanswered; /* those that no write will answer; the others are pending */
	u64 strangers; /* of the unanswered: another goroutine than the woken one */
	u64 reads; /* whose queue delay is known */
	u64 answers; /* the writes */
	u64 queue_delay_ns; /* sums over reads, and over answers */
	u64 poll_delay_ns;
	u64 wake_to_run_ns;
	u64 handling_ns;
	u64 io_calls;
	u64 futile_calls;
	u64 lost_calls; /* calls without data on an fd >= MAX_FDS */
	u64 children; /* forked and watched */
};

/* The I/O calls that moved no data, by outcome. */
struct io_failures {
	u64 outcomes[OUTCOMES];
	u64 futile[IO_CALLS]; /* futile calls by syscall */
	u8 why[IO_CALLS]; /* the outcome of the last futile one */
	u64 failed; /* 0 = everything here is 0 */
};

/* polls[n - 1]: those that brought n events; those that brought more than the runtime's buffer
 * holds count in the last one. */
struct polls_by_events {
	u32 polls[MOST_EVENTS];
};

/* A process by its numbers. */
struct identity {
	u32 tgid; /* in the initial pid namespace, as everywhere in this program */
	u32 level; /* of its own pid namespace; the initial one is 0 */
};

struct histogram {
	u32 buckets[LATENCY_BUCKETS];
};

/* The parts of a queue delay or a response, in ns: up to the poll that reported the data; from
 * there to the read; up to the read if nobody was parked, so that there was no wait for a poll;
 * and from the read to the write. */
struct parts {
	u64 poll;
	u64 run;
	u64 unparked;
	u64 handling;
};

/* When something was queued on a socket. end: see struct inbox. */
struct arrival {
	u64 at;
	u32 end;
	u32 unused;
};

/* A socket that a watched process reads from: what has arrived there and has not been read yet. The
 * key is the kernel's struct sock. */
struct inbox {
	u32 head; /* how many were taken, */
	u32 tail; /* and how many there have been */
	u32 end; /* for TCP the last byte's sequence number, else how many messages there have been */
	u32 owner;
	u32 fd; /* or NO_FD */
	u8 kind; /* enum socket_kind */
	u8 accepted; /* its peer sends requests, and it answers */
	u16 unused;
	u32 taken; /* of messages: as end, of the last one taken */
	struct arrival arrivals[ARRIVALS]; /* the oldest first, from head on */
};

/* The read that a descriptor's next write answers, if the wait is SOCKET_ASKED. It isn't part of
 * the inbox, because an array lookup is much faster than that of a hash. */
struct question {
	u64 read_at;
	u64 reader; /* its goroutine: address of its runtime.g */
	struct parts delay; /* of that read */
	u32 joined; /* how many more reads the same write will answer */
	u32 epoch; /* in which these count */
	u64 woken_at; /* of the wakeup that the look resolved, if the wait is SOCKET_LOOKED */
};
#define NO_FD 0xffffffff
#define SURELY_GONE 1000000 /* ns; a read that finds nothing takes less */

enum socket_kind {
	TCP_STREAM = 1,
	UNIX_STREAM = 2,
	DATAGRAMS = 3,
	LISTENER = 4,
	MPTCP_LISTENER = 5,
	UNIX_LISTENER = 6
};

enum delay { QUEUE_DELAY = 0, POLL_DELAY = 1, HANDLING = 2, RESPONSE = 3 };

/* Of a bank, on each CPU: no locked instructions, and no other CPU's cache lines. */
struct delays {
	u32 buckets[DELAYS * LATENCY_BUCKETS]; /* BCC knows arrays of one dimension */
	/* Sums over the queue delays, and the responses, of several buckets together. */
	struct parts budgets[2 * BUDGETS];
};

/* State of one direction of one fd of one process. */
struct wait {
	u64 woken_at; /* ns; 0 = no wakeup pending */
	u64 g; /* the goroutine woken: address of its runtime.g */
	u64 pd; /* its pollDesc */
	u64 sk; /* for reading: the kernel's struct sock, 0 = none or unknown */
	u32 epoch; /* when it was woken */
	u32 owner;
	u8 flags;
	u8 kept : 1; /* the owner's target is kept: its calls count in its own banks */
	u8 events : 7; /* EVENT_..., of the last event here */
	u8 socket; /* SOCKET_... */
	u8 outcome; /* how the last I/O calls ended, */
	u8 streak; /* and how many in a row did so without data */
	u32 failed_at; /* when the last of them returned, ns >> FAILED_AT_SHIFT */
};

/* The bits of epoll_event.events for one direction: the kernel's low byte, with EPOLLRDHUP moved
 * into it. */
#define EVENT_RDHUP 0x20
#define EVENT_BITS(events) (((events) & 0x1f) | ((events) & EPOLLRDHUP ? EVENT_RDHUP : 0))

/* What was seen of a socket when an offence on it was recorded. */
#define SEEN_SOCKET 1 /* it is a socket, so the other bits are valid */
#define SEEN_TWICE 2 /* it is registered with epoll more than once */
#define SEEN_QUEUED 4 /* its error queue holds something */
/* Of READY and WOKEN. */
#define SEEN_LOCKED 8 /* the woken goroutine is locked to a thread */
/* Of IO_CALL, for a read or recvfrom. */
#define SEEN_FILLED 16 /* it returned as many bytes as it asked for, so there may be more */

#define WAIT_TRIED 1 /* the last syscall returned EAGAIN */
#define WAIT_STORED 2 /* since then an event was stored in the pollDesc */
#define WAIT_ARMED 4 /* tried, and a readiness is stored: the wait returns at once */

#define SOCKET_NONE 1 /* not a socket whose arrivals can be recorded */
#define SOCKET_MESSAGES 2 /* each read takes one message */
#define SOCKET_ASKED 8 /* there is a read to be answered */
#define SOCKET_LOOKED 16 /* woken, then looked at the data (MSG_PEEK) without taking it */

/* What a descriptor was when an offence on it was recorded: it may be closed when the window
 * closes. */
struct endpoint {
	u32 inode; /* its number; 0 = unknown */
	u16 mode; /* the inode's */
	u16 type; /* of a socket, as everything below */
	u16 family;
	u16 port;
	u16 peer_port; /* in network order; 0 = not connected */
	u8 state;
	u8 several; /* the descriptor was something else at other times */
	u8 address[16]; /* IPv4: the first 4 bytes */
	u8 peer_address[16];
};

struct slow_wakeup {
	u64 latency; /* ns; 0 = free */
	u64 at; /* when it was resolved */
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
	u64 least; /* which of them is replaced next */
};

/* One of the longest queue delays or responses; its latency is the total. */
struct slow_answer {
	struct slow_wakeup wakeup;
	struct parts parts;
};

struct slow_answers {
	struct slow_answer kept[SLOWEST];
	u64 least;
};

/* Where a goroutine was parked, innermost first. */
struct parked_stack {
	u64 pc[PARKED_FRAMES]; /* 0 = no more */
};

/* READY, CPU and WOKEN aren't offences: a place that wakes goroutines, one that was seen running,
 * and one where a woken goroutine was parked. The fd, syscall and direction of the first two are 0.
 * UNCLAIMED is an event that found nobody: no syscall, no stack. HELD is a write that Nagle's
 * algorithm held back; its bytes are ns. */
enum offence {
	SPURIOUS = 0,
	STALE = 1,
	READY = 2,
	UNCLAIMED = 3,
	FUTILE = 4,
	IO_CALL = 5,
	CPU = 6,
	WOKEN = 7,
	HELD = 8
};
#define NO_STACK (-1)

struct offender {
	u32 owner;
	u32 epoch;
	s32 stack;
	u32 fd;
	u16 syscall;
	u8 direction;
	u8 offence;
	u8 outcome; /* of an I/O call */
	u8 events; /* EVENT_... that woke a spurious or stale one */
	u8 seen; /* SEEN_... */
	u8 unused;
	u64 woken; /* of READY and WOKEN: the id of the woken goroutine's stack in parked_stacks */
};

/* CPU time of the scheduler, by the call that entered it. */
struct scheduling {
	u64 pc; /* in the function that called it, such as runtime.Gosched */
	u64 caller; /* where that function returns to */
	u32 owner;
	u32 epoch;
};

struct offender_stats {
	u64 count;
	u64 bytes; /* moved by recorded I/O calls, times the number that each stands for */
	struct endpoint end;
};

#endif
