"""BCC's Python module: which there is, and what installs it where there is none."""

from __future__ import annotations

import platform
import sys
from typing import Any

from protocol import Unable


def load() -> Any:
    """The bcc module. Raises Unable."""
    try:
        import bcc
    except (ImportError, OSError) as error:  # OSError: the module is there, libbcc is not
        raise _unable(error, install_command()) from error
    if hasattr(bcc, "BPF"):
        return bcc
    # The `bcc` of PyPI, which is about crystal lattices.
    place = getattr(bcc, "__file__", "bcc")
    raise _unable(
        f"{place} is not BCC but an unrelated package of that name",
        f"sudo {sys.executable} -m pip uninstall bcc; {install_command()}",
    )


def _unable(why: object, fix: str) -> Unable:
    return Unable(f"BCC's Python module cannot be imported by {sys.executable}: {why}", fix)


def about() -> dict[str, str]:
    """Which BCC there is; needs no privileges. Raises Unable."""
    bcc = load()
    return {"bcc": bcc.__version__, "bcc_file": bcc.__file__, "python": platform.python_version()}


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
