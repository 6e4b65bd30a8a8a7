"""The privileged side: loads the BPF program and answers questions about windows.

Run as `python3 -I agent` by the system's Python, which alone can import BCC. Speaks JSON, one message a
line, on stdin and stdout; stderr is for humans. Ends, and with it everything in the kernel, when stdin
closes, while it compiles too. It never writes a file and never starts a program. Once the program is loaded
it gives up its privileges, and it tells a user of that user's own processes only.

    → {"id": 0, "do": "load", "max_processes": 16, "max_fds": 16384, "uprobes": 1}
    ← {"ready": {…}}   or   {"failed": {"what": …, "fix": …}}
    → {"id": 1, "do": "watch", "pid": 4242}
    ← {"id": 1, "ok": {…}}   or   {"id": 1, "error": {"what": …, "fix": …}}

Nothing is on the command line, so that a line in sudoers can allow exactly this and nothing else.
"""

import contextlib
import json
import os
import platform
import signal
import sys
import time

PROTOCOL = 2
# Says that the files need not be root's alone: for whoever may do as root what they like anyway.
UNVERIFIED = "--unverified"
HERE = os.path.dirname(os.path.abspath(__file__))
MAX_SETTLE_MS = 1000


class BadMessage(Exception):
    """A message that is not understood; the text says what is wrong with it."""


class Unrelated(ImportError):
    """The `bcc` of PyPI, which is about crystal lattices."""


def load_bcc():
    """The bcc module. Raises ImportError with what is wrong."""
    import bcc

    if not hasattr(bcc, "BPF"):
        raise Unrelated(
            "%s is not BCC but an unrelated package of that name" % getattr(bcc, "__file__", "bcc")
        )
    return bcc


def install_command():
    """The command that installs BCC on this distribution."""
    release = {}
    try:
        with open("/etc/os-release") as f:
            for line in f:
                name, _, value = line.strip().partition("=")
                release[name] = value.strip('"')
    except OSError:
        pass
    family = " ".join((release.get("ID", ""), release.get("ID_LIKE", "")))
    if "debian" in family or "ubuntu" in family:
        return "sudo apt-get install python3-bpfcc"
    if "fedora" in family or "rhel" in family:
        return "sudo dnf install python3-bcc"
    if "arch" in family:
        return "sudo pacman -S python-bcc"
    return "install your distribution's Python bindings of BCC"


