"""How Go functions begin, and where in a prologue a probe is cheap and safe.

pytest's side looks for the place in the program's file, the agent in the process's memory.
"""

from __future__ import annotations

import re
import struct

# cmp 0x10(%r14),%rsp, in large frames of lea -x(%rsp),%r12; then jbe, to where the stack grows; then mostly
# push %rbp. The push is better than the jump, because it doesn't run again after the stack has grown.
_X86_64 = re.compile(
    rb"(?:\x49\x3b\x66\x10|\x4c\x8d(?:\x64\x24.|\xa4\x24.{4})\x4d\x3b\x66\x10)"
    rb"(?P<jump>\x76.|\x0f\x86.{4})(?P<push>\x55)?",
    re.DOTALL,
)
LONGEST = 32  # bytes
_ARM64_SEARCHED = 6  # instructions


def cheap_place(code: bytes, machine: str) -> int | None:
    """The offset from a function's entry to an instruction that the kernel emulates and that runs once per
    call.

    code: the function's first bytes. machine: as uname calls it. None if there is no such place nearby.
    """
    if machine == "aarch64":
        for at, (word,) in enumerate(struct.iter_unpack("<I", code[: 4 * _ARM64_SEARCHED])):
            if word & 0xFF000010 == 0x54000000:  # b.ls, to where the stack grows
                return 4 * at
        return None
    if code[:1] == b"\x55":  # push %rbp: a function without a check
        return 0
    match = _X86_64.match(code)
    if machine != "x86_64" or match is None:
        return None
    return match.start("push" if match["push"] else "jump")
