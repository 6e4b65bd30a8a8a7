"""Makes the files of --netpoll-artifacts: a test's evidence in formats of common tools."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from pytest_netpoll.agent.constants import CPU_HZ
from pytest_netpoll.errors import Reason, UsageError
from pytest_netpoll.gobinary.elf import build_id_of
from pytest_netpoll.model.evidence import Offence
from pytest_netpoll.model.measurement import Measurement
from pytest_netpoll.model.trace import Trace
from pytest_netpoll.report import evidence_text, files, pprof, trace_events, wording
from pytest_netpoll.report.record import ArtifactsRecord, OffenderRecord, ServiceRecord, TestRecord
from pytest_netpoll.report.recording import reason_record

WHAT = "the artifacts"
# Names for descriptors and the like, where pprof needs a function.
_NO_STACK = "(no stack)"
_NOBODY = "(nobody waiting)"
_LABELS = ("fd_type", "local", "peer", "direction", "syscall", "outcome", "lock")
_ENDINGS = ("*.pb.gz", "*.log", "*.trace", "*.trace.json")  # of all files that are written
_SHOWN = 80  # characters of a test's id in the name of its directory

# (function, file as shown) -> the file's absolute path
Sources = Callable[[str, str], str]


class Kind(NamedTuple):
    """One kind of profile, made if the first of its offences was recorded; it includes the others. period_ns:
    what each count stands for, if they are samples of a time. timed: whether each offender has its own time.
    """

    name: str
    offences: tuple[Offence, ...]
    counted: str
    what: str
    estimated: bool = False
    period_ns: int = 0
    timed: bool = False


KINDS = (
    Kind("spurious", ("spurious",), "spurious_wakeups", "woken for nothing"),
    Kind("stale", ("stale",), "stale_retries", "tried again for nothing"),
    Kind("unclaimed", ("unclaimed",), "unclaimed_events", "events that nobody was waiting for"),
    Kind("wakers", ("ready",), "ready_calls", "callers that wake goroutines", estimated=True),
    Kind("io", ("io", "futile"), "io_calls", "I/O calls", estimated=True),
    Kind("futile", ("futile",), "futile_calls", "futile I/O calls", estimated=True),
    Kind("woken", ("woken",), "wakeups", "where woken goroutines were parked", estimated=True),
    Kind("parked", ("parked",), "parked_goroutines", "goroutines parked at the end"),
    Kind("waiting", ("mutex",), "waited", "waits for mutexes", estimated=True, timed=True),
    Kind("cpu", ("cpu",), "cpu", "CPU time", period_ns=10**9 // CPU_HZ),
)


class File(NamedTuple):
    """command: opens the file, if run in its directory."""

    name: str
    content: bytes
    what: str
    command: str


def profiles(test: TestRecord, source_of: Sources) -> Iterator[File]:
    """The profiles of the test's services and windows whose numbers are exact."""
    for service in test["services"]:
        yield from _of_service(
            test, service, service_name(service["name"]), test["window_seconds"], source_of
        )
    for window in test.get("windows", [])[-wording.MOST_WINDOWS :]:
        for service in window["services"]:
            prefix = f"{service_name(service['name'])}.window-{window['number']}"
            yield from _of_service(test, service, prefix, window["window_seconds"], source_of)


def _of_service(
    test: TestRecord, service: ServiceRecord, prefix: str, seconds: float, source_of: Sources
) -> Iterator[File]:
    if not wording.trusted(service):
        return
    executable = service["executable"] or ""
    program = pprof.Program(executable, build_id_of(executable))
    for kind in KINDS:
        offenders = [o for o in service["offenders"] if evidence_text.offence_of(o) in kind.offences]
        if kind.offences[0] not in [evidence_text.offence_of(o) for o in offenders]:
            continue
        types = [pprof.ValueType(kind.counted, "count")]
        if kind.period_ns or kind.timed:
            types = [pprof.ValueType("samples", "count"), pprof.ValueType(kind.counted, "nanoseconds")]
        comments = [f"{kind.what}: {service['name']} in {test['nodeid']}"]
        if kind.estimated:
            comments.append("counts are estimated from a sample")
        content = pprof.encode(
            types,
            [_sample(service, offender, kind, source_of) for offender in offenders],
            program=program,
            duration_ns=round(seconds * 1e9),
            period_ns=kind.period_ns,
            comments=comments,
        )
        name = f"{prefix}.{kind.name}.pb.gz"
        yield File(name, content, kind.what, f"go tool pprof -top {name}")


