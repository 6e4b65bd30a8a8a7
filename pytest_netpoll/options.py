"""Command line and ini options: one table, read into a frozen Config (command line > ini > default)."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import pytest

from pytest_netpoll.errors import UsageError
from pytest_netpoll.model import tolerance, units
from pytest_netpoll.model.confidence import FEWEST
from pytest_netpoll.model.rules import choice
from pytest_netpoll.model.tolerance import Tolerance


@dataclass(frozen=True)
class OptionSpec:
    """One option, under one name in Config, on the command line and in the ini file.

    name: the field of Config. cli, ini: None if the option doesn't exist there.
    parse: text -> value; raises ValueError, which says what is wrong. A Path it returns is taken relative to
        where the option was written: the current directory, or that of the ini file.
    repeatable: given any number of times (a list of lines in the ini file); `collect` combines the parsed
        values, and raises ValueError if they clash.
    """

    name: str
    cli: str | None
    ini: str | None
    help: str
    parse: Callable[[str], object]
    default: object = None
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    repeatable: bool = False
    collect: Callable[[Sequence[Any]], object] = tuple

    @property
    def dest(self) -> str:
        # Not the bare name: pytest's namespace is shared with all plugins.
        return f"netpoll_{self.name}"


def _choice(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"{text!r} is not one of {', '.join(choices)}")
        return text

    return parse


def _path(text: str) -> Path:
    if not text:
        raise ValueError("a file name is missing")
    return Path(text).expanduser()


def _directory_or_off(text: str) -> Path | str:
    if not text:
        raise ValueError("a directory, or off, is missing")
    return text if text == "off" else _path(text)


class Artifacts(NamedTuple):
    """Where artifacts go, and whether to write them for all tests or only for failed ones."""

    directory: Path
    all_tests: bool


def _artifacts(text: str) -> Artifacts:
    directory = text.removesuffix(":all")
    if not directory:
        raise ValueError("a directory is missing")
    return Artifacts(_path(directory), directory != text)


def _natural(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"{text!r} is not an integer >= 0")
    return int(text)


def _revision(text: str) -> str:
    if not text or text.startswith("-"):
        raise ValueError(f"{text!r} is not a git revision, such as origin/main")
    return text


class Rounds(NamedTuple):
    """How many times to measure each side, at least and at most."""

    least: int
    most: int

    def __str__(self) -> str:
        return f"{self.least}:{self.most}"


# The default for --netpoll-against; with a saved baseline the test's own number applies.
ROUNDS = Rounds(8, 40)


def _rounds(text: str) -> Rounds:
    least, colon, most = text.partition(":")
    found = Rounds(_natural(least), _natural(most if colon else least))
    if found.most < found.least or found.least == 0:
        raise ValueError(f"{text!r} is not MIN:MAX, such as 8:40")
    if found.most < FEWEST:
        raise ValueError(f"{found.most} rounds have no interval of 95 %: give at least {FEWEST}")
    return found


def _baseline_name(text: str) -> str:
    if not re.fullmatch(r"\w[\w.+-]*", text):
        raise ValueError(
            f"{text!r} is not the name of a baseline, such as main (its file is .netpoll/main.json)"
        )
    return text


def _toolchain(text: str) -> str | Path:
    if not text:
        raise ValueError('a toolchain is missing: give a version such as "1.21.13", or a GOROOT')
    return _path(text) if os.sep in text else text


def _rules(text: str) -> str:
    """Checks the rules' names; they are read with the markers."""
    try:
        choice.parse(text)
    except ValueError as error:
        raise ValueError(f"{error}; python -m pytest_netpoll rules lists them") from None
    return text


def _limit(line: str) -> tuple[str, str]:
    name, equals, value = (part.strip() for part in line.partition("="))
    if not (name and equals and value):
        raise ValueError(f'{line!r} is not a limit: write "max_spurious = 0.05"')
    return name, value


def _unique_limits(pairs: Sequence[tuple[str, str]]) -> Mapping[str, str]:
    limits = dict(pairs)
    if len(limits) < len(pairs):
        raise ValueError("a limit is given twice")
    return limits


