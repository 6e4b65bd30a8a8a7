"""What commands without a service print: lists, helps and complaints."""

from __future__ import annotations

import re

import pytest

from pytest_netpoll.__main__ import main
from pytest_netpoll.cli import lines
from pytest_netpoll.cli.commands import COMMANDS
from pytest_netpoll.model.metrics import LIMITABLE, METRICS
from pytest_netpoll.model.rules import RULES, beyond, choice


def test_every_metric_is_listed_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["metrics"]) == 0
    listed = capsys.readouterr().out
    for metric in METRICS.values():
        assert re.search(rf"^{metric.name} .* {re.escape(metric.meaning)}$", listed, re.MULTILINE)
    assert main(["metrics", "max_polls_per_second", "mutex"]) == 0
    *rows, _, how = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in rows] == ["polls", "mutex_wait_seconds"]
    assert how == 'To limit them: @pytest.mark.netpoll(max_polls=50, max_mutex_wait_seconds="100ms")'
    assert main(["metrics", "latncy_p99"]) == 2
    assert "did you mean 'latency_p99'?" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["rules", "metrics"])
def test_lists_fit_into_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert main([command]) == 0
    piped = capsys.readouterr().out
    monkeypatch.setattr(lines, "terminal_width", lambda: 80)
    assert main([command]) == 0
    wrapped = capsys.readouterr().out
    assert wrapped.split() == piped.split()
    assert [line for line in wrapped.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_fits_into_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str | None
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    if command is None:
        assert main(["--help"]) == 0
    else:
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
    assert [line for line in capsys.readouterr().out.splitlines() if len(line) > 80] == []


def test_an_unknown_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rule"]) == 2
    assert capsys.readouterr().err.startswith("no command 'rule', did you mean 'rules'?\n\nusage: ")
    assert main(["frobnicate"]) == 2
    assert capsys.readouterr().err.startswith("no command 'frobnicate'\n\nusage: ")


def test_hints_name_limits_and_rules_that_exist() -> None:
    hints = [hint for word in ("mutex", "leak", "timer", "slow") if (hint := beyond.about(word))]
    assert len(hints) == 4
    text = " ".join([*hints, beyond.NO_RULE])
    limited = re.findall(r"\bmax_\w+", text)
    assert {limit.removeprefix("max_") for limit in limited} <= set(LIMITABLE)
    for code in re.findall(r"\bNP\d+", text):
        choice.parse(code)
    for code, name in re.findall(r"\b(NP\d\d\d) ([\w-]+)", text):
        assert RULES[code].name == name
