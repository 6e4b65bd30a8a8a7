"""The messages that the agent understands, and how it refuses others. An example is in __main__.py."""

import json

VERSION = 3


class BadMessage(Exception):
    """A message that is not understood; the text says what is wrong with it."""


class Unable(Exception):
    """The agent cannot do its work; the message says why."""

    def __init__(self, what, fix=None):
        super().__init__(what)
        self.fix = fix


# command -> its arguments, all of which must be there, as integers.
COMMANDS = {
    "about": (),
    "load": ("max_processes", "max_fds", "uprobes"),
    "watch": ("pid",),
    "unwatch": ("pid",),
    "programs": (),
    "attach": ("pid", "ready", "deadline"),
    "learn": ("pid", "allp", "runqsize", "number", "status", "schedtick", "runqhead"),
    "open": ("ready_stacks", "unclaimed", "io_stacks", "io_calls", "cpu_samples"),
    "close": ("window", "settle_ms"),
    "lap": ("window", "settle_ms"),
}
# What only the first message can be; about asks for nothing but which BCC there is.
FIRST = ("about", "load")


def parse(line):
    """(id, command, arguments). line: of Timers.lines. Raises BadMessage."""
    if line is None:
        raise BadMessage("it is too long")
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadMessage("not JSON: %s" % error) from error
    if not isinstance(message, dict):
        raise BadMessage("not an object")
    arguments = COMMANDS.get(message.get("do")) if isinstance(message.get("do"), str) else None
    if arguments is None:
        raise BadMessage("unknown command %r" % message.get("do"))
    values = {}
    for name in arguments:
        value = message.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31:
            raise BadMessage("%s needs %s, a whole number" % (message["do"], name))
        values[name] = value
    return message.get("id"), message["do"], values
