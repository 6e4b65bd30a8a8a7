"""How each generation of Go packs a pollDesc's address into epoll_event.data, and where its fields are.

Read from runtime/netpoll.go and runtime/tagptr_64bit.go of 1.19 to 1.27. The Go version doesn't decide which
one applies: calibration proves one on the live process.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple


class Layout(NamedTuple):
    """data >> right << left is the address; the low tag_bits of data equal pollDesc.fdseq (0: untagged).

    rg is the pollDesc's word number `waiters`, wg the next.
    """

    name: str
    right: int
    left: int
    tag_bits: int
    waiters: int


LAYOUTS = (
    Layout("go1.25", 24, 9, 24, 4),
    Layout("go1.21", 19, 3, 19, 4),
    Layout("go1.19", 0, 0, 0, 3),
)

FD_WORD = 1
FDSEQ_WORD = 2
POLLDESC = struct.Struct("=6Q")

GO_EVENTS = 0x8000201D  # EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, with ERR and HUP that the kernel adds
BREAK_EVENTS = 0x19  # EPOLLIN, with ERR and HUP that the kernel adds


def address(layout: Layout, data: int, signed: bool) -> int:
    """The pollDesc's address. amd64 sign-extends (`signed`), other machines do not."""
    if signed and data >> 63:
        data -= 1 << 64
    return (data >> layout.right << layout.left) & (1 << 64) - 1


def holds(layout: Layout, data: int, fd: int, words: Sequence[int]) -> bool:
    """Do the six words read at the address look like the pollDesc of this fd?"""
    if words[FD_WORD] != fd:
        return False
    return not layout.tag_bits or (data ^ words[FDSEQ_WORD]) & (1 << layout.tag_bits) - 1 == 0
