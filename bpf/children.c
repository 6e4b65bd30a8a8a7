/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Follows a watched process: the programs that it execs, the children that it forks, and its exit.
 */

#ifdef PID_NAMESPACE_INODE
/* The agent may be in its own pid namespace, where processes have other numbers than here. To ask
 * for a process's number, the agent calls waitid on the process. The call fails and has no effect
 * on the process. */
BPF_ARRAY(asked, struct identity, 1);
BPF_ARRAY(agent, struct identity, 1); /* by its number in its own namespace */

#define UPID_SIZE 16

RAW_TRACEPOINT_PROBE(sched_process_wait)
{
	struct bpf_pidns_info waiting = {};
	struct identity *answer, *asker;
	int zero = 0;

	asker = agent.lookup(&zero);
	if (!asker ||
	    bpf_get_ns_current_pid_tgid(PID_NAMESPACE_DEVICE, PID_NAMESPACE_INODE, &waiting,
					sizeof(waiting)) ||
	    waiting.tgid != asker->tgid)
		return 0;
	answer = asked.lookup(&zero);
	if (!answer)
		return 0;
	bpf_probe_read_kernel(&answer->tgid, sizeof(u32),
			      (void *)(ctx->args[0] + PID_NUMBERS_OFFSET));
	bpf_probe_read_kernel(&answer->level, sizeof(u32),
			      (void *)(ctx->args[0] + PID_LEVEL_OFFSET));
	return 0;
}

/* The number by which the agent knows a process. */
static __always_inline u32 local_number(u64 task)
{
	int zero = 0;
	struct identity *here = agent.lookup(&zero);
	u32 number = 0, levels = 0;
	u64 pid = 0;

	if (!here)
		return 0;
	bpf_probe_read_kernel(&pid, sizeof(pid), (void *)(task + TASK_THREAD_PID_OFFSET));
	/* It has a number in each namespace down to its own. */
	if (bpf_probe_read_kernel(&levels, sizeof(levels), (void *)(pid + PID_LEVEL_OFFSET)) ||
	    levels < here->level)
		return 0;
	bpf_probe_read_kernel(&number, sizeof(number),
			      (void *)(pid + PID_NUMBERS_OFFSET + here->level * UPID_SIZE));
	return number;
}
#else
#define local_number(task) 0
#endif

/* Gives the slot a new owner, so that its waits and its poller become invalid. */
static __always_inline void assign_owner(u64 *entry, struct target *t, u32 slot)
{
	t->since = bpf_ktime_get_ns();
	t->owner = (u32)(t->since >> 10) << SLOT_BITS | (slot + 1);
	*entry = (u64)t->tgid << 32 | t->owner;
}

#ifdef TASK_CRED_OFFSET
BPF_ARRAY(served_uid, u32, 1);

/* How a program may be dumped, and so inspected: 1 by its user, 0 by nobody, 2 by root. */
static __always_inline u32 dumpable(u64 task)
{
#ifdef TASK_EXEC_STATE_OFFSET
	u32 how = 0;

	READ_MEMBER(how, kernel_word(task + TASK_EXEC_STATE_OFFSET) + EXEC_STATE_DUMPABLE_OFFSET);
	return how;
#else
	/* The lowest two bits of mm_struct.flags. */
	return kernel_word(kernel_word(task + TASK_MM_OFFSET) + MM_FLAGS_OFFSET) & 3;
#endif
}

/* Whether the user we serve may inspect the program that was just exec'ed, by the kernel's rules
 * for tracers: no other ids, no capabilities gained from the program's file, and dumpable. */
