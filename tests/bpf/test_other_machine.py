"""The program for arm64, as far as another machine can check: it compiles, and the verifier accepts it."""

from __future__ import annotations

import os
import shutil
import subprocess

from pytest_netpoll.meter import privilege

# Loads what an arm64 machine would; nothing is watched, and it is closed at once.
LOAD = """
import sys
sys.path.insert(0, sys.argv[1])
from bpf import machine, program
machine.current = lambda: "aarch64"
loaded = program.Kernel(sys.argv[2], max_processes=4, max_fds=64)
print("signed" if loaded.signed else "unsigned", "addresses")
"""

# arch/arm64/include/asm/ptrace.h: x0 to x30, sp, pc and pstate come before orig_x0. uapi/linux/eventpoll.h:
# packed on x86-64 only.
FACTS = """
_Static_assert(offsetof(struct pt_regs, regs[1]) == 8, "x1");
_Static_assert(offsetof(struct pt_regs, orig_x0) == 34 * 8, "orig_x0");
_Static_assert(offsetof(struct pt_regs, syscallno) == 35 * 8, "syscallno");
_Static_assert(EVENT_WORDS * 4 == 16 && EVENT_DATA * 4 == 8, "struct epoll_event");
"""


def test_the_program_for_arm64_compiles_and_passes_the_verifier(tmp_path):
    sources = shutil.copytree(privilege.bpf_sources(), tmp_path / "bpf")
    with (sources / "netpoll.c").open("a") as file:
        file.write(FACTS)
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    done = subprocess.run(
        [*sudo, "/usr/bin/python3", "-I", "-B", "-c", LOAD, privilege.AGENT, sources],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.stdout == "unsigned addresses\n", done.stderr