def _one_of(name: str, cli: str, help: str, *choices: str) -> OptionSpec:
    """An option with choices, the first of which is the default."""
    ini = cli.lstrip("-").replace("-", "_")
    return OptionSpec(name, cli, ini, help, _choice(*choices), default=choices[0], choices=choices)


OPTIONS: tuple[OptionSpec, ...] = (
    _one_of(
        "mode",
        "--netpoll",
        "gate: a broken limit or forbidden rule fails the test; report: these and unmeasured tests are only "
        "reported; off: nothing is measured",
        "gate",
        "report",
        "off",
    ),
    _one_of(
        "unmeasured",
        "--netpoll-unmeasured",
        "how to treat unmeasured tests",
        "fail",
        "skip",
    ),
    OptionSpec(
        "json",
        "--netpoll-json",
        "netpoll_json",
        "write all measurements to FILE as JSON",
        _path,
        metavar="FILE",
    ),
    OptionSpec(
        "html",
        "--netpoll-html",
        "netpoll_html",
        "write an HTML report to FILE; needs pip install 'pytest-netpoll[html]'",
        _path,
        metavar="FILE",
    ),
    OptionSpec(
        "artifacts",
        "--netpoll-artifacts",
        "netpoll_artifacts",
        "write profiles for 'go tool pprof', a trace for Perfetto and the services' output to DIR, for each "
        "test that failed or is unmeasured (for all tests with DIR:all); the test's call is repeated for the "
        "trace",
        _artifacts,
        metavar="DIR[:all]",
    ),
    OptionSpec(
        "save",
        "--netpoll-save",
        "netpoll_save",
        "write each test's metrics to the baseline .netpoll/NAME.json; commit that file",
        _baseline_name,
        metavar="NAME",
    ),
    OptionSpec(
        "compare",
        "--netpoll-compare",
        "netpoll_compare",
        "compare each test's metrics with the baseline NAME",
        _baseline_name,
        metavar="NAME",
    ),
    OptionSpec(
        "compare_fail",
        "--netpoll-compare-fail",
        "netpoll_compare_fail",
        "fail tests that regress by more than TOLERANCE: spurious:+0.02,latency_p99:+5ms",
        tolerance.parse_list,
        default=(),
        metavar="METRIC:TOLERANCE[,...]",
        repeatable=True,
        collect=tolerance.join,
    ),
    _one_of(
        "compare_latencies",
        "--netpoll-compare-latencies",
        "auto: compare timings only if Go, kernel, machine, GOMAXPROCS and plugin match the baseline's",
        "auto",
        "always",
    ),
    OptionSpec(
        "reruns",
        "--netpoll-reruns",
        "netpoll_reruns",
        "remeasure N times before failing a timing regression, and before saving a baseline",
        _natural,
        default=2,
        metavar="N",
    ),
    OptionSpec(
        "against",
        "--netpoll-against",
        "netpoll_against",
        "build services from the git revision REF as well, measure each test on both in turns, and compare",
        _revision,
        metavar="REF",
    ),
    OptionSpec(
        "rounds",
        "--netpoll-rounds",
        "netpoll_rounds",
        "measure each test MIN times, up to MAX while a tolerance is undecided (with --netpoll-against 8:40, "
        "if not given); with --netpoll-save MIN times, so that later comparisons have intervals",
        _rounds,
        metavar="MIN[:MAX]",
    ),
    OptionSpec(
        "markdown",
        "--netpoll-markdown",
        "netpoll_markdown",
        "write what changed, worst first, to FILE as Markdown, such as for a comment on a pull request",
        _path,
        metavar="FILE",
    ),
    OptionSpec(
        "go",
        "--netpoll-go",
        "netpoll_go",
        "build services with this Go: a version, a command, or the path of a GOROOT; if given several times, "
        "run each marked test with each",
        _toolchain,
        default=(),
        metavar="TOOLCHAIN",
        repeatable=True,
    ),
    _one_of(
        "goready",
        "--netpoll-goready",
        "count ready calls: goroutines that runtime.ready wakes, as for channels, mutexes and timers; auto: "
        "if that is cheap and permitted",
        "auto",
        "on",
        "off",
    ),
    _one_of(
        "response",
        "--netpoll-response",
        "measure queue delays, handling and responses; auto: if a test's limit or comparison is about one of "
        "them",
        "auto",
        "on",
        "off",
    ),
    _one_of(
        "sudo",
        "--netpoll-sudo",
        "start the eBPF agent through 'sudo -n' if pytest is not root",
        "auto",
        "never",
    ),
    OptionSpec(
        "max_fds",
        "--netpoll-max-fds",
        "netpoll_max_fds",
        "number of file descriptors that a service may use",
        units.positive,
        default=16384,
        metavar="N",
    ),
    OptionSpec(
        "max_processes",
        "--netpoll-max-processes",
        "netpoll_max_processes",
        "number of processes watched at once, including forked children",
        units.positive,
        default=16,
        metavar="N",
    ),
    OptionSpec(
        "python",
        "--netpoll-python",
        "netpoll_python",
        "the system's Python, which can import bcc (default: found automatically)",
        _path,
        metavar="PATH",
    ),
    OptionSpec(
        "agent",
        "--netpoll-agent",
        "netpoll_agent",
        "where install-agent put the agent that sudo starts (default: /usr/local/lib/pytest-netpoll)",
        _path,
        metavar="DIR",
    ),
    OptionSpec(
        "forbid",
        "--netpoll-forbid",
        "netpoll_forbid",
        "fail marked tests whose services break one of these rules: all, or codes and names such as "
        "NP1,busy-loop; python -m pytest_netpoll rules lists them",
        _rules,
        metavar="RULES",
    ),
    OptionSpec(
        "allow",
        "--netpoll-allow",
        "netpoll_allow",
        "exceptions to --netpoll-forbid",
        _rules,
        metavar="RULES",
    ),
    OptionSpec(
        "cache",
        "--netpoll-cache",
        "netpoll_cache",
        "cache the compiled BPF program in DIR, which nobody else may write to; off: don't cache it "
        "(default: ~/.cache/pytest-netpoll of the user that the agent runs as; an agent from install-agent "
        "has a cache of its own)",
        _directory_or_off,
        metavar="DIR|off",
    ),
    OptionSpec(
        "limits",
        None,
        "netpoll_limits",
        "default limits of all marked tests, one per line: max_spurious = 0.05",
        _limit,
        default=MappingProxyType({}),
        repeatable=True,
        collect=_unique_limits,
    ),
)


