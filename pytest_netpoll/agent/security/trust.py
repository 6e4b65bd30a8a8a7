"""Whether only root can change files: users must not be able to change what sudo starts for them.

The agent checks itself and its cache, and pytest checks the agent before starting it.
"""

from __future__ import annotations

import os
import stat


def distrust(path: str) -> str | None:
    """Why users other than root could change the file, or the directory and its content; None if they can't.

    Anyone who can write to a parent directory could replace it, so these are checked, too.
    """
    return distrust_place(path) or _distrust_content(path)


def distrust_place(path: str, uid: int = 0) -> str | None:
    """The same for the file or directory and its parents, but not its content. uid: who may own it, besides
    root.
    """
    path = os.path.abspath(path)
    above = [path]
    while above[0] != "/":
        above.insert(0, os.path.dirname(above[0]))
    for name in above:
        reason = _distrust_one(name, uid)
        if reason is not None:
            return reason
    return None


def nearest_existing(path: str) -> str:
    """The path, or its nearest ancestor that exists. path: absolute."""
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path


def _distrust_content(path: str) -> str | None:
    for directory, directories, files in os.walk(path):
        for name in (*directories, *files):
            reason = _distrust_one(os.path.join(directory, name))
            if reason is not None:
                return reason
    return None


def _distrust_one(path: str, uid: int = 0) -> str | None:
    try:
        status = os.lstat(path)
    except OSError as error:
        return f"{path}: {error.strerror}"
    if stat.S_ISLNK(status.st_mode):
        return f"{path} is a symbolic link"
    if status.st_uid not in (0, uid):
        return f"{path} belongs to user {status.st_uid}, not to root"
    # With an access control list, the group's bits are the most that it grants to any user.
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        who = "its owner" if uid else "root"
        return f"{path} can be written to by others than {who} (mode {stat.S_IMODE(status.st_mode):o})"
    return None