class Agent:
    def __init__(self, kernel, timers, may_watch, may_probe):
        import goready
        import offenders
        import scheduler
        import timeline
        import watch
        import windows

        self._goready = goready
        self._offenders = offenders
        self._scheduler = scheduler
        self._timeline = timeline
        self._watch = watch
        self._kernel = kernel
        self._timers = timers
        self._windows = windows.Windows(kernel)
        self._processes = watch.Processes(kernel, self._windows, may_watch)
        self._at_open = {}  # window -> {root: (CPU ns used, ns waited)}
        self._timelines = {}  # window -> Timeline
        self._keep_unclaimed = {}  # window -> whether it is to tell where events found nobody
        self._probes = goready.Probes(kernel, may_probe)
        self._schedulers = scheduler.Schedulers()
        self._sampling = []  # timers, while a window is open

    def watch(self, pid):
        self._processes.watch(pid)
        return {"processes": [self._about(p) for p in self._processes.of(pid)]}

    def unwatch(self, pid):
        self._processes.unwatch(pid)
        self._probes.release(self._live())
        return {}

    def programs(self):
        """All processes, and what is known of the programs that they run."""
        self._processes.refresh()
        return {"processes": [self._about(p) for p in self._live()]}

    def attach(self, pid, ready, deadline):
        try:
            self._probes.attach(self._find(pid), ready, deadline)
        except self._goready.BadPlace as error:
            raise self._watch.Refused(str(error)) from error
        return {}

    def learn(self, pid, **layout):
        if not self._schedulers.learn(self._find(pid), self._scheduler.Layout(**layout)):
            raise self._watch.Refused("the memory of process %d does not hold the scheduler's counters" % pid)
        return {}

    def _find(self, pid):
        self._processes.refresh()
        for process in self._live():
            if process.pid == pid and not process.exited and not process.foreign:
                return process
        raise self._watch.Refused("process %d is not watched" % pid)

    def open(self, ready_stacks, unclaimed):
        self._refresh()
        self._processes.reap()
        self._sample()
        self._kernel.keep(True, unclaimed or any(self._keep_unclaimed.values()))
        window = self._windows.open(self._processes.slots())
        self._at_open[window] = self._times()
        self._timelines[window] = self._timeline.Timeline(self._beginning())
        self._probes.open(window, ready_stacks)
        self._keep_unclaimed[window] = unclaimed
        self._schedulers.open(window, self._live())
        if not self._sampling:
            self._sampling = [
                self._timers.every(self._timeline.PERIOD, self._tick),
                self._timers.every(self._scheduler.PERIOD, self._sample_schedulers),
            ]
        return {"window": window}

    def close(self, window, settle_ms):
        answer, _ = self._end(window, settle_ms, self._windows.close)
        del self._at_open[window], self._timelines[window]
        self._schedulers.close(window)
        self._probes.close(window)
        del self._keep_unclaimed[window]
        self._kernel.keep(self._windows.any_open, any(self._keep_unclaimed.values()))
        if not self._windows.any_open:
            for timer in self._sampling:
                self._timers.cancel(timer)
            self._sampling = []
            self._kernel.forget_culprits()
        self._processes.reap()
        return answer

    def lap(self, window, settle_ms):
        """Ends the window and opens the next one, of the same number, at the same cut."""
        self._refresh()
        # What has ended before the cut cannot count in the new window: for whom watches for hours.
        ended = [p for p in self._live() if p.exited]
        answer, cut = self._end(window, settle_ms, self._windows.lap)
        self._timelines[window] = self._timeline.Timeline(self._beginning())
        if len(self._at_open) == 1:
            self._offenders.forget(self._kernel, cut)
            self._processes.free(ended)
        return answer

    def _end(self, window, settle_ms, cut):
        """(the answer, the first epoch after the window). cut: ends the window; CPU time counts anew."""
        if window not in self._at_open:
            raise BadMessage("window %r is not open" % window)
        self._processes.refresh()
        closed = cut(window, self._processes.slots())
        # Children forked since: they ran in the window, if only for its last moment.
        self._processes.refresh()
        self._processes.miss_children()
        self._sample()
        scheduled = self._schedulers.lap(window, self._live())
        kept = self._kept(window)
        at_open, timeline = self._at_open[window], self._timelines[window]
        at_close = self._at_open[window] = self._times()
        self._windows.settled(closed.end - 1, self._processes.slots(), min(settle_ms, MAX_SETTLE_MS) / 1000)
        banks = {p.slot: self._windows.sum(p.slot, closed) for p in self._live()}
        for process in self._live():
            if process.foreign:
                banks[process.slot].forget()
        timeline.add(
            closed.closed - closed.opened,
            self._by_root(lambda p, names: [banks[p.slot].counters[name] for name in names]),
        )
        offences = [kept[name] for name in kept if any(bank.counters[name] for bank in banks.values())]
        found = self._offenders.kept(self._kernel, closed, offences)
        services = {}
        for root in sorted(self._processes.roots()):
            services[root] = [
                self._process(p, closed, banks[p.slot], scheduled[p.owner], found)
                for p in self._processes.of(root)
            ]
        answer = {
            "duration_ns": closed.closed - closed.opened,
            "services": services,
            "timelines": {root: timeline.of(root) for root in services},
            "times": {
                root: self._watch.passed(at_open.get(root, (0, 0)), at_close[root]) for root in services
            },
        }
        return answer, closed.end

    def _tick(self):
        self._processes.refresh()
        self._sample()
        for window, timeline in self._timelines.items():
            timeline.add(self._windows.age(window), self._states(window))

    def _sample(self):
        for process in self._live():
            process.sample()

    def _sample_schedulers(self):
        self._schedulers.sample(self._live())

    def _beginning(self):
        """What a window begins with: it has counted nothing, whatever was since its cut."""
        return self._by_root(lambda _, names: [0] * len(names))

    def _states(self, window):
        return self._by_root(lambda p, names: self._windows.so_far(p.slot, window, names))

    def _by_root(self, counters):
        """{root: timeline.State}. counters: (process, names) -> [int]."""
        names = self._timeline.COUNTERS
        states = {}
        for root in self._processes.roots():
            processes = self._processes.of(root)
            _, waited = self._processes.times(root)
            states[root] = self._timeline.total(
                [counters(p, names) for p in processes],
                waited,
                sum(p.threads for p in processes),
                sum(p.running for p in processes),
            )
        return states

    def _times(self):
        return {root: self._processes.times(root) for root in self._processes.roots()}

    def _live(self):
        return [p for root in self._processes.roots() for p in self._processes.of(root)]

    def _refresh(self):
        self._processes.refresh()
        self._processes.adopt()
        for process in self._live():
            self._processes.calibrate(process)

    def _about(self, process):
        return {
            "pid": process.pid,
            "root": process.root,
            "executable": process.executable,
            "exited": process.exited,
            "unwatched": process.unwatched,
            "foreign": process.foreign,
            "calibration": process.calibration(),
            "goready": self._probes.of(process) is not None,
            "scheduler": self._schedulers.knows(process),
        }

    def _kept(self, window):
        """{counter: the offence that it is the total of}, as far as the window is to tell whose they were."""
        kept = {"spurious_wakeups": "spurious", "stale_retries": "stale"}
        if self._keep_unclaimed[window]:
            kept["unclaimed_events"] = "unclaimed"
        if self._probes.keeps_stacks(window):
            kept["ready_calls"] = "ready"
        return kept

    def _process(self, process, window, bank, scheduled, found):
        latency_max = bank.counters.pop("latency_max")
        about = self._about(process)
        about.update(
            counters=bank.counters,
            histogram=bank.histogram,
            latency_max_ns=latency_max,
            offenders=self._offenders.culprits(self._kernel, process, found),
            slowest=self._offenders.slowest(self._kernel, process, bank.slowest, window),
            dispatches=scheduled.dispatches,
            runq_max=scheduled.runq_max,
            **self._probes.counted(process, window, bank.counters),
        )
        return about