# The options that `python -m pytest_netpoll` accepts, too.
AGENT_OPTIONS = ("goready", "response", "sudo", "max_fds", "max_processes", "python", "agent", "cache")


def add_options(parser: pytest.Parser) -> None:
    """Register every option of the table; for pytest_addoption."""
    group = parser.getgroup("netpoll", "Go network poller (pytest-netpoll)")
    for spec in OPTIONS:
        help = _help(spec)
        if spec.cli is not None:
            group.addoption(spec.cli, **_attributes(spec))
        if spec.ini is not None:
            if spec.repeatable:
                parser.addini(spec.ini, help=help, type="linelist", default=[])
            else:
                parser.addini(spec.ini, help=help, type="string", default="")


def add_agent_options(parser: argparse.ArgumentParser, names: Collection[str] = AGENT_OPTIONS) -> None:
    """AGENT_OPTIONS, or some of them, for commands outside pytest; read them with Config.from_arguments."""
    group = parser.add_argument_group("the eBPF agent")
    for spec in OPTIONS:
        if spec.name in names and spec.cli is not None:
            group.add_argument(spec.cli, **_attributes(spec))


def _help(spec: OptionSpec) -> str:
    return f"{spec.help} (default: {spec.default})" if spec.default else spec.help


def _attributes(spec: OptionSpec) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "dest": spec.dest,
        # None means "not given"; the default given explicitly must win over the ini file.
        "default": None,
        "action": "append" if spec.repeatable else "store",
        "type": _checked(spec.parse),
        "help": _help(spec),
    }
    if spec.metavar:
        attributes["metavar"] = spec.metavar
    if spec.choices:
        attributes["choices"] = spec.choices
    return attributes


