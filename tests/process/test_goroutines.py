"""Goroutines read from a process's memory, which may hold anything: here it is our own, with false data."""

from __future__ import annotations

import ctypes
import importlib
import mmap
import os
import random
import signal
import struct
import subprocess

import pytest

from pytest_netpoll.meter import privilege

SIZE = 1 << 16
G, STACK = 0x100, 0x1000  # where they are in the buffer


@pytest.fixture
def agent(monkeypatch):
    monkeypatch.syspath_prepend(str(privilege.AGENT))
    return {
        name: importlib.import_module(name)
        for name in ("processes.goroutines", "processes.proc", "bpf.layouts", "processes.ranges")
    }


@pytest.fixture
def parked(agent):
    """parked(words) is what is read from a g with these words; memory: what the words may point into."""
    goroutines, proc, layouts, _ = agent.values()
    buffer = ctypes.create_string_buffer(SIZE)
    base = ctypes.addressof(buffer)
    layout = layouts.LAYOUTS[-1]  # the data is the address
    registration = proc.Registration(7, layouts.GO_EVENTS, base)
    code = [proc.Mapping(base + 0x8000, base + 0x9000, 0, "code")]

    def parked(words, frames=()):
        write(words, frames)
        return goroutines.parked(os.getpid(), [registration], layout, True, code)

    def write(words, frames=()):
        struct.pack_into("<6Q", buffer, 0, 0, 7, 0, base + G, 0, 0)
        struct.pack_into("<24Q", buffer, G, *words)
        for at, frame in frames:
            struct.pack_into("<QQ", buffer, at, *frame)

    parked.buffer, parked.write = buffer, write
    parked.base, parked.pc = base, base + 0x8123
    return parked


def g(base, pc, goid=18, bp=STACK + 0x100):
    """The words of a parked g, as in Go 1.27."""
    words = [0] * 24
    words[0], words[1] = base + STACK, base + STACK + 0x1000
    words[7], words[8], words[9], words[12] = base + STACK + 0x80, pc, base + G, base + bp
    words[18], words[19] = 4, goid
    return words


def test_frames_are_followed_up_to_the_outermost(parked):
    base, pc = parked.base, parked.pc
    frames = [(STACK + 0x100, (base + STACK + 0x180, pc + 1)), (STACK + 0x180, (0, pc + 2))]
    for _ in range(2):  # the second time with the shapes from the first
        (found,) = parked(g(base, pc), frames)
        assert (found.goid, found.fd, found.write, found.stack) == (18, 7, False, (pc, pc + 1, pc + 2))


@pytest.mark.parametrize(
    "outer", [STACK + 0x100, STACK + 0x80, STACK + 0x108, STACK + 0xFFC, 0x9000, 1 << 63]
)
def test_frames_that_lead_nowhere_or_in_circles_are_cut(parked, outer):
    base, pc = parked.base, parked.pc
    (found,) = parked(g(base, pc), [(STACK + 0x100, ((base + outer) & (1 << 64) - 1, pc + 1))])
    assert found.stack[:2] == (pc, pc + 1)
    assert len(found.stack) <= 3


@pytest.mark.parametrize(
    ("word", "value"), [(9, 1), (18, 2), (8, 0), (8, 1 << 64 - 1), (7, 1), (0, (1 << 64) - 1), (1, 0)]
)
def test_a_goroutine_that_does_not_look_parked_has_no_stack(parked, word, value):
    words = g(parked.base, parked.pc)
    words[word] = value & (1 << 64) - 1
    (found,) = parked(words)
    assert (found.goid, found.stack) == (None, ())


def test_arbitrary_words_are_handled(parked):
    numbers = random.Random(1)
    base = parked.base
    places = [0, 1, 4, base, base + G, base + STACK, base + SIZE, base + 0x8001, (1 << 64) - 1, 1 << 63]
    for _ in range(2000):
        words = g(base, parked.pc)
        for _ in range(numbers.randrange(6)):
            words[numbers.randrange(24)] = numbers.choice(places)
        frames = [
            (numbers.randrange(STACK, STACK + 0x1000, 8), (numbers.choice(places), numbers.choice(places)))
            for _ in range(50)
        ]
        for found in parked(words, frames):
            assert len(found.stack) <= 65
            assert all(base + 0x8000 <= address < base + 0x9000 for address in found.stack)


@pytest.fixture
def before_second_look(agent, monkeypatch):
    """before_second_look(act): acts once it is known where everything is, before all of it is read again."""
    goroutines, ranges = agent["processes.goroutines"], agent["processes.ranges"]

    def before_second_look(act):
        def read(*arguments):
            nonlocal looks
            looks += 1
            if looks == 3:  # the pollDescs, then the gs
                act()
            return ranges.Ranges(*arguments)

        looks = 0
        monkeypatch.setattr(goroutines, "Ranges", read)

    return before_second_look


def test_a_goroutine_that_is_woken_between_two_looks_is_not_parked(parked, before_second_look):
    before_second_look(lambda: struct.pack_into("<Q", parked.buffer, 24, 0))
    assert parked(g(parked.base, parked.pc)) == []


def test_a_goroutine_that_parks_elsewhere_between_two_looks_is_read_there(parked, before_second_look):
    base, pc = parked.base, parked.pc
    later = [(STACK + 0x200, (0, pc + 9))]
    before_second_look(lambda: parked.write(g(base, pc + 8, bp=STACK + 0x200), later))
    (found,) = parked(g(base, pc), [(STACK + 0x100, (0, pc + 1))])
    assert found.stack == (pc + 8, pc + 9)


def test_memory_that_is_not_mapped_hides_nothing_beside_it(agent):
    ranges, proc = agent["processes.ranges"], agent["processes.proc"]
    page = mmap.PAGESIZE
    with mmap.mmap(-1, 3 * page) as memory, proc.Memory(os.getpid()) as own:
        memory[:] = b"x" * len(memory)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        protect = ctypes.CDLL(None).mprotect
        protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        assert protect(start + page, page, 0) == 0
        gap = start + page
        parts = [(start, 8), (gap - 4, 8), (gap, 0), (gap, 4), ((1 << 64) - 8, 16), (gap + page, 4)] * 300
        read = ranges.Ranges(os.getpid(), [word for part in parts for word in part])
        assert read.read_mapped(own) == (b"x" * 8 + bytes(8 + 4 + 16) + b"x" * 4) * 300
        assert read.read(own) is None
        assert ranges.Ranges(os.getpid(), [start, page]).read(own) == b"x" * page
        assert protect(start + page, page, mmap.PROT_READ | mmap.PROT_WRITE) == 0


def test_only_a_child_that_has_not_exec_ed_shows_its_parents_goroutines(agent):
    proc = agent["processes.proc"]
    command = ["sh", "-c", '(sleep 60; :) & echo "$!"; wait']
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as parent:
        child = int(parent.stdout.readline())
        assert proc.may_exec_soon(child)
        assert not proc.may_exec_soon(parent.pid)
        os.killpg(parent.pid, signal.SIGKILL)
