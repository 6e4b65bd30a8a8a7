"""The cache of what BCC compiled: entries that are damaged, forged or writable by others are not used,
without an error."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import marshal
import os
import pwd
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_netpoll.meter import privilege

NOBODY = 65534
KEY = "0" * 64


with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(privilege.AGENT))
    cache, compiler, maps, binding, budget, store, trust, bytecode = (
        importlib.import_module(name)
        for name in (
            "bpf.cache",
            "bpf.compiler",
            "bpf.maps",
            "bpf.binding",
            "security.budget",
            "security.store",
            "security.trust",
            "bytecode",
        )
    )


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that only we can write to; there is none below /tmp."""
    above = Path(pwd.getpwuid(os.geteuid()).pw_dir)
    if not above.is_dir() or trust.distrust_place(str(above), os.geteuid()) is not None:
        pytest.skip(f"{above} is not this user's alone")
    directory = Path(tempfile.mkdtemp(prefix=".netpoll-test-", dir=above))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def keeper(home: Path) -> Any:
    return store.Store(str(home / "a" / "b"), os.geteuid(), True)


def entry(version: str = "0.26.0", programs: dict[str, bytes] | None = None) -> Any:
    described = ["wait", [["at", "unsigned long long"], ["flags", "unsigned short", [4]]], "struct"]
    definition = maps.Definition("waits", 2, 4, 16, 64, 0, "int", described)
    compiled = compiler.Compiled([definition], programs or {"f": b"\x95" + bytes(7)})
    return cache.Entry(["-DA=1"], {"task.tgid": 8, "gone": None}, True, version, [["/x", 1, 2]], compiled)


def text_of(parts: Any) -> bytes:
    """Like cache.render, for content that an attacker with a valid checksum could write."""
    return json.dumps(parts).encode()


VALID: dict[str, Any] = json.loads(cache.render(entry()))


@given(st.text(), st.dictionaries(st.text(), st.binary()))
def test_a_stored_entry_is_read_back_unchanged(version: str, programs: dict[str, bytes]) -> None:
    kept = entry(version, programs)
    assert cache.parse(store.unseal(store.seal(cache.render(kept)))) == kept


@given(st.integers(min_value=0))
def test_a_truncated_file_is_not_used(length: int) -> None:
    text = store.seal(cache.render(entry()))
    with pytest.raises(store.Unusable, match="damaged"):
        store.unseal(text[: length % len(text)])


@given(st.integers(min_value=0))
def test_a_file_with_a_flipped_bit_is_not_used(bit: int) -> None:
    text = bytearray(store.seal(cache.render(entry())))
    text[bit // 8 % len(text)] ^= 1 << bit % 8
    with pytest.raises(store.Unusable, match="damaged"):
        store.unseal(bytes(text))


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
JSON = st.recursive(LEAVES, lambda below: st.lists(below) | st.dictionaries(st.text(), below), max_leaves=20)
PATHS = [(name,) for name in VALID] + [
    ("compiled", "maps"),
    ("compiled", "maps", 0),
    ("compiled", "programs"),
    ("compiled", "programs", "f"),
]


@given(JSON)
def test_a_forged_entry_with_a_checksum_is_just_unusable(parts: Any) -> None:
    with pytest.raises(store.Unusable):
        cache.parse(text_of(parts))


@given(st.sampled_from(PATHS + [("compiled", "maps", 0, i) for i in range(8)]), JSON)
def test_an_entry_with_one_forged_part_makes_a_map_or_is_refused(path: tuple[Any, ...], value: Any) -> None:
    parts = json.loads(json.dumps(VALID))
    within = parts
    for step in path[:-1]:
        within = within[step]
    within[path[-1]] = value
    with contextlib.suppress(store.Unusable):
        for definition in cache.parse(text_of(parts)).compiled.maps:
            # The kernel finds what else is wrong with it; here only a ValueError is allowed.
            with contextlib.suppress(ValueError):
                maps._type_of(definition.leaf, definition.value_size)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("flags", [1]),
        ("typed", 1),
        ("bcc", None),
        ("answers", {"task.tgid": -1}),
        ("answers", {"task.tgid": True}),
        ("files", [["/x", "1", 2]]),
        ("files", [["/x", 1]]),
    ],
)
def test_an_entry_with_a_part_of_another_type_is_refused(name: str, value: Any) -> None:
    with pytest.raises(store.Unusable, match="is not an entry"):
        cache.parse(text_of({**VALID, name: value}))


