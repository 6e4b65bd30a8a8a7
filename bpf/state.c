/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Looks up the state of a process: its owner, and with that its target, poller, counters and
 * waits.
 */

static __always_inline struct settings *current_settings(void)
{
	int zero = 0;

	return settings.lookup(&zero);
}

static __always_inline u32 current_epoch(void)
{
	struct settings *s = current_settings();

	return s ? s->epoch : 0;
}

static __always_inline u64 *watched_entry(u32 tgid)
{
	int key = tgid & (WATCHED_ENTRIES - 1);

	return watched.lookup(&key);
}

/* 0 if the process is not watched. */
static __always_inline u32 owner_of(u32 tgid)
{
	u64 *entry = watched_entry(tgid);

	return entry && *entry >> 32 == tgid ? (u32)*entry : 0;
}

static __always_inline struct target *target_of(u32 owner)
{
	int key = SLOT(owner);

	return targets.lookup(&key);
}

static __always_inline void reset_poller(struct poller *p, u32 owner)
{
	__builtin_memset(p, 0, sizeof(*p));
	p->epfd = NO_EPFD;
	p->candidates[0].epfd = NO_EPFD;
	p->candidates[1].epfd = NO_EPFD;
	p->candidates[2].epfd = NO_EPFD;
	p->candidates[3].epfd = NO_EPFD;
	p->owner = owner;
}

static __always_inline struct poller *poller_of(u32 owner)
{
	int key = SLOT(owner);
	struct poller *p = pollers.lookup(&key);

	/* Left by an earlier process in this slot, or by the program that this one ran before. */
	if (p && p->owner != owner)
		reset_poller(p, owner);
	return p;
}

static __always_inline struct counters *counters_of(u32 owner, u32 epoch)
{
	int key = BANK(owner, epoch);

	return counts.lookup(&key);
}

static __always_inline struct wait *wait_of(u32 owner, u64 fd, int direction)
{
	struct wait *w;
	int key;

	if (fd >= MAX_FDS)
		return 0;
	key = (SLOT(owner) * MAX_FDS + fd) * 2 + direction;
	w = waits.lookup(&key);
	if (w && w->owner != owner) {
		/* Left by an earlier process in this slot. */
		w->woken_at = 0;
		w->flags = 0;
		w->kept = 0;
		w->streak = 0;
		w->sk = 0;
		w->socket = 0;
		w->owner = owner;
	}
	return w;
}

/* The epoch in whose bank a wakeup of the given epoch counts; 0 if it counts nowhere. */
static __always_inline u32 kept_epoch(u32 epoch)
{
	int zero = 0, i;
	struct kept_epochs *kept = kept_epochs.lookup(&zero);
	u32 last = 0;

	if (!kept)
		return 0;
	if (kept->of_bank[epoch & (BANKS - 1)] == epoch)
		return epoch;
#pragma clang loop unroll(full)
	for (i = 0; i < BANKS; i++) {
		u32 other = kept->of_bank[i];

		if (other <= epoch && other > last)
			last = other;
	}
	return last;
}

/* what: KEEP_...; any of them suffices. */
static __always_inline int keeps(u32 what)
{
	struct settings *s = current_settings();

	return s && s->keeping & what;
}

/* The owner in whose banks a process's calls and children count. A server may run many programs
 * that never poll. If each had its own numbers, it would keep its slot, so they count for the
 * server. */
static __always_inline u32 charged_owner(u32 owner)
{
	struct target *t = target_of(owner), *charged;
	int slot;

	if (!t || t->kept)
		return owner;
	slot = t->charged_slot;
	charged = targets.lookup(&slot);
	if (charged && charged->kept && charged->root == t->root)
		return slot + 1;
	t->kept = 1; /* that process is long gone */
	return owner;
}
