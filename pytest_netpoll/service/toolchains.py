"""The Go toolchains of --netpoll-go, each with a unique label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_netpoll.errors import ServiceError, UsageError
from pytest_netpoll.service.build import GoTool, find_go
from pytest_netpoll.service.patience import Say


@dataclass(frozen=True)
class Toolchain:
    """A Go command. label: "go1.21.13", or "go1.21.13-DIRECTORY" if another one has the same version."""

    label: str
    tool: GoTool


def resolve(specs: Sequence[str | Path], say: Say | None = None) -> tuple[Toolchain, ...]:
    """The toolchains, in the given order. UsageError says what was tried for a missing one."""
    tools = [_find(spec, say) for spec in specs]
    versions = [tool.version or Path(tool.path).name for tool in tools]
    found = []
    for tool, version in zip(tools, versions, strict=True):
        # A patched runtime and the original have the same version.
        root = Path(tool.path).parents[1].name
        found.append(Toolchain(f"{version}-{root}" if versions.count(version) > 1 else version, tool))
    for label, count in Counter(toolchain.label for toolchain in found).items():
        if count > 1:
            raise UsageError(
                f"--netpoll-go names {label} {count} times",
                fix="give each toolchain once, and GOROOTs in directories of different names",
            )
    return tuple(found)


def _find(spec: str | Path, say: Say | None) -> GoTool:
    try:
        return find_go(str(spec), say=say)
    except ServiceError as error:
        raise UsageError(
            f"--netpoll-go={spec}: {error.what}", why=error.why, fix=error.fix, detail=error.detail
        ) from None