@given(st.binary())
def test_instructions_that_refer_to_no_map_are_refused(code: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert len(compiler.relocate(code, [7].__getitem__)) == len(code)


def test_maps_are_relocated_and_numbers_stay() -> None:
    of_map, number, leave = b"\x18\x11" + bytes(14), b"\x18\x01" + bytes(14), b"\x95" + bytes(7)
    code = of_map + number + leave
    moved = compiler.relocate(code, [7].__getitem__)
    assert moved == b"\x18\x11\0\0\7" + bytes(11) + number + leave
    for strange in (b"\x18\x21" + bytes(14), b"\x18\x11\0\0\1" + bytes(11), b"\x18\x11\0\0"):
        with pytest.raises(ValueError, match="instruction 0"):
            compiler.relocate(strange, [7].__getitem__)
        with pytest.raises(ValueError, match="instruction 1"):
            compiler.relocate(leave + strange, [7].__getitem__)
    # The second half of a number isn't an instruction, whatever it contains.
    assert compiler.relocate(number[:8] + of_map[:8], [7].__getitem__) == number[:8] + of_map[:8]


def test_an_entry_is_private_whatever_the_umask(keeper: Any, home: Path) -> None:
    with pytest.raises(store.Unusable, match="does not exist"):
        cache.recall(keeper, KEY)
    umask = os.umask(0)
    try:
        cache.keep(keeper, KEY, entry())
    finally:
        os.umask(umask)
    assert cache.recall(keeper, KEY) == entry()
    assert {path.stat().st_mode & 0o077 for path in home.rglob("*")} == {0}
    with pytest.raises(store.Unusable, match="has none for this kernel, BCC, version and sizes"):
        cache.recall(keeper, "1" * 64)


@pytest.mark.parametrize("what", ["a", "a/b", "file"])
def test_a_directory_that_others_can_write_is_neither_read_nor_written(
    keeper: Any, home: Path, what: str
) -> None:
    cache.keep(keeper, KEY, entry())
    (file,) = (home / "a" / "b").iterdir()
    place = file if what == "file" else home / what
    place.chmod(0o770)
    with pytest.raises(store.Unusable, match=r"can be written to by others than .* \(mode 770\)"):
        cache.recall(keeper, KEY)
    if what != "file":
        with pytest.raises(store.Unusable, match="can be written to by others"):
            cache.keep(keeper, "1" * 64, entry())
        assert list(file.parent.iterdir()) == [file]


def test_nothing_is_created_below_a_directory_of_others(home: Path) -> None:
    home.chmod(0o777)
    with pytest.raises(store.Unusable, match="can be written to by others"):
        cache.keep(store.Store(str(home / "a" / "b"), os.geteuid(), True), KEY, entry())
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("what", ["file", "directory"])
def test_links_are_not_followed(keeper: Any, home: Path, what: str) -> None:
    cache.keep(keeper, KEY, entry())
    (file,) = (home / "a" / "b").iterdir()
    place = file if what == "file" else file.parent
    place.rename(home / "elsewhere")
    place.symlink_to(home / "elsewhere")
    with pytest.raises(store.Unusable, match="is a symbolic link"):
        cache.recall(keeper, KEY)


def test_opening_a_pipe_does_not_block(keeper: Any, home: Path) -> None:
    cache.keep(keeper, KEY, entry())
    (file,) = (home / "a" / "b").iterdir()
    file.unlink()
    os.mkfifo(file, 0o600)
    with pytest.raises(store.Unusable, match="is not a file of ours"):
        cache.recall(keeper, KEY)


@pytest.mark.skipif(os.geteuid() != 0, reason="makes files of another user")
@pytest.mark.parametrize("what", ["file", "directory"])
def test_files_of_another_user_are_not_read(keeper: Any, home: Path, what: str) -> None:
    cache.keep(keeper, KEY, entry())
    (file,) = (home / "a" / "b").iterdir()
    os.chown(file if what == "file" else file.parent, NOBODY, NOBODY)
    with pytest.raises(store.Unusable, match=f"belongs to user {NOBODY}, not to root"):
        cache.recall(keeper, KEY)


def test_a_full_disk_leaves_the_former_entry(keeper: Any, home: Path) -> None:
    cache.keep(keeper, KEY, entry())
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(store.Unusable, match="cannot be written to"):
            cache.keep(keeper, KEY, entry("0.27.0"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert cache.recall(keeper, KEY) == entry()
    assert len(list((home / "a" / "b").iterdir())) == 1, "no draft"


def test_a_reader_that_must_not_write_only_reads(keeper: Any, home: Path) -> None:
    cache.keep(keeper, KEY, entry())
    (file,) = (home / "a" / "b").iterdir()
    os.utime(file, (1, 1))
    reader = store.Store(keeper.directory, os.geteuid(), False)
    assert cache.recall(reader, KEY) == entry()
    assert file.stat().st_mtime == 1
    with pytest.raises(store.Unusable, match="does not write"):
        cache.keep(reader, KEY, entry())


def test_a_reader_sees_one_complete_entry_of_concurrent_writers(keeper: Any) -> None:
    entries = [entry(str(number), {"f": bytes([number]) * 10000}) for number in range(4)]
    cache.keep(keeper, KEY, entries[0])
    failed: list[Exception] = []

    def write(own: Any) -> None:
        try:
            for _ in range(20):
                cache.keep(keeper, KEY, own)
                assert cache.recall(keeper, KEY) in entries
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(own,)) for own in entries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(list(Path(keeper.directory).iterdir())) == 1


def test_the_least_recently_used_entries_are_deleted(keeper: Any) -> None:
    for number in range(cache.MOST + 3):
        cache.keep(keeper, f"{number:064x}", entry())
        os.utime(Path(keeper.directory) / f"{number:064x}{cache.ENDING}", (number, number))
    cache.recall(keeper, f"{3:064x}")
    abandoned = Path(keeper.directory) / ".draft"
    abandoned.touch()
    os.utime(abandoned, (1, 1))
    cache.keep(keeper, "f" * 64, entry())
    left = [path.name for path in Path(keeper.directory).iterdir()]
    assert len(left) == cache.MOST
    assert f"{3:064x}{cache.ENDING}" in left, "it was used since"
    assert f"{4:064x}{cache.ENDING}" not in left
    assert ".draft" not in left


def test_another_kernel_source_or_size_has_another_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "waits.c"
    source.write_text("int a;")
    keys = [cache.key([str(source)], 16, 64), cache.key([str(source)], 16, 65)]
    assert keys[0] == cache.key([str(source)], 16, 64)
    source.write_text("int b;")
    keys.append(cache.key([str(source)], 16, 64))
    here = os.uname()
    for place, changed in ((2, "6.1.0"), (3, "#2 SMP"), (4, "riscv64")):
        other = os.uname_result([*here[:place], changed, *here[place + 1 :]])
        monkeypatch.setattr(os, "uname", lambda other=other: other)
        keys.append(cache.key([str(source)], 16, 64))
    monkeypatch.setattr(os, "uname", lambda: here)
    monkeypatch.setattr(cache, "_NOTES", str(source))  # a rebuilt kernel has another number here
    keys.append(cache.key([str(source)], 16, 64))
    monkeypatch.setattr(cache, "_BTF", "/nowhere")
    keys.append(cache.key([str(source)], 16, 64))
    assert len(set(keys)) == 8


def test_another_bcc_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, library = tmp_path / "bcc" / "__init__.py", tmp_path / "libbcc.so.0"
    module.parent.mkdir()
    for path in (module, library):
        path.write_text("0.26")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    files = [list(binding._identity(str(path))) for path in (module, library)]
    assert binding.changed(files) is None
    assert binding.changed(files[1:]) == str(module), "another module than the one it was"
    library.write_text("0.27.0")
    assert binding.changed(files) == str(library)
    library.unlink()
    assert binding.changed(files) == str(library)
    shutil.rmtree(module.parent)
    assert binding.changed(files) is not None


def test_types_match_the_c() -> None:
    definition = entry().compiled.maps[0]
    with pytest.raises(ValueError, match="has 16 bytes, not 17"):
        maps._type_of(definition.leaf, 17)
    wait = maps._type_of(definition.leaf, 16)(at=1 << 40, flags=(1, 2, 3, 4))
    assert bytes(wait) == (1 << 40).to_bytes(8, "little") + b"\1\0\2\0\3\0\4\0"
    nested = [
        "o",
        [["n", "int"], ["i", ["i", [["a", "char"]], "struct_packed"]], ["", [["u", "int"]], "union"]],
    ]
    outer = maps._type_of([*nested, "struct_packed"], 9)
    assert (outer.i.offset, outer.u.offset) == (4, 5)


def test_a_per_cpu_value_takes_a_multiple_of_8_bytes() -> None:
    word, struct = maps._type_of("unsigned int", 4), maps._type_of(["s", [["a", "char"]], "struct"], 1)
    assert (maps.ctypes.sizeof(maps._padded(word)), maps.ctypes.sizeof(maps._padded(struct))) == (8, 8)
    assert maps._padded(word)(value=3).value == 3
    assert maps._padded(struct)(a=b"x").a == b"x"


@pytest.fixture
def program(home: Path) -> Path:
    """A directory with modules: one, within.two."""
    top = home / "program"
    (top / "within").mkdir(parents=True)
    (top / "one.py").write_text("import within.two\nfrom within.two import NAME\n")
    (top / "within" / "__init__.py").touch()
    (top / "within" / "two.py").write_text("NAME = (__name__, __file__, __package__)\n")
    return top


def run(program: Path, where: Path) -> str:
    """The result of a process that imports it through the store."""
    code = (
        f"import os, sys; sys.path[:0] = [{str(privilege.AGENT)!r}, {str(program)!r}]; import bytecode\n"
        "from security.store import Store\n"
        f"bytecode.use({str(program)!r}, Store({str(where)!r}, os.geteuid(), True))\n"
        "import one; print(one.NAME, type(one.__loader__).__name__)"
    )
    run = subprocess.run([sys.executable, "-I", "-B", "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stderr == ""
    return run.stdout


def test_modules_from_the_store_work_like_those_from_files(program: Path, home: Path) -> None:
    expected = f"{('within.two', str(program / 'within' / 'two.py'), 'within')} _Importer\n"
    assert run(program, home / "kept") == expected
    (file,) = (home / "kept").iterdir()
    os.utime(file, (1, 1))
    content = file.read_bytes()
    assert run(program, home / "kept") == expected
    assert file.read_bytes() == content, "nothing was compiled"
    assert file.stat().st_mtime > 1, "it was read"


def test_a_changed_module_is_compiled_whatever_its_size_and_time(program: Path, home: Path) -> None:
    run(program, home / "kept")
    module = program / "within" / "two.py"
    before = module.stat()
    module.write_text(module.read_text().replace("__name__", "'other_'"))
    os.utime(module, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert module.stat().st_size == before.st_size
    assert run(program, home / "kept").startswith("('other_',")


@pytest.mark.parametrize("spoil", [lambda text: text[:-1], lambda _: store.seal(b"no code"), lambda _: b""])
def test_damaged_byte_code_is_compiled_again(
    program: Path, home: Path, spoil: Callable[[bytes], bytes]
) -> None:
    expected = run(program, home / "kept")
    (file,) = (home / "kept").iterdir()
    content = file.read_bytes()
    file.write_bytes(spoil(content))
    assert run(program, home / "kept") == expected
    assert file.read_bytes() == content


@pytest.mark.parametrize("what", ["file", "directory"])
def test_byte_code_that_others_can_write_is_not_run(program: Path, home: Path, what: str) -> None:
    run(program, home / "kept")
    (file,) = (home / "kept").iterdir()
    forged = dict.fromkeys(["one", "within", "within.two"], marshal.dumps(compile("1 / 0", "forged", "exec")))
    file.write_bytes(store.seal(marshal.dumps(forged)))
    (file if what == "file" else file.parent).chmod(0o777)
    assert "within.two" in run(program, home / "kept")


def test_the_whole_agent_is_imported_from_the_store() -> None:
    """Everything except the module that looks for it there; otherwise it would be compiled at each start."""
    found = set(bytecode._sources(str(privilege.AGENT)))
    modules = {
        ".".join(path.relative_to(privilege.AGENT).with_suffix("").parts).removesuffix(".__init__")
        for path in privilege.AGENT.rglob("*.py")
    }
    assert found == modules - {"__main__", "__init__"}


OWN = ["python3", "-I", "-B", "agent", privilege.UNVERIFIED]


def test_a_cache_that_others_can_write_is_reported_before_the_agent_starts(home: Path) -> None:
    assert privilege.why_not_cached(OWN, home / "to" / "be" / "made") is None
    (shared := home / "shared").mkdir()
    shared.chmod(0o777)
    why = privilege.why_not_cached(OWN, shared / "to" / "be" / "made")
    assert why is not None
    assert (why.what, why.why) == (
        f"--netpoll-cache={shared}/to/be/made is not used",
        f"{shared} can be written to by others than {'its owner' if os.geteuid() else 'root'} (mode 777)",
    )
    assert why.fix is not None
    assert privilege.why_not_cached(OWN[:-1], shared) is None, "an installed agent has its own"


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a directory of another user")
def test_roots_agent_does_not_use_a_users_own_files(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.chown(home, NOBODY, NOBODY)
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    assert privilege.why_not_cached(OWN, home) is None
    assert privilege.why_not_cached(["sudo", "-n", "--", *OWN], home) is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="others need not have an agent that would use it")
def test_the_header_reports_once_that_the_cache_is_not_used(pytester: pytest.Pytester, home: Path) -> None:
    home.chmod(0o777)
    pytester.makepyfile("def test_nothing(): pass")
    header = [f"--netpoll-cache={home} is not used: *", "  fix: name a directory that only root *"]
    pytester.runpytest(f"--netpoll-cache={home}").stdout.fnmatch_lines(header, consecutive=True)
    for quiet in ([f"--netpoll-cache={home}", "--netpoll=off"], ["--netpoll-cache=off"], []):
        pytester.runpytest(*quiet).stdout.no_fnmatch_line("*netpoll-cache*")


@pytest.mark.parametrize("refused", ["load_nothing", "describe"])
def test_a_kernel_that_refuses_every_program_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    def refuse(_: object) -> int:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(budget.tracing, "load_nothing", lambda _: os.dup(0))
    monkeypatch.setattr(budget.tracing, refused, refuse)
    with pytest.raises(budget.Refused, match="does nothing: Operation not permitted") as caught:
        budget.take(1000, 1 << 20)
    assert "dmesg" in caught.value.fix
