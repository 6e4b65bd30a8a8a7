"""Why a service's numbers aren't exact: a table of rules, one for each reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pytest_netpoll.errors import Reason, ServiceError, UnmeasuredError
from pytest_netpoll.meter import checks
from pytest_netpoll.meter.messages import Measured
from pytest_netpoll.meter.processes import Watched, is_go, runs_goroutines, version
from pytest_netpoll.model.metrics import not_exact

# What the agent counts as lost.
LOSSES = {
    "lost_fds": Reason("descriptors beyond the table", fix="raise --netpoll-max-fds"),
    "lost_calls": Reason("I/O calls on descriptors beyond the table", fix="raise --netpoll-max-fds"),
    "lost_processes": Reason("child processes beyond the table", fix="raise --netpoll-max-processes"),
    "lost_memory": Reason("events whose memory could not be read"),
}
_UPGRADE = "pip install --upgrade pytest-netpoll"


@dataclass(frozen=True)
class Seen:
    """A service in one window.

    processes: those counted in it. refused: why the first unwatched process could not be watched.
    follows_children: whether the kernel reports new processes to the agent.
    """

    service: Watched
    processes: Sequence[Measured]
    refused: UnmeasuredError | None
    follows_children: bool

    @property
    def proven(self) -> list[Measured]:
        """The processes whose poller is known."""
        return [process for process in self.processes if process["calibration"]["layout"]]

    @property
    def go(self) -> list[Measured]:
        return [process for process in self.processes if is_go(process)]


def why_not_exact(seen: Seen) -> Reason | None:
    """Why this service's numbers aren't exact; None if they are."""
    for rule in RULES:
        reason = rule(seen)
        if reason is not None:
            return reason
    return None


def not_watched(seen: Seen) -> Reason | None:
    return seen.refused.reason if seen.refused is not None else None


def died(seen: Seen) -> Reason | None:
    if not seen.service.stopped:
        try:
            seen.service.check_alive("during the test")
        except ServiceError as error:
            return error.reason
    return None


def absent_from_the_start(seen: Seen) -> Reason | None:
    if seen.processes:
        return None
    if seen.service.stopped:
        return Reason(
            f"service {seen.service.name!r} was stopped before the window opened",
            fix="restart it, or name the others with service=",
        )
    return Reason(f"service {seen.service.name!r} was not watched when the window opened")


def another_users(seen: Seen) -> Reason | None:
    # A process that now runs as another user may be the service if there is no other.
    for process in seen.proven or seen.go or seen.processes:
        if process["foreign"]:
            return Reason(
                f"process {process['pid']} of the service now runs as another user and can't be inspected",
                fix="run pytest as root",
            )
    return None


def undecoded_descriptors(seen: Seen) -> Reason | None:
    for process in filter(runs_goroutines, seen.processes):
        calibration = process["calibration"]
        if calibration["unproven"]:
            count = calibration["proven"] + calibration["unproven"]
            return Reason(
                f"{calibration['unproven']} of {count} descriptors of process {process['pid']} "
                f"({version(process)}) did not decode as pollDescs",
                why="a newer pytest-netpoll may support them",
                fix=_UPGRADE,
            )
    return None


def more_than_one_runtime(seen: Seen) -> Reason | None:
    for process in seen.processes:
        if process["calibration"]["more_pollers"]:
            return Reason(
                f"more than one Go runtime waits for the network in process {process['pid']}",
                why="as with two c-shared libraries; only one can be measured",
            )
    return None


def unknown_poller(seen: Seen) -> Reason | None:
    for process in seen.processes:
        why_not = process["calibration"]["why_not"]
        # A program that can't be inspected may be Go.
        if why_not and (is_go(process) or process["executable"] is None):
            where = f"process {process['pid']} ({version(process)})"
            return Reason(f"the poller of {where} is unknown", why=why_not, fix=checks.DOCTOR)
    return None


def children_not_watched(seen: Seen) -> Reason | None:
    unwatched = sum(process["unwatched"] for process in seen.processes)
    if not unwatched:
        return None
    why = LOSSES["lost_processes"]
    if not seen.follows_children:
        why = Reason(
            "child processes that this kernel doesn't report, because it has no BTF that describes processes",
            fix="start them before the test, in a fixture; if they already were, raise "
            "--netpoll-max-processes",
        )
    return why.about(f"{unwatched} not watched")


def not_go(seen: Seen) -> Reason | None:
    if seen.proven or seen.go:
        return None
    return Reason(f"{seen.service.executable or seen.service.name} is not a Go program")


def no_poller(seen: Seen) -> Reason | None:
    """A Go program has registered nothing with the runtime's poller."""
    if seen.proven:
        return None
    what = (
        f"no descriptor of service {seen.service.name!r} is registered with the Go runtime's network poller "
        f"({version(seen.go[0])})"
    )
    others = sum(process["calibration"]["others"] for process in seen.go)
    if not others:
        return Reason(what, why="it never waited for the network")
    return Reason(
        what,
        why="it never waited for the network through it, or does so in an unknown way: "
        f"{others} descriptors are registered with epoll as no known Go version does; "
        "a newer pytest-netpoll may support it",
        fix=_UPGRADE,
    )


def losses(seen: Seen) -> Reason | None:
    for name, what in LOSSES.items():
        lost = sum(process["counters"][name] for process in seen.processes)
        if lost:
            return what.about(not_exact(lost))
    return None


# The first rule that finds something counts: each relies on those before it having found nothing, and more
# specific ones come first.
RULES: tuple[Callable[[Seen], Reason | None], ...] = (
    not_watched,
    died,
    absent_from_the_start,
    another_users,
    undecoded_descriptors,
    more_than_one_runtime,
    unknown_poller,
    children_not_watched,
    not_go,
    no_poller,
    losses,
)
