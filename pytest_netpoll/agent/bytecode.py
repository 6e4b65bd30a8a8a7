"""Caches the agent's modules as byte code in one file, so that Python needn't compile them at each start.

Python's own cache is beside the sources, where root must not write for a user. It also trusts file times and
runs damaged files. This one depends on the sources' content and the store's checksum.
"""

from __future__ import annotations

import contextlib
import hashlib
import marshal
import os
import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType

from security.store import Store, Unusable

FORMAT = "pytest-netpoll-bytecode/1"
ENDING = ".bytecode"
MOST = 8  # files to keep, one for each copy of the agent and each Python


def use(top: str, store: Store) -> None:
    """Imports the directory's modules from the store from now on, and fills the store if it has to."""
    sources = _sources(top)
    name = _key(top, sources) + ENDING
    try:
        modules = marshal.loads(store.read(name))
    except (Unusable, EOFError, TypeError, ValueError):
        modules = {
            module: marshal.dumps(compile(source, path, "exec", dont_inherit=True))
            for module, (path, source) in sources.items()
        }
        with contextlib.suppress(Unusable):  # reported once, for the BPF program
            store.write(name, marshal.dumps(modules), MOST)
    sys.meta_path.insert(0, _Importer(modules, {module: path for module, (path, _) in sources.items()}))


def _sources(top: str) -> dict[str, tuple[str, bytes]]:
    """Module -> (path, source), for all modules in the directory."""
    found = {}
    for directory, below, files in os.walk(top):
        below[:] = [name for name in below if name != "__pycache__"]
        package = os.path.relpath(directory, top).split(os.sep) if directory != top else []
        for file in files:
            name, ending = os.path.splitext(file)
            if ending == ".py" and name != "__main__":
                path = os.path.join(directory, file)
                with open(path, "rb") as f:
                    found[".".join(package if name == "__init__" else [*package, name])] = path, f.read()
    found.pop("", None)  # only pytest's side imports the directory as a package
    return found


def _key(top: str, sources: Mapping[str, tuple[str, bytes]]) -> str:
    whole = hashlib.sha256(repr((FORMAT, sys.version, top)).encode())
    for module, (_, source) in sorted(sources.items()):
        whole.update(f"{module} {hashlib.sha256(source).hexdigest()}\n".encode())
    return whole.hexdigest()


class _Importer:
    """A finder and loader. codes: module -> its marshalled code. paths: module -> its file."""

    def __init__(self, codes: Mapping[str, bytes], paths: Mapping[str, str]) -> None:
        self._codes = codes
        self._paths = paths

    def find_spec(self, name: str, _path: object, _target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self._codes:
            return None
        file = self._paths[name]
        spec = ModuleSpec(name, self, origin=file)  # type: ignore[arg-type]
        spec.has_location = True
        if os.path.basename(file) == "__init__.py":
            spec.submodule_search_locations = [os.path.dirname(file)]
        return spec

    def create_module(self, spec: ModuleSpec) -> None:
        """Creates the module in the default way."""

    def exec_module(self, module: ModuleType) -> None:
        code: CodeType = marshal.loads(self._codes[module.__name__])
        exec(code, module.__dict__)
