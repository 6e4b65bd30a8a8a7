"""How often each rule is broken: by its fault in every window, by healthy services in none.

    python tests/bpf/repeated.py [-n 50] [--load 3] [--part 1/2] [--wild] [NAME ...]

Prints a Markdown table: each service, the rule that it is to break, and in how many windows it did; for a
healthy one, in how many it broke any rule. NP404 (machine-busy) doesn't count, as it is about the machine on
which this runs. Exit status 1 if a healthy service broke a rule, a fault missed its own or broke another one,
or a window was unmeasured. As root.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from pytest_netpoll.errors import NetpollError
from pytest_netpoll.gobinary.symbols import Symbolizer
from pytest_netpoll.meter.meter import Meter
from pytest_netpoll.model.diagnosis import findings, unchecked
from pytest_netpoll.model.limits import resolve
from pytest_netpoll.model.rules import RULES
from pytest_netpoll.options import Config
from pytest_netpoll.service.build import Builder
from pytest_netpoll.service.factory import ServiceFactory
from pytest_netpoll.service.service import Service
from tests.bpf.repeated_cases import CASES, RECIPE_CONFIG, RECIPE_SERVICES, Case, upstream_port
from tests.bpf.wild import wild
from tests.cpu_time import burners

SERVICES = Path(__file__).parent / "services"
MACHINE = "NP404"
EVIDENCE = resolve([((), {"forbid": "all"})], "t").offences
LOAD_SECONDS = 1  # of a server of the wild, in each window
SHARED_LISTENER = "fasthttp-prefork"  # the only one of the wild that breaks a rule


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS
    )
    parser.add_argument("-n", type=int, default=50, help="windows of each (default 50)")
    parser.add_argument("--load", type=int, default=0, metavar="N", help="beside N processes that use a CPU")
    parser.add_argument(
        "--part", default="1/1", metavar="K/N", help="only each N-th service, from the K-th on"
    )
    parser.add_argument("--wild", action="store_true", help="only servers of tests/bpf/wild, downloaded")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these")
    given = parser.parse_args()
    names = [row.name for row in wild.ROWS] if given.wild else [case.name for case in CASES]
    if unknown := set(given.names) - set(names):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(names)}")
    part, parts = map(int, given.part.split("/"))
    chosen = [name for name in names[part - 1 :: parts] if name in (given.names or names)]
    assert {case.code for case in CASES} >= RULES.keys(), "each rule has a service that breaks it"

    began = time.monotonic()
    print("| service | is to break | did | also |\n|---|---|--:|---|", flush=True)
    meter = Meter(Config.default(), Symbolizer(SERVICES))
    with tempfile.TemporaryDirectory() as built, burners(given.load):
        factory = ServiceFactory(
            rootdir=SERVICES, cache_dir=Path(built), on_spawn=meter.watch, on_exit=meter.unwatch
        )
        try:
            meter.start()
            if given.wild:
                rows = [row for row in wild.ROWS if row.name in chosen]
                good = [wild_row(row, given.n, meter, factory) for row in rows]
            else:
                write_recipes(Path(built))
                cases = [case for case in CASES if case.name in chosen]
                good = [known_case(case, given.n, meter, factory, Path(built)) for case in cases]
        finally:
            factory.stop_all()
            meter.stop()
    took = time.monotonic() - began
    print(f"\n{sum(good)} of {len(good)} as expected, in {took:.0f} s", flush=True)
    return 0 if all(good) else 1


def write_recipes(built: Path) -> None:
    for name, source in RECIPE_SERVICES.items():
        (built / name).mkdir()
        (built / name / "go.mod").write_text("module example.com/shop\n\ngo 1.19\n")
        (built / name / "main.go").write_text(source)
    (built / "config.json").write_text(json.dumps(RECIPE_CONFIG))


def known_case(case: Case, n: int, meter: Meter, factory: ServiceFactory, built: Path) -> bool:
    try:
        service = launched(case, factory, built)
        try:
            with case.around(service):
                found = Windows(n, meter, service, lambda: case.act(service))
        finally:
            service.stop()
    except (NetpollError, OSError, AssertionError) as error:
        return failed(case.name, error)
    return found.report(case.name, case.code)


def launched(case: Case, factory: ServiceFactory, built: Path) -> Service:
    of_recipe = case.service in RECIPE_SERVICES
    package = str(built / case.service) if of_recipe else case.service
    package = package if "/" in package else f"./{package}"
    ready = {} if of_recipe else {"ready": re.compile("ready on")}
    known = {"{built}": str(built), "{upstream}": str(upstream_port())}
    args = [*case.args] if "-config" in case.args else ["-addr", "127.0.0.1:{port}", *case.args]
    for placeholder, value in known.items():
        args = [arg.replace(placeholder, value) for arg in args]
    if not case.prefix:
        return factory(package, args=args, env=case.env, name=case.name, **ready)
    program = str(Builder(built, None).build(package, base=SERVICES, go=None, flags=[], env={}))
    return factory(command=[*case.prefix, program, *args], env=case.env, name=case.name, **ready)


def wild_row(row: wild.Row, n: int, meter: Meter, factory: ServiceFactory) -> bool:
    try:
        with wild.running(row, LOAD_SECONDS, factory) as (service, loads):
            found = Windows(n, meter, service, lambda: wild.load(LOAD_SECONDS, loads))
    except NetpollError as error:
        return failed(row.name, error)
    return found.report(row.name, "NP102" if row.name == SHARED_LISTENER else None)


class Windows:
    """n windows in which act() runs, each with all rules forbidden: what they break."""

    def __init__(self, n: int, meter: Meter, service: Service, act: Callable[[], object]) -> None:
        self.n = n
        self.broken: Counter[str] = Counter()
        self.missing: Counter[str] = Counter()
        self.unmeasured: Counter[str] = Counter()
        self.said: dict[str, str] = {}
        self.any = 0  # windows in which anything but the machine's rule was broken
        for _ in range(n):
            window = meter.open(offences=EVIDENCE)
            try:
                act()
            finally:
                [m] = meter.close(window, [service])
            if m.unmeasured is not None:
                self.unmeasured[str(m.unmeasured)] += 1
            found = findings(m)
            self.any += any(finding.rule.code != MACHINE for finding in found)
            self.broken.update(finding.rule.code for finding in found)
            self.said.update((finding.rule.code, str(finding)) for finding in found)
            self.missing.update(rule.rule.code for rule in unchecked(m))

    def report(self, name: str, code: str | None) -> bool:
        """Prints the row. Whether the service did what it is to do."""
        did = self.any if code is None else self.broken[code]
        others = {rule: n for rule, n in sorted(self.broken.items()) if rule != code}
        also = ", ".join(f"{rule} {n}" for rule, n in others.items())
        print(f"| {name} | {code or 'none'} | {did} of {self.n} | {also} |", flush=True)
        for what, found in (("not checked", self.missing), ("unmeasured", self.unmeasured)):
            if found:
                print(f"{name}: {what}: {dict(found)}", file=sys.stderr, flush=True)
        for rule in others.keys() - {MACHINE}:
            print(f"{name}: {rule}: {self.said[rule]}", file=sys.stderr, flush=True)
        alone = not others.keys() - {MACHINE} and not self.unmeasured
        return alone and did == (0 if code is None else self.n)


def failed(name: str, error: Exception) -> bool:
    print(f"| {name} | | failed | |", flush=True)
    print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    return False


if __name__ == "__main__":
    sys.exit(main())