static __always_inline int user_may_inspect(const struct target *t)
{
	u64 task = bpf_get_current_task();
	u64 cred = kernel_word(task + TASK_CRED_OFFSET);
	u64 users = kernel_word(cred + CRED_USER_NS_OFFSET);
	u32 uid = 0, euid = 0, suid = 0, fsuid = 0, gid = 0, egid = 0, sgid = 0, fsgid = 0,
	    level = 0, *served;
	int zero = 0;

	served = served_uid.lookup(&zero);
	if (!served)
		return 0;
	/* What can't be read doesn't count as allowed. */
	if (READ_MEMBER(uid, cred + CRED_UID_OFFSET) ||
	    READ_MEMBER(euid, cred + CRED_EUID_OFFSET) ||
	    READ_MEMBER(suid, cred + CRED_SUID_OFFSET) ||
	    READ_MEMBER(fsuid, cred + CRED_FSUID_OFFSET) ||
	    READ_MEMBER(gid, cred + CRED_GID_OFFSET) ||
	    READ_MEMBER(egid, cred + CRED_EGID_OFFSET) ||
	    READ_MEMBER(sgid, cred + CRED_SGID_OFFSET) ||
	    READ_MEMBER(fsgid, cred + CRED_FSGID_OFFSET) ||
	    READ_MEMBER(level, users + USER_NS_LEVEL_OFFSET))
		return 0;
	if (uid != *served || euid != uid || suid != uid || fsuid != uid)
		return 0;
	if (egid != gid || sgid != gid || fsgid != gid)
		return 0;
	if (dumpable(task) != 1)
		return 0;
	/* In a user namespace of its own it has all capabilities; they do not count outside. */
	return level || !(kernel_word(cred + CRED_CAPABILITIES_OFFSET) & ~t->capabilities);
}
#else
#define user_may_inspect(t) 1 /* root may inspect everything */
#endif

/* A new program: the old one's calibration is void. If the user may not inspect it, it is
 * dropped before its first instruction. */
RAW_TRACEPOINT_PROBE(sched_process_exec)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	u32 owner = owner_of(tgid);
	u64 *entry = watched_entry(tgid);
	struct target *t;

	if (!owner || !entry)
		return 0;
	t = target_of(owner);
	if (!t)
		return 0;
	if (!user_may_inspect(t)) {
		*entry = 0;
		t->kept = 1; /* until the agent has seen it */
		t->foreign = 1;
		return 0;
	}
	assign_owner(entry, t, SLOT(owner));
	return 0;
}

#ifdef TASK_TGID_OFFSET
/* A watched process forks: its child is watched too. */
RAW_TRACEPOINT_PROBE(sched_process_fork)
{
	u32 parent = bpf_get_current_pid_tgid() >> 32;
	u32 owner = owner_of(parent);
	struct target *p, *t;
	struct counters *c;
	u32 child = 0, slot;
	u64 *entry;
	int key;

	if (!owner)
		return 0;
	bpf_probe_read_kernel(&child, sizeof(child), (void *)(ctx->args[1] + TASK_TGID_OFFSET));
	if (child == parent)
		return 0;
	p = target_of(owner);
	entry = watched_entry(child);
	if (!p || !entry)
		return 0;
	if (*entry || free_slots.pop(&slot)) {
		c = counters_of(owner, current_epoch());
		if (c)
			c->lost_processes++;
		__sync_fetch_and_add(&p->lost_children, 1);
		p->kept = 1;
		return 0;
	}
	key = slot;
	t = targets.lookup(&key);
	if (!t)
		return 0;
	/* Until it execs, the child shares the parent's memory but polls nothing itself. */
	__builtin_memset(t, 0, sizeof(*t));
	t->tgid = child;
	t->root = p->root;
	t->charged_slot = p->kept ? SLOT(owner) : p->charged_slot;
	t->capabilities = p->capabilities;
	t->local = local_number(ctx->args[1]);
	assign_owner(entry, t, slot);
	c = counters_of(charged_owner(owner), current_epoch());
	if (c)
		c->children++;
	return 0;
}

RAW_TRACEPOINT_PROBE(sched_process_exit)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	u32 owner = owner_of(tgid);
	u64 *entry = watched_entry(tgid);
	u32 slot = SLOT(owner);
	u64 signal = 0;
	u32 live = 0;
	struct target *t;

	if (!owner || !entry)
		return 0;
	/* The process ends with its last thread. The main thread may exit first, as it does when
	 * another one execs. */
	if (bpf_probe_read_kernel(&signal, sizeof(signal),
				  (void *)(ctx->args[0] + TASK_SIGNAL_OFFSET)) ||
	    bpf_probe_read_kernel(&live, sizeof(live), (void *)(signal + SIGNAL_LIVE_OFFSET)) ||
	    live)
		return 0;
	t = target_of(owner);
	if (!t)
		return 0;
	*entry = 0;
	t->exited = 1;
	/* A child that never polled has no numbers: its calls counted for the charged slot. A
	 * process that has some keeps its slot until the agent has read them. */
	if (!t->kept) {
		t->tgid = 0;
		free_slots.push(&slot, 0);
	}
	return 0;
}
#endif