# command -> its arguments, all of which must be there, as integers.
COMMANDS = {
    "about": (),
    "load": ("max_processes", "max_fds", "uprobes"),
    "watch": ("pid",),
    "unwatch": ("pid",),
    "programs": (),
    "attach": ("pid", "ready", "deadline"),
    "learn": ("pid", "allp", "runqsize", "number", "status", "schedtick", "runqhead"),
    "open": ("ready_stacks", "unclaimed"),
    "close": ("window", "settle_ms"),
    "lap": ("window", "settle_ms"),
}
# What only the first message can be; about asks for nothing but which BCC there is.
FIRST = ("about", "load")


def parse(line):
    """(id, command, arguments). line: of Timers.lines. Raises BadMessage."""
    if line is None:
        raise BadMessage("it is too long")
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadMessage("not JSON: %s" % error) from error
    if not isinstance(message, dict):
        raise BadMessage("not an object")
    arguments = COMMANDS.get(message.get("do")) if isinstance(message.get("do"), str) else None
    if arguments is None:
        raise BadMessage("unknown command %r" % message.get("do"))
    values = {}
    for name in arguments:
        value = message.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31:
            raise BadMessage("%s needs %s, a whole number" % (message["do"], name))
        values[name] = value
    return message.get("id"), message["do"], values


def serve(agent, lines, send):
    """Answers until the lines end."""
    import watch

    for line in lines:
        identity = None
        try:
            identity, command, arguments = parse(line)
            if command in FIRST:
                raise BadMessage("everything is loaded already")
            send({"id": identity, "ok": getattr(agent, command)(**arguments)})
        except BadMessage as error:
            send({"id": identity, "error": {"what": "the agent refused a message: %s" % error}})
        except watch.Refused as error:
            send({"id": identity, "error": {"what": str(error), "fix": error.fix}})


