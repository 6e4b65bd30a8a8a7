"""The kernel's histogram of times: buckets and percentiles."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import TypeVar

from pytest_netpoll.agent.constants import LATENCY_BITS, LATENCY_BUCKETS, LATENCY_SUB_BITS

BUCKETS = LATENCY_BUCKETS  # of the kernel's latency histogram
_SUB_BUCKETS = 1 << LATENCY_SUB_BITS


def bucket_of(ns: int) -> int:
    """The index, 0 <= index < BUCKETS, of a latency in ns; times over 2**40-1 ns (18 min) are clamped."""
    ns = min(ns, (1 << LATENCY_BITS) - 1)
    if ns < _SUB_BUCKETS:
        return ns
    shift = ns.bit_length() - 1 - LATENCY_SUB_BITS
    return (shift + 1) * _SUB_BUCKETS + (ns >> shift) % _SUB_BUCKETS


def bucket_bounds(index: int) -> tuple[int, int]:
    """The half-open range (low, high_exclusive) of ns that a bucket holds."""
    if not 0 <= index < BUCKETS:
        raise ValueError(f"bucket {index} is not in 0..{BUCKETS - 1}")
    octave, sub = divmod(index, _SUB_BUCKETS)
    if octave == 0:
        return sub, sub + 1
    low = (_SUB_BUCKETS + sub) << (octave - 1)
    return low, low + (1 << (octave - 1))


_Value = TypeVar("_Value", int, tuple[int, int])


def ranked(counts: Mapping[_Value, int], q: float) -> _Value | None:
    """The nearest-rank quantile `q` (0 < q <= 1) of {value: count}; None for no samples. For a histogram
    (bucket index -> count), the bucket that holds it.
    """
    if not 0 < q <= 1:
        raise ValueError(f"quantile {q} is not in 0..1")
    # In floats 0.07 * 100 is 7.000000000000001, whose ceiling is one rank too far.
    rank = math.ceil(Fraction(str(q)) * sum(counts.values()))
    seen = 0
    for value in sorted(counts):
        seen += counts[value]
        if 0 < rank <= seen:
            return value
    return None


def percentile(histogram: Mapping[int, int], q: float) -> float | None:
    """The nearest-rank quantile `q` (0 < q <= 1) in ns, None for no samples.

    histogram: bucket index -> count. The answer is the middle of the bucket's integers, at most
    3.2 % off (and exact below 32 ns, where a bucket holds one integer).
    """
    index = ranked(histogram, q)
    if index is None:
        return None
    low, high = bucket_bounds(index)
    return (low + high - 1) / 2
