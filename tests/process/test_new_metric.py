"""A metric is one row: CONTRIBUTING.md's example, added to a copy of the package, is in every report."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Prints the reports of a service that was measured with it and broke a limit on it.
REPORTS = """
import io, json
from pytest_netpoll.cli.watch.table import View
from pytest_netpoll.meter.accumulated import Accumulated
from pytest_netpoll.model.comparison import Baseline, Rules, compare
from pytest_netpoll.model.sample import Sample
from pytest_netpoll.model.limits import resolve
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.metrics import COUNTERS, markdown_table
from pytest_netpoll.model.snapshot import Snapshot
from pytest_netpoll.meter.snapshots import read_snapshot
from pytest_netpoll.model.verdict import judge
from pytest_netpoll.report import junit, recording, tables, terminal

counters = {**dict.fromkeys(COUNTERS, 0), "polls": 20, "closed_polls": 7}
snapshot = read_snapshot(
    {"counters": counters, "histogram": {}, "latency_max_ns": 0, "io_outcomes": {}, "futile": [],
     "events_per_poll": {}}
)
m = Measurement("server", 42, "/srv/server", "go1.27.3", 2.0, snapshot)
limits = resolve([((), {"max_closed_polls": 3, "max_closed_polls_per_second": 1})], "t")
before = Baseline("b.json", {}, {"t": {"server": Sample.of(m)}})
comparison = compare("t", {"server": Sample.of(m)}, {}, before, Rules())
made = recording.build(
    "t", ("t.py", 1), judge([m], limits), limits, [m], 2.0, comparison=comparison, toolchain="1.27.3"
)
other = {**made, "toolchain": "1.19"}
run, screen = Accumulated(), io.StringIO()
run.add(m)
view = View(screen)
view.interval("server", m, run)
view.summary("server", run, "stopped", "")
print(json.dumps({
    "reason": made["reason"],
    "terminal": terminal.failure_section(made, 110),
    "summary": terminal.summary_table([made], 200),
    "tables": dict(tables.further_tables([made, other], 200)),
    "watch": screen.getvalue(),
    "junit": junit.properties(made),
    "json": made["services"][0]["metrics"],
    "docs": markdown_table(),
}))
"""


def row() -> str:
    """The one in CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    found = re.search(r"```python\n( *Metric\(.*?)```", text, re.DOTALL)
    assert found is not None
    return textwrap.dedent(found[1])


@pytest.fixture
def reports(tmp_path):
    """reports(row) are the reports of the package with that row in its table, by name."""

    def reports(row):
        package = tmp_path / "pytest_netpoll"
        shutil.copytree(ROOT / "pytest_netpoll", package, ignore=shutil.ignore_patterns("__pycache__"))
        table = package / "model" / "metrics.py"
        text, place = table.read_text(), '    Metric(\n        "polls_per_event",\n'
        assert text.count(place) == 1
        table.write_text(text.replace(place, textwrap.indent(f"{row.rstrip()},\n", "    ") + place))
        command = [sys.executable, "-c", REPORTS]
        done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    return reports


def test_one_row_puts_a_metric_into_the_reports(reports):
    found = reports(row())
    assert "server: closed_polls 7 > max 3" in found["reason"]
    assert "server: closed_polls_per_second 3.50 (7 in 2.00 s) > max 1.00" in found["reason"]
    assert re.search(r"^  polls +20  7 closed$", found["terminal"], re.MULTILINE)
    assert re.search(r"^closed_polls +3\.5/s +7$", found["watch"], re.MULTILINE)
    assert ["netpoll.server.closed_polls", "7"] in found["junit"]
    assert found["json"]["closed_polls"] == 7
    assert "| `closed_polls` | count | polls that ended because the descriptor was closed |" in found["docs"]
    assert "closed" not in found["summary"]


def test_columns_are_in_every_table_the_row_names(reports):
    everywhere = '"summary", "baseline", "toolchains", "runs", "watch", "lines", "junit"), heading="closed"'
    found = reports(row().replace('"watch", "junit")', everywhere))
    assert re.search(r"^test .* polls/ev .* closed|^test .* closed +polls/ev", found["summary"], re.MULTILINE)
    baseline, toolchains = found["tables"].values()
    assert "7 → 7" in baseline
    assert re.search(r"^ +go .*\bclosed\b", toolchains, re.MULTILINE)
    assert re.search(r"^time .*\bclosed\b", found["watch"], re.MULTILINE)
