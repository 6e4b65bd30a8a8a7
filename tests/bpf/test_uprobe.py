"""The kernel understands how the agent requests a uprobe, as far as can be checked without attaching one."""

from __future__ import annotations

import errno
import importlib

import pytest

from pytest_netpoll.meter import privilege


@pytest.fixture
def attach(monkeypatch):
    monkeypatch.syspath_prepend(str(privilege.AGENT))
    return importlib.import_module("bpf.uprobe").attach


# Refused because of the file: the kernel understood the request, and found the path.
@pytest.mark.parametrize(("name", "refusal"), [("missing", errno.ENOENT), (".", errno.EINVAL)])
def test_the_kernel_refuses_a_uprobe_because_of_the_file_and_not_of_the_request(
    attach, tmp_path, name, refusal
):
    with pytest.raises(OSError, match=r"\[Errno \d+\]") as refused:
        attach(str(tmp_path / name).encode(), 4096, -1)
    assert refused.value.errno == refusal
