"""Whether a program's file is what it seems: a user's mount may show one file and hold another."""

from __future__ import annotations

import ctypes
import os
import stat

# f_type of statfs(2), from linux/magic.h: file systems whose files hold their own content.
_PLAIN = {
    0xEF53: "ext4",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0xF2F52010: "f2fs",
    0xCA451A4E: "bcachefs",
    0x2FC12FC1: "zfs",
    0x01021994: "tmpfs",
}
# overlayfs shows files of other file systems. Root's mounts are accepted, as in containers, because root
# chose what they show.
_OVERLAY = 0x794C7630

_AT_EMPTY_PATH = 0x1000
_STATX_MNT_ID = 0x1000
_MNT_ID = 144 // 8  # where stx_mnt_id is in struct statx, in words


def suspicion(fd: int) -> str | None:
    """Why no probe may be placed in the file; None if one may. Raises OSError."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return "it is not a regular file"
    if status.st_mode & (stat.S_ISUID | stat.S_ISGID) or _has_capabilities(fd):
        return "it may give more rights than its user has"
    kind = _filesystem(fd)
    if kind in _PLAIN:
        return None
    if kind != _OVERLAY:
        plain = ", ".join(sorted(_PLAIN.values()))
        return f"its filesystem (of type {kind:#x}) is not one of {plain}"
    return None if _mount(fd) in _our_mounts() else "it is on an overlay that the user may have mounted"


def _has_capabilities(fd: int) -> bool:
    try:
        return bool(os.getxattr(fd, "security.capability"))
    except OSError:
        return False


def _filesystem(fd: int) -> int:
    # Larger than struct statfs is anywhere; f_type is its first word.
    buffer = (ctypes.c_ulong * 64)()
    if ctypes.CDLL(None, use_errno=True).fstatfs(fd, buffer):
        raise OSError(ctypes.get_errno(), "fstatfs")
    return buffer[0]


def _mount(fd: int) -> str | None:
    """The number of the mount through which the file was opened.

    By statx(2): before Linux 5.14 a process that has changed its user can't read /proc/self/fdinfo.
    """
    status = (ctypes.c_uint64 * 32)()  # struct statx, which is 256 bytes
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statx(fd, b"", _AT_EMPTY_PATH, _STATX_MNT_ID, status):
        raise OSError(ctypes.get_errno(), "statx")
    known = status[0] & _STATX_MNT_ID  # stx_mask is in the low half
    return str(status[_MNT_ID]) if known else None


def _our_mounts() -> set[str]:
    """The mounts of our own mount namespace: only root can have made them, except FUSE's."""
    with open("/proc/self/mountinfo") as f:
        return {line.split(None, 1)[0] for line in f}
