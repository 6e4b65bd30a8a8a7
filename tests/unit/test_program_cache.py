"""The cache of what BCC compiled: what is damaged, forged or not root's alone is not used, and no error."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import platform
import pwd
import resource
import shutil
import tempfile
import threading
from collections.abc import Iterator
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
    cache, compiler, maps, binding, trust = (
        importlib.import_module(name)
        for name in ("bpf.cache", "bpf.compiler", "bpf.maps", "bpf.binding", "security.trust")
    )


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of ours alone: below /tmp none is."""
    above = Path(pwd.getpwuid(os.geteuid()).pw_dir)
    if not above.is_dir() or trust.distrust_place(str(above), os.geteuid()) is not None:
        pytest.skip(f"{above} is not this user's alone")
    directory = Path(tempfile.mkdtemp(prefix=".netpoll-test-", dir=above))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def keeper(home: Path) -> Any:
    return cache.Cache(str(home / "a" / "b"), os.geteuid(), True)


def entry(version: str = "0.26.0", programs: dict[str, bytes] | None = None) -> Any:
    described = ["wait", [["at", "unsigned long long"], ["flags", "unsigned short", [4]]], "struct"]
    definition = maps.Definition("waits", 2, 4, 16, 64, 0, "int", described)
    compiled = compiler.Compiled([definition], programs or {"f": b"\x95" + bytes(7)})
    return cache.Entry(["-DA=1"], {"task.tgid": 8, "gone": None}, True, version, [["/x", 1, 2]], compiled)


def text_of(parts: dict[str, Any]) -> bytes:
    """As cache.render, of whatever somebody who can do checksums wrote."""
    body = json.dumps(parts).encode()
    head: bytes = cache._head(body)
    return head + body


VALID: dict[str, Any] = json.loads(cache.render(entry()).partition(b"\n")[2])


@given(st.text(), st.dictionaries(st.text(), st.binary()))
def test_what_was_kept_is_what_is_recalled(version: str, programs: dict[str, bytes]) -> None:
    kept = entry(version, programs)
    assert cache.parse(cache.render(kept)) == kept


@given(st.integers(min_value=0))
def test_a_truncated_file_is_not_used(length: int) -> None:
    text = cache.render(entry())
    with pytest.raises(cache.Unusable, match="damaged"):
        cache.parse(text[: length % len(text)])


