"""Forbids this process the system calls that watching never needs, whatever its capabilities allow.

For uprobes the agent keeps CAP_SYS_ADMIN, which is nearly root. With this filter, which can't be removed, it
can't start programs, open files for writing, change names, owners, modes or mounts, and it can only read
other processes. The filter lists what is refused, because the calls that Python and its libraries make differ
between versions.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

_PR_SET_SECCOMP = 22
_MODE_FILTER = 2
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
_LARGEST = 1 << 30  # x86-64 has a second set of calls (x32) from here on

# Offsets in struct seccomp_data.
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16
# linux/filter.h
_LOAD, _EQUAL, _AT_LEAST, _ANY_OF, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

# Name -> number on x86-64 and on arm64, which lacks some; from the kernel's tables.
REFUSED: dict[str, tuple[int, int | None]] = {
    "execve": (59, 221),
    "execveat": (322, 281),
    # Files. A filter can't see what openat2 and io_uring open.
    "creat": (85, None),
    "openat2": (437, 437),
    "io_uring_setup": (425, 425),
    "open_by_handle_at": (304, 265),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "link": (86, None),
    "linkat": (265, 37),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "truncate": (76, 45),
    "ftruncate": (77, 46),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "utimensat": (280, 88),
    # Mounts and namespaces.
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "setns": (308, 268),
    "unshare": (272, 97),
    # Other processes, the kernel, the machine, the network.
    "ptrace": (101, 117),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "kill": (62, 129),
    "pidfd_send_signal": (424, 424),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "quotactl": (179, 60),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "socket": (41, 198),
}
# Refused only for writing: name -> the argument that has the flags.
_OPENING = {"x86_64": ((2, 1), (257, 2)), "aarch64": ((56, 2),)}


def restrict() -> None:
    """Restricts this thread and those that it starts, permanently. Raises OSError; takes no_new_privs or
    CAP_SYS_ADMIN.
    """
    code = _filter(os.uname().machine)
    text = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(text))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(
        _PR_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), program, ctypes.c_ulong(0), ctypes.c_ulong(0)
    ):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _filter(machine: str) -> bytes:
    refuse = _step(_RETURN, _REFUSE)
    steps = [_step(_LOAD, _ARCH), _step(_EQUAL, _ARCHITECTURE[machine], 1, 0), refuse]
    steps += [_step(_LOAD, _NUMBER), _step(_AT_LEAST, _LARGEST, 0, 1), refuse]
    column = ("x86_64", "aarch64").index(machine)
    for numbers in REFUSED.values():
        number = numbers[column]
        if number is not None:
            steps += [_step(_EQUAL, number, 0, 1), refuse]
    for number, argument in _OPENING[machine]:
        flags = _step(_LOAD, _ARGUMENTS + 8 * argument)
        steps += [_step(_EQUAL, number, 0, 4), flags, _step(_ANY_OF, _WRITING, 0, 1), refuse]
        steps.append(_step(_RETURN, _ALLOW))
    return b"".join([*steps, _step(_RETURN, _ALLOW)])


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
