"""What a service's process runs until its program may begin: see launch.py, which starts this as a script.

Everything else about the process is already the service's: pid, session, directory and files. It reports that
it is ready, waits, and execs the program. It is already watched while it waits, so it waits without a call
that the probe counts as I/O. Each launch waits for Python to start, so it imports as little as possible.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # importing signal would take longer than all the rest
import os
import select
import sys

HERE = b"here"  # sent when it waits; anything sent later is the errno of a program that can't run


def main() -> None:
    control, status, size, count = map(int, sys.argv[1:])
    words = _read(control, size).split(b"\0")
    arguments, environment = words[:count], dict(word.split(b"=", 1) for word in words[count:])
    for fd in (control, status):
        os.set_inheritable(fd, False)
    for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
        _signal.signal(number, _signal.SIG_DFL)  # Python ignores them
    os.write(status, HERE)
    poller = select.poll()
    poller.register(control, select.POLLIN)
    ((_, events),) = poller.poll()
    if not events & select.POLLIN:
        return  # pytest has ended
    try:
        os.execvpe(arguments[0], arguments, environment)
    except OSError as error:
        os.write(status, b"%d" % (error.errno or 0))


def _read(fd: int, size: int) -> bytes:
    text = b""
    while len(text) < size and (more := os.read(fd, size - len(text))):
        text += more
    return text


if __name__ == "__main__":
    main()
