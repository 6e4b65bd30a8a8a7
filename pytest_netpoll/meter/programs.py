"""Counts more than wakeups for the programs that allow it: ready calls, the scheduler's counters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

from pytest_netpoll.errors import Reason, UnmeasuredError
from pytest_netpoll.gobinary import ready_sites, scheduler_layout
from pytest_netpoll.gobinary.elf import Key, key_of
from pytest_netpoll.gobinary.go_version import go_version_of_program
from pytest_netpoll.gobinary.scheduler_layout import SchedulerLayout
from pytest_netpoll.meter.agent_client import Agent
from pytest_netpoll.meter.messages import Measured, Process

T = TypeVar("T")


class Programs:
    """Asks the agent for what each program allows, and remembers refusals. count_ready: whether to count
    ready calls, which costs time.
    """

    def __init__(self, count_ready: bool) -> None:
        self.count_ready = count_ready
        self._sites: dict[Key, ready_sites.Sites | UnmeasuredError] = {}
        self._layouts: dict[Key, SchedulerLayout | UnmeasuredError] = {}
        # The agent's last refusals, by (subject, program).
        self._refusals: dict[tuple[str, Key], UnmeasuredError] = {}

    def prepare(self, agent: Agent, processes: Iterable[Process]) -> None:
        """Prepares processes. Refusals are recorded, not raised."""
        for process in processes:
            pid, path = process["pid"], process["executable"]
            if process["exited"] or not path or go_version_of_program(path) is None:
                continue
            if self.count_ready and not process["goready"]:
                self._ask("goready", path, partial(self._attach, agent, pid))
            if not process["scheduler"]:
                self._ask("scheduler", path, partial(self._learn, agent, pid))

    def why_no_ready_calls(self, process: Measured) -> Reason:
        return self._why("goready", process)

    def why_no_deadlines(self, process: Measured) -> Reason:
        if process["ready_calls"] is None:
            return self._why("goready", process)
        version = go_version_of_program(process["executable"] or "")
        return Reason(f"{ready_sites.DEADLINE} is not there in {version}")

    def why_no_scheduler(self, process: Measured, group: str) -> Reason:
        """group: the first name of one of scheduler_layout's groups that is unknown for the process."""
        if process["exited"]:
            return Reason(f"process {process['pid']} has ended, and its memory with it")
        layout = self._layouts.get(key_of(process["executable"] or ""))
        if isinstance(layout, SchedulerLayout) and group in layout.lacks:
            return layout.lacks[group]
        return self._why("scheduler", process)

    def _why(self, subject: str, process: Measured) -> Reason:
        path = process["executable"] or ""
        if go_version_of_program(path) is None:
            return Reason(f"the program of process {process['pid']}, {process['executable']}, cannot be read")
        refusal = self._refusals.get((subject, key_of(path)))
        if refusal is not None:
            return refusal.reason
        return Reason(
            f"process {process['pid']} began to run {path} while it was measured",
            why="part of that was missed",
            fix="start it before, in a fixture",
        )

    def _ask(self, subject: str, path: str, ask: Callable[[Key], None]) -> None:
        key = key_of(path)
        self._refusals.pop((subject, key), None)
        try:
            ask(key)
        except UnmeasuredError as error:
            self._refusals[subject, key] = error

    def _attach(self, agent: Agent, pid: int, key: Key) -> None:
        sites = _remembered(self._sites, key, ready_sites.find_sites)
        agent.attach(pid, sites.ready, sites.deadline)

    def _learn(self, agent: Agent, pid: int, key: Key) -> None:
        agent.learn(pid, _remembered(self._layouts, key, scheduler_layout.find_layout).places)


def _remembered(known: dict[Key, T | UnmeasuredError], key: Key, find: Callable[[str], T]) -> T:
    if key not in known:
        try:
            known[key] = find(key[0])
        except UnmeasuredError as error:
            known[key] = error
    found = known[key]
    if isinstance(found, UnmeasuredError):
        raise found
    return found
