"""The privileged side: loads the BPF program and answers questions about windows.

Run as `python3 -I agent` by the system's Python, because only that can import BCC. Speaks JSON, one message
per line, on stdin and stdout; stderr is for humans. When stdin closes it exits, even while compiling, and
nothing of it stays in the kernel. It never starts a program. It writes only its cache of compiled programs,
and nothing at all if sudo starts it by install-agent's line. Once the program is loaded it drops its
privileges. For an ordinary user it only measures that user's own processes.

    → {"id": 0, "do": "load", "max_processes": 16, "max_fds": 16384, "uprobes": 1, "answers": 0}
    ← {"ready": {…}}   or   {"failed": {"what": …, "fix": …}}
    → {"id": 1, "do": "watch", "pid": 4242}
    ← {"id": 1, "ok": {…}}   or   {"id": 1, "error": {"what": …, "fix": …}}

"load" also takes a number as "trace": how many single events of a window to record; "close" returns them.

Nothing is on the command line, so that a line in sudoers can allow exactly this and nothing else. Users who
need no such line may add

    --unverified [--cache=DIR|--cache=off]      for users who may run anything as root anyway
    --fill=MAX_PROCESSES,MAX_FDS                install-agent's: fills the installed agent's cache, for users
"""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Sequence

import bytecode
from security.store import Store

# Skips the check that only root can write to the files.
UNVERIFIED = "--unverified"
CACHE = "--cache="
FILL = "--fill="
OFF = "off"
REFRESH = "sudo python -m pytest_netpoll install-agent"
HERE = os.path.dirname(os.path.abspath(__file__))


def kept(arguments: Sequence[str]) -> Store | None:
    """Where compiled programs are kept: for an installed agent beside it, where only install-agent writes."""
    if UNVERIFIED not in arguments:
        fill = any(argument.startswith(FILL) for argument in arguments)
        return Store(os.path.join(os.path.dirname(HERE), "cache"), 0, fill, REFRESH)
    uid = os.geteuid()
    directory = next((word[len(CACHE) :] for word in arguments if word.startswith(CACHE)), None)
    if directory == OFF:
        return None
    if directory is None:
        try:
            # Not from the environment, which the user controls. On some systems the home is a link.
            home = os.path.realpath(pwd.getpwuid(uid).pw_dir)
            directory = os.path.join(home, ".cache", "pytest-netpoll")
        except KeyError:
            return None
    return Store(os.path.abspath(directory), uid, True)


def main() -> int:
    arguments, environment = sys.argv[1:], dict(os.environ)
    # The user must not decide what BCC compiles, how, or from where.
    os.environ.clear()
    os.environ["PATH"] = os.defpath
    os.chdir("/")
    store, verified = kept(arguments), UNVERIFIED not in arguments
    # install-agent has compiled the installed agent's modules already.
    if store is not None and not verified:
        bytecode.use(HERE, store)
    import serving  # only now is it known where to import them from

    sizes = next((word[len(FILL) :] for word in arguments if word.startswith(FILL)), None)
    return serving.main(environment, verified, store, sizes)


if __name__ == "__main__":
    sys.exit(main())
