"""Starts of the agent: from the cache if possible, otherwise compiled, with the reason."""

from __future__ import annotations

import importlib
import json
import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_netpoll.cli import doctor
from pytest_netpoll.meter import privilege
from pytest_netpoll.options import Config
from tests.waiting import patiently

pytestmark = [
    pytest.mark.bpf,
    pytest.mark.skipif(os.geteuid() != 0, reason="damages what the agent keeps for root"),
]


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=pwd.getpwuid(0).pw_dir, prefix=".netpoll-test-") as above:
        yield Path(above) / "cache"


@pytest.fixture(scope="module")
def kept(directory: Path) -> Path:
    """The file of an entry."""
    assert start(directory)["program"] == "compiled"
    (file,) = directory.glob("*.program")
    return file


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(privilege.AGENT))
    entries, store = map(importlib.import_module, ("bpf.cache", "security.store"))
    return SimpleNamespace(parse=entries.parse, render=entries.render, seal=store.seal, unseal=store.unseal)


def start(where: object, max_processes: int = 4) -> dict[str, Any]:
    """What the agent reports when it is ready."""
    command = privilege.command(None, "never", cache=where)  # type: ignore[arg-type]
    load = {"id": 0, "do": "load", "max_processes": max_processes, "max_fds": 64, "uprobes": 0, "answers": 0}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdin is not None
        assert agent.stdout is not None
        agent.stdin.write(json.dumps(load) + "\n")
        agent.stdin.flush()
        ready: dict[str, Any] = json.loads(agent.stdout.readline())["ready"]
        agent.stdin.close()
    return ready


def why_compiled(directory: Path) -> str:
    ready = start(directory)
    assert ready["program"] == "compiled"
    what: str = ready["not_cached"]["what"]
    return what


@pytest.mark.usefixtures("kept")
def test_the_second_start_compiles_nothing(directory: Path) -> None:
    compiled, cached = start("off"), start(directory)
    assert (compiled["program"], compiled["not_cached"]) == ("compiled", None)
    assert (cached["program"], cached["not_cached"]) == ("cache", None)
    same = ("bcc", "typed", "follows_children", "no_cpu_samples", "capabilities")
    assert {name: cached[name] for name in same} == {name: compiled[name] for name in same}
    # Neither BCC nor LLVM.
    assert cached["resident_bytes"] < compiled["resident_bytes"] / 3
    # Repeated, because others may take the CPU from one start.
    assert patiently(lambda: start(directory)["startup_seconds"] < compiled["startup_seconds"])


@pytest.mark.usefixtures("kept")
def test_other_sizes_are_another_entry(directory: Path) -> None:
    ready = start(directory, max_processes=5)
    assert ready["program"] == "compiled"
    assert "has none for this kernel, BCC, version and sizes" in ready["not_cached"]["what"]
    assert len(list(directory.glob("*.program"))) == 2


def of_another_bcc(entry: Any) -> Any:
    return entry._replace(files=[[path, size, changed + 1] for path, size, changed in entry.files])


def of_other_offsets(entry: Any) -> Any:
    return entry._replace(flags=[*entry.flags, "-DTASK_TGID_OFFSET=1"])


def of_other_instructions(entry: Any) -> Any:
    # A load through a number as if it were a pointer: no verifier accepts that.
    forged = bytes.fromhex("b701000000000000 7910000000000000 9500000000000000")
    programs = dict.fromkeys(entry.compiled.programs, forged)
    return entry._replace(compiled=entry.compiled._replace(programs=programs))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (of_another_bcc, "is not the one that it was compiled with"),
        (of_other_offsets, "it was compiled for other sizes, or another kernel"),
        (of_other_instructions, "the kernel rejects the cached program"),
    ],
)
def test_a_forged_entry_is_compiled_and_stored_again(
    directory: Path, kept: Path, cache: SimpleNamespace, spoil: Callable[[Any], Any], why: str
) -> None:
    entry = cache.parse(cache.unseal(kept.read_bytes()))
    kept.write_bytes(cache.seal(cache.render(spoil(entry))))
    assert why in why_compiled(directory)
    assert start(directory)["program"] == "cache"


def test_a_damaged_entry_is_compiled_and_stored_again(directory: Path, kept: Path) -> None:
    for file in (kept, *directory.glob("*.bytecode")):
        file.write_bytes(file.read_bytes()[:-1])
    assert "the cached file is damaged" in why_compiled(directory)
    assert start(directory)["program"] == "cache"


def test_without_a_usable_cache_it_compiles_and_reports_that(tmp_path: Path) -> None:
    (shared := tmp_path / "shared").mkdir()
    shared.chmod(0o777)
    ready = start(shared)
    assert ready["program"] == "compiled"
    assert "can be written to by others than root" in ready["not_cached"]["what"]
    assert "--netpoll-cache=DIR" in ready["not_cached"]["fix"]
    assert list(shared.iterdir()) == []


def test_a_full_disk_is_not_an_error(directory: Path) -> None:
    small = directory.with_name("small")
    small.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k,mode=700", "tmpfs", small], check=True)
    try:
        assert "cannot be written to: No space left on device" in why_compiled(small)
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_the_doctor_shows_whether_the_cache_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privilege, "command", lambda *_: ["python3", "agent"])
    environment = {"program": "cache", "not_cached": None, "resident_bytes": 20_000_000}
    meter: Any = SimpleNamespace(
        environment=environment, open=lambda: SimpleNamespace(failed=None), close=lambda *_: []
    )
    config = Config.default()
    assert doctor.agent(meter, config).seen == "loaded from the cache and attached in 0.0 s (20 MB)"
    environment["program"] = "compiled"
    assert doctor.agent(meter, config).seen == "compiled, loaded and attached in 0.0 s (20 MB)"
    environment["not_cached"] = {"what": "it is damaged", "fix": "install-agent"}
    found = doctor.agent(meter, config)
    assert found.seen.endswith("(20 MB); not from the cache: it is damaged")
    assert (found.status, found.fix) == ("ok", "install-agent")


def test_the_doctor_says_how_to_renew_and_remove_an_installed_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter: Any = SimpleNamespace(
        environment={
            "program": "compiled",
            "not_cached": {
                "what": "the kernel is another",
                "fix": "sudo python -m pytest_netpoll install-agent",
            },
            "resident_bytes": 20_000_000,
        },
        open=lambda: SimpleNamespace(failed=None),
        close=lambda *_: [],
    )
    monkeypatch.setattr(privilege, "command", lambda *_: ["sudo", "-n", "--", "python3", "/opt/np/agent"])
    found = doctor.agent(meter, replace(Config.default(), agent=Path("/opt/np")))
    grep = "sudo grep -rF /opt/np/agent /etc/sudoers /etc/sudoers.d"
    assert f"with sudo, from /opt/np (to remove it: sudo rm -r /opt/np; lines for it: {grep})" in found.seen
    assert found.fix == f"sudo {sys.executable} -m pytest_netpoll install-agent --prefix /opt/np"
    (tmp_path / "sudoers").touch()
    monkeypatch.setattr(privilege, "SUDOERS", tmp_path / "sudoers")
    monkeypatch.setattr(privilege, "INSTALLED", Path("/opt/np"))
    removal = f"(to remove it: sudo rm -r {tmp_path}/sudoers /opt/np)"
    assert removal in doctor.agent(meter, replace(Config.default(), agent=Path("/opt/np"))).seen
