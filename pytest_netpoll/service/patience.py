"""When slow work is worth a line in the terminal, and how that is printed."""

from __future__ import annotations

from collections.abc import Callable

Say = Callable[[str], None]

QUIET_SECONDS = 1.0  # shorter work is not worth a line in the terminal