def _sample(service: ServiceRecord, offender: OffenderRecord, kind: Kind, source_of: Sources) -> pprof.Sample:
    stack = []
    for frame in offender["stack"]:
        function, file = frame["function"] or "?", frame["file"] or ""
        stack.append(pprof.Line(function, source_of(function, file), frame["line"] or 0))
    if not stack:
        stack.append(pprof.Line(_NOBODY if kind.name == "unclaimed" else _NO_STACK, "", 0))
    labels = {"service": service["name"]}
    fields: Mapping[str, object] = {**offender}
    labels |= {name: str(fields[name]) for name in _LABELS if fields.get(name)}
    if offender.get("peers"):
        labels["peer"] = ", ".join(offender["peers"])
    if offender.get("runtime"):
        labels["runtime"] = "true"
    count = offender["count"]
    values = [count]
    if kind.timed:
        values.append(offender.get("waited_ns") or 0)
    elif kind.period_ns:
        values.append(count * kind.period_ns)
    return pprof.Sample(stack, values, labels)


def log(service: str, text: str) -> File:
    """The file with a service's output."""
    name = f"{service_name(service)}.log"
    return File(name, text.encode(errors="backslashreplace"), "what the service printed", f"less {name}")


def trace(nodeid: str, measurement: Measurement, recorded: Trace) -> File:
    """The file with a trace. measurement: of the same window."""
    name = f"{service_name(measurement.service)}.trace.json"
    what = "trace of a repeated call"
    if recorded.dropped:
        what += f", its beginning: {recorded.dropped} records were dropped"
    if recorded.missed_looks:
        what += f"; run queues at its beginning only: {recorded.missed_looks} looks were dropped"
    content = trace_events.encode(recorded, measurement, nodeid)
    return File(name, content, what, f"open in https://ui.perfetto.dev: {name}")


def directory_name(nodeid: str) -> str:
    """A test's directory: the end of its id, for people, and a hash that makes it unique."""
    return f"{_safe(nodeid)[-_SHOWN:].lstrip('-._') or 'test'}-{_digest(nodeid)}"


def service_name(name: str) -> str:
    safe = _safe(name).replace(".", "-")
    return (
        safe
        if safe and safe == name and len(name) <= _SHOWN
        else f"{safe[:_SHOWN] or 'service'}-{_digest(name)}"
    )


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-._")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:10]


def record_of(directory: Path, kept: Sequence[File], notes: Iterable[Reason]) -> ArtifactsRecord:
    """The record of a test's files. directory: where they are or will be."""
    return {
        "directory": str(directory),
        "files": [
            {"name": file.name, "what": file.what, "bytes": len(file.content), "command": file.command}
            for file in kept
        ],
        "notes": [reason_record(note) for note in notes],
    }


def packed(nodeid: str, kept: Iterable[File]) -> dict[str, str]:
    """The files as pytest's reports carry them to the process that writes them: path in the directory ->
    base64.
    """
    directory = directory_name(nodeid)
    return {f"{directory}/{file.name}": base64.b64encode(file.content).decode() for file in kept}


def write(directory: Path, packed: Mapping[str, str]) -> None:
    """Writes one test's files, replacing those of an earlier run. NetpollError if that fails."""
    of_test = {directory / Path(path).parent for path in packed}
    for parent in of_test:
        if parent.is_symlink():
            error = NotADirectoryError(None, "a link is in its place")
            raise files.cannot_write(parent, error, WHAT)
        for old in chain.from_iterable(map(parent.glob, _ENDINGS)):
            with contextlib.suppress(OSError):
                old.unlink()
    for path, content in packed.items():
        files.write_atomically(directory / path, base64.b64decode(content), WHAT)


def require(directory: Path) -> None:
    """Creates the directory; UsageError if it isn't writable."""
    probe = directory / ".netpoll-probe"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.unlink(missing_ok=True)
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"--netpoll-artifacts cannot write to {directory}",
            why=error.strerror or str(error),
            fix="name a directory you may write to, on a disk with space left",
        ) from None
