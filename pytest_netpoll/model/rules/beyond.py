"""What no rule is about, or not under that name, and which limit or rule is."""

from __future__ import annotations

import re
from collections.abc import Mapping

# The beginning of a word that users look for -> where to look.
_TOPICS: Mapping[str, str] = {
    **dict.fromkeys(
        ("mutex", "lock", "deadlock"),
        "none is about mutexes: limit max_mutex_wait_seconds",
    ),
    "leak": "see NP501 parked-leak, or limit max_parked_growth",
    **dict.fromkeys(
        ("ticker", "timer"), "see NP301 timer-churn, or limit max_polls in a window without requests"
    ),
    **dict.fromkeys(
        ("slow", "latency", "response"),
        "none is about slow answers: limit max_response_p90; about goroutines that run late: NP4",
    ),
}

NO_RULE = (
    "No rule finds these; limit them: mutexes (max_mutex_wait_seconds), connections that the service dials "
    "and leaks (max_parked_growth), slow answers (max_response_p90), tickers in a test with traffic "
    "(max_polls, in a window without requests)."
)
PAGE = "what-to-limit.md"  # of the docs


def about(text: str) -> str | None:
    """Where to look for what the text names; None if it names nothing known."""
    words = re.findall(r"[a-z]+", text.lower())
    return next((hint for topic, hint in _TOPICS.items() if any(w.startswith(topic) for w in words)), None)