def _checked(parse: Callable[[str], object]) -> Callable[[str], str]:
    def check(text: str) -> str:
        try:
            parse(text)
        except ValueError as error:
            # argparse drops the text of a ValueError.
            raise argparse.ArgumentTypeError(str(error)) from None
        # The text, not the value: xdist sends the options to its workers and can serialise no Path.
        return text

    return check


@dataclass(frozen=True)
class Config:
    """The user's choices. Paths are absolute; limits are name -> text, as in the ini file."""

    mode: Literal["gate", "report", "off"]
    unmeasured: Literal["fail", "skip"]
    json: Path | None
    html: Path | None
    artifacts: Artifacts | None
    save: str | None
    compare: str | None
    compare_fail: tuple[Tolerance, ...]
    compare_latencies: Literal["auto", "always"]
    reruns: int
    against: str | None
    rounds: Rounds | None
    markdown: Path | None
    go: tuple[str | Path, ...]
    goready: Literal["auto", "on", "off"]
    response: Literal["auto", "on", "off"]
    sudo: Literal["auto", "never"]
    max_fds: int
    max_processes: int
    python: Path | None
    agent: Path | None
    forbid: str | None
    allow: str | None
    cache: Path | Literal["off"] | None
    limits: Mapping[str, str]

    @property
    def defaults(self) -> dict[str, str]:
        """The defaults for every marked test, as arguments of the marker."""
        rules = {"forbid": self.forbid, "allow": self.allow}
        return {**self.limits, **{name: text for name, text in rules.items() if text is not None}}

    @property
    def compared(self) -> frozenset[str]:
        """The metrics that a comparison judges, now or later with what this run saves."""
        compares = any(name is not None for name in (self.compare, self.against, self.save))
        return frozenset(rule.metric for rule in self.compare_fail) if compares else frozenset()

    @classmethod
    def default(cls) -> Config:
        """Nothing chosen."""
        values: dict[str, Any] = {spec.name: spec.default for spec in OPTIONS}
        return cls(**values)

    @classmethod
    def from_pytest(cls, config: pytest.Config) -> Config:
        """Read the options of `add_options`; UsageError names the ini option that is wrong."""
        values: dict[str, Any] = {spec.name: _read(spec, config) for spec in OPTIONS}
        return cls(**values)

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Config:
        """Reads the options of `add_agent_options`; the others have their defaults."""
        values: dict[str, Any] = {spec.name: spec.default for spec in OPTIONS}
        for spec in OPTIONS:
            given = getattr(arguments, spec.dest, None)
            if given is not None:
                values[spec.name] = _parse(spec, given, Path.cwd())
        return cls(**values)


# How to write the value of an ini option.
_FIX = "see the [pytest] ini-options in: pytest --help"
_FIXES = {
    **dict.fromkeys(
        ("forbid", "allow"), "write all, or codes and names that this lists: python -m pytest_netpoll rules"
    ),
    "limits": "see the metrics: python -m pytest_netpoll metrics",
}


def _read(spec: OptionSpec, config: pytest.Config) -> object:
    given = config.getoption(spec.dest, None) if spec.cli is not None else None
    if given is not None:
        return _parse(spec, given, config.invocation_params.dir)
    if spec.ini is None:
        return spec.default
    try:
        given = config.getini(spec.ini)
        if not given:
            return spec.default
        base = config.rootpath if config.inipath is None else config.inipath.parent
        return _parse(spec, given, base)
    # TypeError: raised by pytest 9.0 for a TOML value of the wrong type.
    except (TypeError, ValueError) as error:
        raise UsageError(f"ini option {spec.ini}: {error}", fix=_FIXES.get(spec.name, _FIX)) from None


def _parse(spec: OptionSpec, given: str | list[str], base: Path) -> object:
    if isinstance(given, list):
        return spec.collect([_absolute(spec.parse(text), base) for text in given])
    return _absolute(spec.parse(given.strip()), base)


def _absolute(value: object, base: Path) -> object:
    if isinstance(value, Artifacts):
        return value._replace(directory=base / value.directory)
    return base / value if isinstance(value, Path) else value