def resident_bytes():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def sources():
    """The directory of netpoll.c: beside the agent, or beside the package in a checkout."""
    parent = os.path.dirname(HERE)
    installed = os.path.join(parent, "bpf")
    return installed if os.path.isdir(installed) else os.path.join(os.path.dirname(parent), "bpf")


class Unable(Exception):
    """The agent cannot do its work; the message says why."""

    def __init__(self, what, fix=None):
        super().__init__(what)
        self.fix = fix


def verify():
    """Raises Unable unless nobody but root can change what runs here."""
    import trust

    for path in (HERE, sources()):
        reason = trust.distrust(path)
        if reason is not None:
            raise Unable(
                "the agent refuses to run as root where others can change it: %s" % reason,
                "remove it and install it again: python -m pytest_netpoll install-agent",
            )


def import_bcc():
    """The bcc module. Raises Unable."""
    try:
        return load_bcc()
    except ImportError as error:
        what = "BCC's Python module cannot be imported by %s: %s" % (sys.executable, error)
        fix = install_command()
        if isinstance(error, Unrelated):
            fix = "sudo %s -m pip uninstall bcc; %s" % (sys.executable, fix)
        raise Unable(what, fix) from error


def about():
    """Which BCC there is; needs no privileges. Raises Unable."""
    bcc = import_bcc()
    return {"bcc": bcc.__version__, "bcc_file": bcc.__file__, "python": platform.python_version()}


def load(user, timers, max_processes, max_fds, uprobes):
    """(Agent, what to say of it) with the program in the kernel and privileges given up. Raises Unable.

    uprobes: whether probes are to be placed in programs later, which takes a privilege more.
    """
    import privileges

    started = time.monotonic()
    problem = privileges.why_not()
    if problem is not None:
        raise Unable(*problem)
    bcc = import_bcc()
    import footprint
    import hangup
    import kernel

    if not user.is_root:
        problem = footprint.too_large(max_processes, max_fds, len(bcc.utils.get_possible_cpus()))
        if problem is not None:
            raise Unable(*problem)
    try:
        # A second on an idle machine, many on a busy one; whoever started us may be killed meanwhile.
        with hangup.ends_with(sys.stdin.fileno()):
            loaded = kernel.Kernel(bcc, sources(), max_processes, max_fds)
    except kernel.LoadFailed as error:
        raise Unable("the BPF program could not be loaded: %s" % error, error.fix) from error
    kept = privileges.drop(user, loaded.works, privileges.PROBING if uprobes else ())
    agent = Agent(
        loaded,
        timers,
        lambda pid: user.is_root or privileges.owns(user, pid),
        lambda program: user.is_root or program.st_uid == user.uid,
    )
    return agent, {
        "protocol": PROTOCOL,
        "bcc": bcc.__version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "capabilities": kept,
        "follows_children": loaded.follows_children,
        "typed": loaded.typed,
        "startup_seconds": time.monotonic() - started,
        "resident_bytes": resident_bytes(),
    }


def main():
    import privileges

    user = privileges.invoker(os.environ)
    # Nothing here is the user's to say: neither what BCC compiles and how, nor from where.
    os.environ.clear()
    os.environ["PATH"] = os.defpath
    os.chdir("/")
    # The protocol keeps stdout for itself: BCC and LLVM may print.
    wire = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # Ctrl-C is pytest's to handle; the agent ends when its stdin does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def send(message):
        wire.write(json.dumps(message, separators=(",", ":")) + "\n")
        wire.flush()

    import sampler

    timers = sampler.Timers()
    lines = timers.lines(sys.stdin.fileno())
    with contextlib.suppress(BrokenPipeError):
        try:
            if sys.argv[1:] != [UNVERIFIED]:
                verify()
            _, command, arguments = parse(next(lines, ""))
            if command not in FIRST:
                raise BadMessage("the first is load, not %s" % command)
            if command == "about":
                send({"about": about()})
                return 0
            agent, ready = load(user, timers, **arguments)
        except (Unable, BadMessage) as error:
            send({"failed": {"what": str(error), "fix": getattr(error, "fix", None)}})
            return 1
        send({"ready": ready})
        serve(agent, lines, send)
    return 0


if __name__ == "__main__":
    sys.exit(main())
