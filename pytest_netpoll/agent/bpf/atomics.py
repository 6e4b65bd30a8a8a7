"""Whether BPF programs can atomically exchange a word in memory on this kernel."""

from __future__ import annotations

import os
import struct

from bpf import tracing

# r2 = 0; *(r10 - 8) = r2; r1 = r10; r1 += -8; r2 = xchg(r1, r2); r0 = 0; exit
_CODE = b"".join(
    struct.pack("=BBhi", *instruction)
    for instruction in (
        (0xB7, 0x02, 0, 0),
        (0x7B, 0x2A, -8, 0),
        (0xBF, 0xA1, 0, 0),
        (0x07, 0x01, 0, -8),
        (0xDB, 0x21, 0, 0xE1),
        (0xB7, 0x00, 0, 0),
        (0x95, 0x00, 0, 0),
    )
)


def can_exchange() -> bool:
    """Since Linux 5.12, on x86-64.

    waits.c has to name registers for that. On arm64 BCC's first pass takes the names for the machine's own
    registers, which don't exist.
    """
    return os.uname().machine == "x86_64" and tracing.works(b"exchange", _CODE)
