"""Detect spurious and late goroutine wakeups in Go services under test."""

__version__ = "0.1.0"
