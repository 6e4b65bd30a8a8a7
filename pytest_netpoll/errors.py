"""Every error a user can meet: what failed, why, and the next command to type."""

from __future__ import annotations

from pytest_netpoll import clean


class NetpollError(Exception):
    """Base of all errors of this plugin.

    what: what failed, one line, names the thing (service, test, file).
    why: the cause, one line, or None where `what` says it all.
    fix: the next thing to do, preferably a command to type, or None.
    detail: lines that help (compiler output, the tail of a log), shown after the message.
    """

    def __init__(
        self,
        what: str,
        *,
        why: str | None = None,
        fix: str | None = None,
        detail: str | None = None,
    ) -> None:
        self.what = what
        self.why = why
        self.fix = fix
        self.detail = detail
        super().__init__(str(self))

    @property
    def reason(self) -> str:
        """The message on one line, without the detail."""
        text = self.what if self.why is None else f"{self.what}: {self.why}"
        return text if self.fix is None else f"{text} (to mend: {self.fix})"

    def __str__(self) -> str:
        lines = [self.what if self.why is None else f"{self.what}: {self.why}"]
        if self.fix is not None:
            lines.append(f"  to mend: {self.fix}")
        if self.detail:
            lines += ["", self.detail]
        # Into them goes what services and compilers print, and what programs are called.
        return clean.lines("\n".join(lines))


class UsageError(NetpollError):
    """A marker, an option or a fixture argument is wrong; nothing was run because of it."""


class ServiceError(NetpollError):
    """The Go service could not be built, launched or reached, or it died."""


class UnmeasuredError(NetpollError):
    """The window could not be measured, so its test must not pass."""
