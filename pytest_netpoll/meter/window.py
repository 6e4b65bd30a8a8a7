"""One measured stretch of time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from pytest_netpoll.errors import UnmeasuredError
from pytest_netpoll.meter import agent_client


@dataclass(eq=False)
class Window:
    """One measured stretch, open from Meter.open to Meter.close. number: the agent's. failed: why there is
    nothing to close. opened: on the monotonic clock, s. ready_stacks, cpu_samples: whether callers of ready
    calls and users of CPU time are recorded. parked: whether to look at parked goroutines. mutexes: whether
    to look for goroutines that wait for a mutex.
    """

    agent: agent_client.Agent | None
    ready_stacks: bool
    cpu_samples: bool
    parked: bool = False
    mutexes: bool = False
    number: int = 0
    failed: UnmeasuredError | None = None
    opened: float = field(default_factory=time.monotonic)
    is_open: bool = True

    @contextlib.contextmanager
    def unless_interrupted(self) -> Iterator[None]:
        """Marks the window closed if the block is interrupted (Ctrl-C, pytest-timeout): nobody else would."""
        try:
            yield
        except BaseException:
            self.is_open = False
            raise
