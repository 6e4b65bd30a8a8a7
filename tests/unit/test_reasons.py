"""A reason is (what, why, fix) from its origin to the report."""

from __future__ import annotations

import base64
import copy
import gzip
import json
import pickle
import re
from pathlib import Path

import pytest

from pytest_netpoll.__main__ import main
from pytest_netpoll.cli.commands import Command
from pytest_netpoll.errors import Reason, UnmeasuredError
from pytest_netpoll.meter.checks import Finding
from pytest_netpoll.model.limits import resolve
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.verdict import judge
from pytest_netpoll.report import baseline_file, github, junit, record, recording, terminal, verdict_text
from pytest_netpoll.report.html import document

PACKAGE = Path(__file__).parents[2] / "pytest_netpoll"
# With all separators by which a text could be split.
ERROR = UnmeasuredError(
    "eBPF needs root: (really)", why="sudo asks (fix: nothing); fix: no", fix="sudo -v: once (now)"
)
PARTS = {"what": "server: eBPF needs root: (really)", "why": ERROR.why, "fix": ERROR.fix}


def unmeasured() -> record.TestRecord:
    measurement = Measurement("server", 1, "/server", "go1.26.6", 1.0, unmeasured=ERROR.reason)
    limits = resolve([((), {"max_polls": 1})], "t")
    return recording.build("t", ("t.py", 1), judge([measurement], limits), limits, [measurement], 1.0)


@pytest.mark.parametrize(
    "fix", ["run pytest as root", "as root: /venv/bin/python -m pytest …", "lower --a, or run pytest as root"]
)
def test_a_command_is_run_as_root_itself_rather_than_pytest(
    fix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> int:
        raise UnmeasuredError("process 1 belongs to another user", fix=fix)

    monkeypatch.setattr(Command, "run", fail)
    assert main(["dump", "--pid", "1"]) == 1
    error = capsys.readouterr().err
    assert error.endswith(" -m pytest_netpoll dump --pid 1\n")
    assert "pytest as root" not in error


def test_as_text_the_fix_is_on_its_own_line() -> None:
    assert Reason("no agent") == "no agent"
    assert Reason("no agent", why="killed") == "no agent: killed"
    assert Reason("no agent", why="killed", fix="sudo -v") == "no agent: killed\n  fix: sudo -v"
    assert str(UnmeasuredError("no agent", fix="sudo -v", detail="dmesg\n")) == (
        "no agent\n  fix: sudo -v\n\ndmesg"
    )


def test_naming_a_subject_keeps_the_parts_separate() -> None:
    reason = ERROR.reason.about("server").about("run 2 of 3")
    assert (reason.why, reason.fix) == (ERROR.why, ERROR.fix)
    assert reason.headline == f"run 2 of 3: server: {ERROR.what}: {ERROR.why}"


def test_copies_keep_the_parts() -> None:
    for copied in (copy.deepcopy(ERROR.reason), pickle.loads(pickle.dumps(ERROR.reason))):
        assert (copied.what, copied.why, copied.fix) == (ERROR.what, ERROR.why, ERROR.fix)
    assert Reason.of(ERROR.reason) is ERROR.reason
    assert Reason.of("text").what == "text"


def test_the_record_has_the_parts_and_the_text() -> None:
    made = json.loads(json.dumps(unmeasured()))
    assert made["reasons"] == [PARTS]
    (service,) = made["services"]
    assert service["why_unmeasured"] == {**PARTS, "what": ERROR.what}
    assert service["unmeasured"] == ERROR.reason
    assert made["reason"] == ERROR.reason.about("server")


def test_a_reason_read_back_has_its_parts() -> None:
    made = json.loads(json.dumps(unmeasured()))
    (reason,) = verdict_text.reasons(made)
    assert {"what": reason.what, "why": reason.why, "fix": reason.fix} == PARTS
    sample = baseline_file.sample(made["services"][0])
    assert sample.unmeasured is not None
    assert sample.unmeasured.fix == ERROR.fix


def test_a_report_from_before_the_parts_were_kept_is_shown_as_it_is() -> None:
    made = unmeasured()
    del made["reasons"]
    del made["services"][0]["why_unmeasured"]
    made["reason"] = made["services"][0]["unmeasured"] = "no agent (fix: sudo -v)"
    assert verdict_text.reasons(made) == ["no agent (fix: sudo -v)"]
    assert "no agent (fix: sudo -v)" in terminal.failure_section(made, 80)


def test_every_report_shows_the_fix_separately() -> None:
    made = unmeasured()
    assert terminal.failure_section(made, 100).splitlines()[:2] == [
        f"{PARTS['what']}: {PARTS['why']}",
        f"  fix: {PARTS['fix']}",
    ]
    assert f"  - fix: {PARTS['fix']}" in github.markdown([made], {}).splitlines()
    assert github.annotations([made])[0].endswith(f"%0Afix: {PARTS['fix']}")
    packed = re.search(r'id="details">([^<]*)<', document.render({}, [made]))
    assert packed is not None
    page = gzip.decompress(base64.b64decode(packed[1])).decode()
    assert page.count(f"fix: <code>{PARTS['fix']}</code>") == 2, "of the test, and of its service"
    assert ("netpoll.server.unmeasured", ERROR.reason) in junit.properties(made)
    assert Finding.of(ERROR).fix == PARTS["fix"]


def test_no_message_contains_a_handwritten_fix() -> None:
    """A fix is always the `fix` of a reason."""
    by_hand = re.compile(r"\(fix: ")
    found = [
        f"{path.relative_to(PACKAGE)}:{number}"
        for path in sorted(PACKAGE.rglob("*"))
        if path.suffix in (".py", ".html", ".js")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if by_hand.search(line)
    ]
    assert found == []