@given(st.integers(min_value=0))
def test_a_file_with_a_flipped_bit_is_not_used(bit: int) -> None:
    text = bytearray(cache.render(entry()))
    text[bit // 8 % len(text)] ^= 1 << bit % 8
    with pytest.raises(cache.Unusable, match="damaged"):
        cache.parse(bytes(text))


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
JSON = st.recursive(LEAVES, lambda below: st.lists(below) | st.dictionaries(st.text(), below), max_leaves=20)
PATHS = [(name,) for name in VALID] + [
    ("compiled", "maps"),
    ("compiled", "maps", 0),
    ("compiled", "programs"),
    ("compiled", "programs", "f"),
]


@given(JSON)
def test_what_is_forged_with_a_checksum_is_no_more_than_unusable(parts: Any) -> None:
    with pytest.raises(cache.Unusable):
        cache.parse(text_of(parts))


@given(st.sampled_from(PATHS + [("compiled", "maps", 0, i) for i in range(8)]), JSON)
def test_an_entry_with_one_part_forged_makes_a_map_or_is_refused(path: tuple[Any, ...], value: Any) -> None:
    parts = json.loads(json.dumps(VALID))
    within = parts
    for step in path[:-1]:
        within = within[step]
    within[path[-1]] = value
    with contextlib.suppress(cache.Unusable):
        for definition in cache.parse(text_of(parts)).compiled.maps:
            # What else is wrong with it the kernel says; nothing here but a ValueError.
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
    with pytest.raises(cache.Unusable, match="is not an entry"):
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


def test_an_entry_is_kept_for_its_owner_alone_whatever_the_umask(keeper: Any, home: Path) -> None:
    with pytest.raises(cache.Unusable, match="does not exist"):
        keeper.recall(KEY)
    umask = os.umask(0)
    try:
        keeper.keep(KEY, entry())
    finally:
        os.umask(umask)
    assert keeper.recall(KEY) == entry()
    assert {path.stat().st_mode & 0o077 for path in home.rglob("*")} == {0}
    with pytest.raises(cache.Unusable, match="has none for this kernel, BCC, version and sizes"):
        keeper.recall("1" * 64)


@pytest.mark.parametrize("what", ["a", "a/b", "file"])
def test_where_others_can_write_nothing_is_read_or_written(keeper: Any, home: Path, what: str) -> None:
    keeper.keep(KEY, entry())
    (file,) = (home / "a" / "b").iterdir()
    place = file if what == "file" else home / what
    place.chmod(0o770)
    with pytest.raises(cache.Unusable, match=r"can be written to by others than .* \(mode 770\)"):
        keeper.recall(KEY)
    if what != "file":
        with pytest.raises(cache.Unusable, match="can be written to by others"):
            keeper.keep("1" * 64, entry())
        assert list(file.parent.iterdir()) == [file]


def test_nothing_is_made_below_a_directory_of_others(home: Path) -> None:
    home.chmod(0o777)
    with pytest.raises(cache.Unusable, match="can be written to by others"):
        cache.Cache(str(home / "a" / "b"), os.geteuid(), True).keep(KEY, entry())
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("what", ["file", "directory"])
def test_links_are_not_followed(keeper: Any, home: Path, what: str) -> None:
    keeper.keep(KEY, entry())
    (file,) = (home / "a" / "b").iterdir()
    place = file if what == "file" else file.parent
    place.rename(home / "elsewhere")
    place.symlink_to(home / "elsewhere")
    with pytest.raises(cache.Unusable, match="is a symbolic link"):
        keeper.recall(KEY)


def test_a_pipe_is_not_waited_for(keeper: Any, home: Path) -> None:
    keeper.keep(KEY, entry())
    (file,) = (home / "a" / "b").iterdir()
    file.unlink()
    os.mkfifo(file, 0o600)
    with pytest.raises(cache.Unusable, match="is not a file of ours"):
        keeper.recall(KEY)


@pytest.mark.skipif(os.geteuid() != 0, reason="makes files of another user")
@pytest.mark.parametrize("what", ["file", "directory"])
def test_what_belongs_to_another_user_is_not_read(keeper: Any, home: Path, what: str) -> None:
    keeper.keep(KEY, entry())
    (file,) = (home / "a" / "b").iterdir()
    os.chown(file if what == "file" else file.parent, NOBODY, NOBODY)
    with pytest.raises(cache.Unusable, match=f"belongs to user {NOBODY}, not to root"):
        keeper.recall(KEY)


def test_where_the_disk_is_full_the_former_entry_stays(keeper: Any, home: Path) -> None:
    keeper.keep(KEY, entry())
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(cache.Unusable, match="cannot be written to"):
            keeper.keep(KEY, entry("0.27.0"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert keeper.recall(KEY) == entry()
    assert len(list((home / "a" / "b").iterdir())) == 1, "no draft"


def test_who_must_not_write_reads_only(keeper: Any, home: Path) -> None:
    keeper.keep(KEY, entry())
    (file,) = (home / "a" / "b").iterdir()
    os.utime(file, (1, 1))
    reader = cache.Cache(keeper.directory, os.geteuid(), False)
    assert reader.recall(KEY) == entry()
    assert file.stat().st_mtime == 1
    with pytest.raises(cache.Unusable, match="does not write"):
        reader.keep(KEY, entry())


def test_of_writers_at_once_a_reader_sees_one_whole(keeper: Any) -> None:
    entries = [entry(str(number), {"f": bytes([number]) * 10000}) for number in range(4)]
    keeper.keep(KEY, entries[0])
    failed: list[Exception] = []

    def write(own: Any) -> None:
        try:
            for _ in range(20):
                keeper.keep(KEY, own)
                assert keeper.recall(KEY) in entries
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(own,)) for own in entries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(list(Path(keeper.directory).iterdir())) == 1


def test_those_that_were_not_used_for_longest_go(keeper: Any) -> None:
    for number in range(cache.MOST + 3):
        keeper.keep(f"{number:064x}", entry())
        os.utime(Path(keeper.directory) / f"{number:064x}{cache._SUFFIX}", (number, number))
    keeper.recall(f"{3:064x}")
    abandoned = Path(keeper.directory) / ".draft"
    abandoned.touch()
    os.utime(abandoned, (1, 1))
    keeper.keep("f" * 64, entry())
    left = [path.name for path in Path(keeper.directory).iterdir()]
    assert len(left) == cache.MOST
    assert f"{3:064x}{cache._SUFFIX}" in left, "it was used since"
    assert f"{4:064x}{cache._SUFFIX}" not in left
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
    here = platform.uname()
    for changed in ({"release": "6.1.0"}, {"version": "#2 SMP"}, {"machine": "riscv64"}):
        monkeypatch.setattr(platform, "uname", lambda changed=changed: here._replace(**changed))
        keys.append(cache.key([str(source)], 16, 64))
    monkeypatch.setattr(platform, "uname", lambda: here)
    monkeypatch.setattr(cache, "_NOTES", str(source))  # a kernel built again says so there
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


def test_types_are_what_the_c_says() -> None:
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


def test_the_value_of_a_cpu_takes_a_multiple_of_8_bytes() -> None:
    word, struct = maps._type_of("unsigned int", 4), maps._type_of(["s", [["a", "char"]], "struct"], 1)
    assert (maps.ctypes.sizeof(maps._padded(word)), maps.ctypes.sizeof(maps._padded(struct))) == (8, 8)
    assert maps._padded(word)(value=3).value == 3
    assert maps._padded(struct)(a=b"x").a == b"x"
