"""What differs between machines: syscall numbers and what each syscall means to the poller.

Numbers are from the kernel's syscall tables (x86-64: syscall_64.tbl; arm64: asm-generic/unistd.h).
"""

from __future__ import annotations

import os

READ = 0
WRITE = 4

POLL = 0x100  # arg0 epoll fd, arg1 events, arg3 timeout in ms
POLL_TIMESPEC = 0x200  # epoll_pwait2: arg3 points to a timespec or is NULL
CTL = 0x400  # arg0 epoll fd, arg1 op, arg2 fd, arg3 event
SOCKOPT = 0x800  # counts only as getsockopt(SOL_SOCKET, SO_ERROR); no I/O call
CLOSE = 0x1000  # the fd that it "reads from" is closed, or another file afterwards
EOF = 0x2000  # a return of 0 means end of file,
RECEIVE = 0x4000  # unless it is an empty datagram; without EOF: returns a number of messages
ACCEPT = 0x8000  # returns a new descriptor
IO_CALL = 16  # the shift of ROLE_IO_CALL
FLAGS_ARG = 24  # the shift of ROLE_FLAGS


def reads(arg: int) -> int:
    return (arg + 1) << READ


def writes(arg: int) -> int:
    return (arg + 1) << WRITE


def flags(arg: int) -> int:
    """The call has flags; with MSG_PEEK it consumes nothing."""
    return {2: 1, 3: 2}[arg] << FLAGS_ARG


# Every syscall that Go's net, os and internal/poll issue on a pollable descriptor, by the direction
# whose readiness they consume. Calls that no wakeup precedes cost one array lookup.
ROLES = {
    "read": reads(0) | EOF,
    "readv": reads(0) | EOF,
    "pread64": reads(0) | EOF,
    "preadv": reads(0) | EOF,
    "preadv2": reads(0) | EOF,
    "recvfrom": reads(0) | EOF | RECEIVE | flags(3),
    "recvmsg": reads(0) | EOF | RECEIVE | flags(2),
    "recvmmsg": reads(0) | RECEIVE | flags(3),
    "accept": reads(0) | ACCEPT,
    "accept4": reads(0) | ACCEPT,
    "write": writes(0),
    "writev": writes(0),
    "pwrite64": writes(0),
    "pwritev": writes(0),
    "pwritev2": writes(0),
    "vmsplice": writes(0),
    "sendto": writes(0),
    "sendmsg": writes(0),
    "sendmmsg": writes(0),
    "connect": writes(0),
    "getsockopt": writes(0) | SOCKOPT,
    "splice": reads(0) | writes(2) | EOF,
    "copy_file_range": reads(0) | writes(2) | EOF,
    "sendfile": reads(1) | writes(0) | EOF,
    "tee": reads(0) | writes(1) | EOF,
    "close": reads(0) | CLOSE,
    "dup2": reads(1) | CLOSE,
    "dup3": reads(1) | CLOSE,
    "epoll_wait": POLL,
    "epoll_pwait": POLL,
    "epoll_pwait2": POLL | POLL_TIMESPEC,
    "epoll_ctl": CTL,
}

# The calls that count as I/O, in the order of their numbers in ROLE_IO_CALL.
IO_CALLS = tuple(
    name
    for name, role in ROLES.items()
    if role & (0xF << READ | 0xF << WRITE) and not role & (SOCKOPT | CLOSE)
)

# A table lacks the calls that its machine lacks: arm64 has no epoll_wait and no dup2.
NUMBERS = {
    "x86_64": {
        "read": 0,
        "write": 1,
        "close": 3,
        "pread64": 17,
        "pwrite64": 18,
        "readv": 19,
        "writev": 20,
        "dup2": 33,
        "sendfile": 40,
        "connect": 42,
        "accept": 43,
        "sendto": 44,
        "recvfrom": 45,
        "sendmsg": 46,
        "recvmsg": 47,
        "getsockopt": 55,
        "epoll_wait": 232,
        "epoll_ctl": 233,
        "splice": 275,
        "tee": 276,
        "vmsplice": 278,
        "epoll_pwait": 281,
        "accept4": 288,
        "dup3": 292,
        "preadv": 295,
        "pwritev": 296,
        "recvmmsg": 299,
        "sendmmsg": 307,
        "copy_file_range": 326,
        "preadv2": 327,
        "pwritev2": 328,
        "epoll_pwait2": 441,
    },
    "aarch64": {
        "epoll_ctl": 21,
        "epoll_pwait": 22,
        "dup3": 24,
        "close": 57,
        "read": 63,
        "write": 64,
        "readv": 65,
        "writev": 66,
        "pread64": 67,
        "pwrite64": 68,
        "preadv": 69,
        "pwritev": 70,
        "sendfile": 71,
        "vmsplice": 75,
        "splice": 76,
        "tee": 77,
        "accept": 202,
        "connect": 203,
        "sendto": 206,
        "recvfrom": 207,
        "getsockopt": 209,
        "sendmsg": 211,
        "recvmsg": 212,
        "accept4": 242,
        "recvmmsg": 243,
        "sendmmsg": 269,
        "copy_file_range": 285,
        "preadv2": 286,
        "pwritev2": 287,
        "epoll_pwait2": 441,
    },
}

# struct epoll_event is packed on x86-64 only; the C side chooses by the same define.
DEFINES: dict[str, list[str]] = {"x86_64": [], "aarch64": ["-DNETPOLL_AARCH64"]}


# The defines for the C, the same on each machine.
MACROS = {
    "SYSCALLS": 512,  # numbers are below that
    "IO_CALLS": 32,  # a power of 2, and room for all of IO_CALLS
    "ROLE_POLL": POLL,
    "ROLE_POLL_TIMESPEC": POLL_TIMESPEC,
    "ROLE_CTL": CTL,
    "ROLE_SOCKOPT": SOCKOPT,
    "ROLE_CLOSE": CLOSE,
    "ROLE_EOF": EOF,
    "ROLE_RECEIVE": RECEIVE,
    "ROLE_ACCEPT": ACCEPT,
    "FLAGS_ARG": FLAGS_ARG,
}


def current() -> str:
    return os.uname().machine


def roles(machine: str) -> dict[int, int]:
    """Syscall number -> role, for the machine. KeyError when there is no table for it."""
    return {number: ROLES[name] | _io_call(name) for name, number in NUMBERS[machine].items()}


def _io_call(name: str) -> int:
    return IO_CALLS.index(name) << IO_CALL if name in IO_CALLS else 0


def names(machine: str) -> dict[int, str]:
    return {number: name for name, number in NUMBERS[machine].items()}


# The breakpoint that a uprobe puts in place of an instruction.
BREAKPOINT_SIZE = {"x86_64": 1, "aarch64": 4}.get(current(), 1)


def emulated(code: bytes) -> bool:
    """Whether the code begins with an instruction that the kernel emulates at a uprobe, not single-steps.

    Knows only those that functions begin with: on x86-64 `push` and a conditional jump (arch/x86/kernel/
    uprobes.c), on arm64 a conditional branch (arch/arm64/kernel/probes/simulate-insn.c).
    """
    if current() == "aarch64":
        return len(code) >= 4 and int.from_bytes(code[:4], "little") & 0xFF000010 == 0x54000000
    if len(code) < 2:
        return False
    near = code[0] == 0x0F and code[1] & 0xF0 == 0x80
    return near or code[0] & 0xF0 == 0x70 or code[0] & 0xF8 == 0x50
