"""Every error a user can meet: what failed, why, and the next command to type."""

from __future__ import annotations

from pytest_netpoll import clean


class Reason(str):
    """Why something failed, is wrong or could not be measured: a str that keeps its three parts.

    what: what happened, to what; one line. why: the cause, one line, or None where `what` says it all.
    fix: the next thing to do, preferably a command to type, or None.

    Reports use the parts. As a str, for assertions, logs and JSON, it is "what: why", with the fix on a line
    of its own.
    """

    what: str
    why: str | None
    fix: str | None

    def __new__(cls, what: str, *, why: str | None = None, fix: str | None = None) -> Reason:
        headline = what if why is None else f"{what}: {why}"
        reason = super().__new__(cls, headline if fix is None else f"{headline}\n  fix: {fix}")
        reason.what, reason.why, reason.fix = what, why, fix
        return reason

    @classmethod
    def of(cls, text: str) -> Reason:
        """Makes any text a reason; a reason stays as it is."""
        return text if isinstance(text, Reason) else cls(text)

    @property
    def headline(self) -> str:
        """On one line, without the fix."""
        return self.what if self.why is None else f"{self.what}: {self.why}"

    def about(self, subject: str) -> Reason:
        """The reason with a prefix: "server: what: why"."""
        return Reason(f"{subject}: {self.what}", why=self.why, fix=self.fix)


class NetpollError(Exception):
    """Base of all errors of this plugin: a reason, and what helps to understand it.

    detail: lines such as a compiler's output or the tail of a log, shown after the message.
    """

    def __init__(
        self,
        what: str,
        *,
        why: str | None = None,
        fix: str | None = None,
        detail: str | None = None,
    ) -> None:
        self.reason = Reason(what, why=why, fix=fix)
        self.detail = detail
        super().__init__(str(self))

    @property
    def what(self) -> str:
        return self.reason.what

    @property
    def why(self) -> str | None:
        return self.reason.why

    @property
    def fix(self) -> str | None:
        return self.reason.fix

    def __str__(self) -> str:
        # They may contain output of services and compilers, and names of programs.
        return clean.lines("\n".join([self.reason, *(("", self.detail) if self.detail else ())]))


class UsageError(NetpollError):
    """A marker, an option or a fixture argument is wrong; nothing was run because of it."""


class ServiceError(NetpollError):
    """The Go service could not be built, launched or reached, or it died."""


class UnmeasuredError(NetpollError):
    """The window could not be measured, so its test must not pass."""
