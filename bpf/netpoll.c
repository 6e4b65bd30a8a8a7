/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Start here: the entry point at sys_exit, which counts the wakeups of Go's network poller.
 *
 * Every syscall of a watched process passes here when it returns. For an epoll_pwait that is
 * before the runtime's netpollready runs, so a goroutine that is found parked in a pollDesc is
 * about to be woken. The next I/O syscall on that fd and direction shows whether it was woken for
 * nothing.
 */

/* The agent loads it with the arguments' types (tp_btf) if the kernel has them. */
int syscall_returned(struct bpf_raw_tracepoint_args *ctx)
{
	u32 owner = owner_of(bpf_get_current_pid_tgid() >> 32), *role;
	long ret = ctx->args[1];
	struct poller *p;
	u32 read_fd, write_fd;
	struct wait *r, *w;
	struct args a;
	int nr;
	u64 g;

	if (!owner)
		return 0;
	if (read_args(ctx->args[0], &a))
		return 0;
	nr = a.nr;
	role = roles.lookup(&nr);
	if (!role || !*role)
		return 0;
	if (*role & (ROLE_POLL | ROLE_CTL)) {
		p = poller_of(owner);
		if (!p)
			return 0;
		if (*role & ROLE_CTL)
			ctl_returned(owner, p, &a, ret);
		else if ((s32)a.arg[0] == p->epfd)
			poll_returned(ctx, owner, &a, *role, ret);
		return 0;
	}
	if (*role & ROLE_CLOSE) {
		end_streaks(owner, ROLE_READ_ARG(*role) == 1 ? a.arg[0] : a.arg[1]);
		closed(owner, ROLE_READ_ARG(*role) == 1 ? a.arg[0] : a.arg[1]);
		return 0;
	}
	if (*role & ROLE_SOCKOPT && (a.arg[1] != SOL_SOCKET || a.arg[2] != SO_ERROR))
		return 0;
	g = goroutine(ctx->args[0]);
	read_fd = ROLE_READ_ARG(*role) == 1 ? a.arg[0] : a.arg[1];
	write_fd = ROLE_WRITE_ARG(*role) == 1 ? a.arg[0] :
		   ROLE_WRITE_ARG(*role) == 2 ? a.arg[1] :
						a.arg[2];
	r = ROLE_READ_ARG(*role) ? wait_of(owner, read_fd, DIR_READ) : 0;
	w = ROLE_WRITE_ARG(*role) ? wait_of(owner, write_fd, DIR_WRITE) : 0;
	if (r)
		resolve_wait(ctx, r, nr, read_fd, DIR_READ, ret, ROLE_MESSAGES(*role, ret),
			     ROLE_FLAGS(*role, a) & MSG_PEEK, g);
	if (w)
		resolve_wait(ctx, w, nr, write_fd, DIR_WRITE, ret, 0, 0, g);
	if (*role & ROLE_ACCEPT)
		note_accepted(owner, ret);
	/* Last, because the verifier would walk through anything after it once for each of its ends. */
	if (!(*role & ROLE_SOCKOPT))
		count_io_call(ctx, owner, *role, nr, r, read_fd, w, write_fd, a.arg[2], ret);
	if (ret >= 0 && keeps(KEEP_HELD_WRITES))
		continuations.call(ctx, LOOK_AT_WRITE);
	return 0;
}
