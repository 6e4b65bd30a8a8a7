"""That the kernel understands how the agent asks for a uprobe, as far as one can tell without one."""

from __future__ import annotations

import errno
import importlib

import pytest

from pytest_netpoll.meter import privilege


@pytest.fixture
def attach(monkeypatch):
    monkeypatch.syspath_prepend(str(privilege.AGENT))
    return importlib.import_module("bpf.uprobe").attach


# Refused for what the path names: the kernel knew what was asked for, and found the path.
@pytest.mark.parametrize(("name", "refusal"), [("missing", errno.ENOENT), (".", errno.EINVAL)])
def test_the_kernel_refuses_a_uprobe_because_of_the_file_and_not_of_the_request(
    attach, tmp_path, name, refusal
):
    with pytest.raises(OSError, match=r"\[Errno \d+\]") as refused:
        attach(str(tmp_path / name).encode(), 4096, -1)
    assert refused.value.errno == refusal
