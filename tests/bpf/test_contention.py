"""Several threads in calls on one descriptor at once: a wakeup is resolved once, by one of them."""

from __future__ import annotations

import pytest

ROUNDS = 200


@pytest.mark.parametrize("exchange", [True, False], ids=["by-exchange", "by-a-map"])
def test_concurrent_reads_resolve_each_wakeup_once(launch, lacking, commands, newest_go, exchange):
    meter = lacking({} if exchange else {"bpf/atomics.py": "can_exchange = lambda: False"})
    server = launch("contend", go=str(newest_go.go))
    meter.watch(server)
    command = commands(server)
    window = meter.open()
    assert command(ROUNDS) == "done"
    (m,) = meter.close(window, [server])
    assert m.unmeasured is None
    assert m.wakeups >= ROUNDS
    assert m.wakeups == m.productive_wakeups + m.spurious_wakeups
    assert (m.abandoned_wakeups, m.pending_wakeups) == (0, 0)
