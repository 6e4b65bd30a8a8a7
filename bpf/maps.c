/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * The maps that several topics use; other maps are in the file of their topic.
 *
 * The agent joins these files in the order of SOURCES (agent/bpf/program.py): each uses only what
 * comes before it. They are written in BCC's dialect, and only use what BCC 0.18 compiles: no
 * subprograms, no globals, no kernel headers (see stub/).
 */
#include <uapi/linux/ptrace.h>
#include "netpoll.h"
#include "uapi.h"
#include "go.h"

BPF_ARRAY(watched, u64, WATCHED_ENTRIES); /* tgid << 32 | owner; 0 = not watched */
BPF_ARRAY(roles, u32, SYSCALLS);
BPF_ARRAY(layouts, struct layout, LAYOUTS);
BPF_ARRAY(settings, struct settings, 1);
BPF_ARRAY(kept_epochs, struct kept_epochs, 1);
BPF_ARRAY(targets, struct target, MAX_PROCESSES);
BPF_ARRAY(pollers, struct poller, MAX_PROCESSES);
BPF_ARRAY(waits, struct wait, MAX_PROCESSES * MAX_FDS * 2);
BPF_PERCPU_ARRAY(counts, struct counters, ALL_BANKS);
BPF_ARRAY(latencies, struct histogram, ALL_BANKS);
BPF_PERCPU_ARRAY(delays, struct delays, ALL_BANKS);
BPF_PERCPU_ARRAY(slowest, struct slowest, ALL_BANKS);
BPF_PERCPU_ARRAY(slow_answers, struct slow_answers, ALL_BANKS * 2); /* of reads, of answers */
BPF_STACK_TRACE(stacks, STACKS);
BPF_STACK_TRACE(more_stacks, STACKS);
BPF_HASH(offenders, struct offender, struct offender_stats, 16384);
BPF_ARRAY(sampling, u32, SAMPLINGS); /* SAMPLE_...: record one in this many; 0 = none */
BPF_QUEUE(free_slots, u32, MAX_PROCESSES);
