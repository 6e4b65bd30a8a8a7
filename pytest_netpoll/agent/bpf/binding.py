"""Finds BCC's Python module, or the command that installs it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import PathFinder
from typing import Any

from protocol import Unable

_LIBRARY = re.compile(r"/.*/lib(bcc|clang|LLVM)[^/]*$")


def load() -> Any:
    """Returns the bcc module. Raises Unable."""
    try:
        import bcc
    except (ImportError, OSError) as error:  # OSError: the module is there, libbcc is not
        raise _unable(error, install_command()) from error
    if hasattr(bcc, "BPF"):
        return bcc
    # PyPI's `bcc`, which is about crystal lattices.
    place = getattr(bcc, "__file__", "bcc")
    raise _unable(
        f"{place} is not BCC but an unrelated package of the same name",
        f"sudo {sys.executable} -m pip uninstall bcc; {install_command()}",
    )


def _unable(why: object, fix: str) -> Unable:
    return Unable(f"BCC's Python module cannot be imported by {sys.executable}: {why}", fix)


def about() -> dict[str, str]:
    """Describes the BCC that would be loaded; needs no privileges. Raises Unable."""
    bcc = load()
    return {"bcc": bcc.__version__, "bcc_file": bcc.__file__, "python": sys.version.split()[0]}


def files(bcc: Any) -> list[tuple[str, int, int]]:
    """(path, size, mtime in ns) of each file of the loaded module, its libraries and LLVM."""
    package = os.path.dirname(bcc.__file__)
    paths = {os.path.join(package, name) for name in os.listdir(package) if name.endswith(".py")}
    with open("/proc/self/maps") as f:
        mapped = (line.split(None, 5)[-1].strip() for line in f)
        paths |= {path for path in mapped if _LIBRARY.match(path)}
    return [_identity(path) for path in sorted(paths)]


def changed(files: Iterable[Sequence[Any]]) -> str | None:
    """A file of BCC that no longer matches `files`; None if all do."""
    spec = PathFinder.find_spec("bcc")
    origin = None if spec is None else spec.origin
    if origin not in [path for path, *_ in files]:
        return origin or "BCC"
    for path, *rest in files:
        try:
            if list(_identity(path)[1:]) != rest:
                return str(path)
        except OSError:
            return str(path)
    return None


def _identity(path: str) -> tuple[str, int, int]:
    status = os.stat(path)
    return path, status.st_size, status.st_mtime_ns


def install_command() -> str:
    """The command that installs BCC on this distribution."""
    release = {}
    try:
        with open("/etc/os-release") as f:
            for line in f:
                name, _, value = line.strip().partition("=")
                release[name] = value.strip('"')
    except OSError:
        pass
    family = " ".join((release.get("ID", ""), release.get("ID_LIKE", "")))
    if "debian" in family or "ubuntu" in family:
        return "sudo apt-get install python3-bpfcc"
    if "fedora" in family or "rhel" in family:
        return "sudo dnf install python3-bcc"
    if "arch" in family:
        return "sudo pacman -S python-bcc"
    return "install your distribution's Python bindings of BCC"
