/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Calibration: which epoll instance is the runtime's, and how its pollDescs are laid out. Both
 * are proven at the first registration, and each later one is checked.
 */

/* The address of the pollDesc, from epoll_event.data. */
static __always_inline u64 unpack(u64 data, const struct layout *l)
{
#ifdef NETPOLL_AARCH64
	return data >> (l->right & 63) << (l->left & 63);
#else
	return (s64)data >> (l->right & 63) << (l->left & 63);
#endif
}

/* Whether this registration decodes to a pollDesc that holds its fd and on which nobody waits yet;
 * an event may already be stored there. */
static __always_inline int proves(u64 data, u64 fd, const struct layout *l)
{
	u64 pd[PD_WORDS];

	if (bpf_probe_read_user(pd, sizeof(pd), (void *)unpack(data, l)) || pd[PD_FD] != fd)
		return 0;
	if ((data ^ pd[PD_FDSEQ]) & ((1ULL << (l->tag_bits & 63)) - 1))
		return 0;
	return l->waiters == 3 ? (pd[3] | pd[4]) <= PD_READY : (pd[4] | pd[5]) <= PD_READY;
}

static __always_inline void note_candidate(struct poller *p, s32 epfd, u64 fd, u64 data)
{
	struct candidate *c = 0;
	int i;

#pragma clang loop unroll(full)
	for (i = 0; i < CANDIDATES; i++)
		if (p->candidates[i].epfd == epfd)
			c = &p->candidates[i];
	if (!c)
		c = &p->candidates[p->candidates_seen++ & (CANDIDATES - 1)];
	c->data = data;
	c->fd = fd;
	c->epfd = epfd;
	c->unproven = 0;
}

/* Whether the candidate's data leads to its fd. */
static __always_inline int has_own_wakeup(const struct candidate *c)
{
	u64 fd = 0;

	return !c->data || (!bpf_probe_read_user(&fd, sizeof(fd), (void *)c->data) && fd == c->fd);
}

/* Proves the layout in the kernel, so that no event is missed, and so that services that open
 * their first socket late and children that have just exec'ed are calibrated, too. Anything that
 * it proves after that is a second runtime in the same process, such as another c-shared
 * library's. */
static __always_inline void calibrate(struct poller *p, s32 epfd, u64 fd, u32 events, u64 data)
{
	struct candidate *c = 0;
	int i;

	if (events == EPOLLIN) {
		note_candidate(p, epfd, fd, data);
		return;
	}
	if (events != GO_EVENTS)
		return;
#pragma clang loop unroll(full)
	for (i = 0; i < CANDIDATES; i++)
		if (p->candidates[i].epfd == epfd)
			c = &p->candidates[i];
	if (!c || !has_own_wakeup(c))
		return;
#pragma clang loop unroll(full)
	for (i = 0; i < LAYOUTS; i++) {
		int key = i;
		struct layout *l = layouts.lookup(&key);

		if (l && proves(data, fd, l)) {
			if (p->epfd != NO_EPFD) {
				p->more_pollers++;
				return;
			}
			p->layout = *l;
			p->break_data = c->data;
			p->unproven = c->unproven;
			p->proven++;
			p->epfd = epfd;
			return;
		}
	}
	c->unproven++;
}

/* epoll_ctl has returned. */
static __always_inline void ctl_returned(u32 owner, struct poller *p, const struct args *a,
					 long ret)
{
	u32 event[EVENT_WORDS];
	s32 epfd = a->arg[0];
	u32 op = a->arg[1];
	u64 fd = (u32)a->arg[2];
	struct wait *w = wait_of(owner, fd, DIR_READ);
	int direction, accepted;
	u64 data;

	if (ret)
		return;
	accepted = w && w->socket & SOCKET_ACCEPTED;
	if (epfd == p->epfd) {
		/* The runtime registers after open and removes before close, in the same thread.
		 * So an fd's life begins and ends here; close itself could race with the fd's
		 * reuse. */
#pragma clang loop unroll(full)
		for (direction = DIR_READ; direction <= DIR_WRITE; direction++)
			reset_wait(owner, fd, direction);
	}
	if (op != EPOLL_CTL_ADD)
		return;
	if (bpf_probe_read_user(event, sizeof(event), (void *)a->arg[3]))
		return;
	data = (u64)event[EVENT_DATA + 1] << 32 | event[EVENT_DATA];
	if (w && event[0] == GO_EVENTS)
		note_socket(w, owner, fd, accepted);
	if (epfd != p->epfd) {
		calibrate(p, epfd, fd, event[0], data);
	} else if (proves(data, fd, &p->layout)) {
		p->proven++;
	} else {
		p->unproven++;
	}
}
