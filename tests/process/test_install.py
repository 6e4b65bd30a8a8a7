"""install-agent: for which users, and what it leaves unchanged. tests/bpf checks that sudo obeys the line."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_netpoll.cli import install_agent, sudoers
from pytest_netpoll.errors import ServiceError, UnmeasuredError, UsageError
from pytest_netpoll.meter import privilege
from pytest_netpoll.meter.privilege import INSTALLED, SYSTEM_PYTHON
from pytest_netpoll.service import build
from tests.leftovers import remove_leftovers

needs_root_and_sudo = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("sudo"), reason="asking sudo about others takes root, and a sudo"
)


Capture = pytest.CaptureFixture[str]


def line(user: str, prefix: Path = INSTALLED) -> str:
    return sudoers.sudoers_line(user, SYSTEM_PYTHON, prefix)


def rules(file: Path) -> list[str]:
    return [text for text in file.read_text().splitlines() if not text.startswith("#")]


def test_each_user_keeps_their_own_line(tmp_path: Path) -> None:
    file = tmp_path / "sudoers"
    assert sudoers.write_sudoers(file, line("daemon")) == []
    assert sudoers.write_sudoers(file, line("nobody")) == []
    assert sudoers.write_sudoers(file, line("%users")) == []
    assert sudoers.write_sudoers(file, line("daemon")) == [], "it is there already"
    assert sorted(rules(file)) == sorted([line("daemon"), line("nobody"), line("%users")])
    assert file.stat().st_mode & 0o777 == 0o440
    assert [path.name for path in tmp_path.iterdir()] == ["sudoers"]


def test_a_users_own_line_is_replaced_and_reported(tmp_path: Path) -> None:
    file = tmp_path / "sudoers"
    sudoers.write_sudoers(file, line("nobody"))
    sudoers.write_sudoers(file, line("daemon"))
    elsewhere = line("nobody", Path("/opt/netpoll"))
    assert sudoers.write_sudoers(file, elsewhere) == [line("nobody")]
    assert rules(file) == [line("daemon"), elsewhere]


def test_the_rest_of_the_file_stays(tmp_path: Path) -> None:
    file = tmp_path / "sudoers"
    others = "# caf\udce9\nDefaults:nobody !requiretty\nnobody ALL=(root) NOPASSWD: /bin/true\n"
    file.write_text(others, errors="surrogateescape")
    sudoers.write_sudoers(file, line("nobody"))
    assert file.read_text(errors="surrogateescape") == f"{others}{line('nobody')}\n"


@pytest.mark.skipif(not shutil.which("visudo", path="/usr/sbin:/usr/bin"), reason="there is no visudo")
def test_a_file_that_sudo_would_not_read_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "sudoers"
    file.write_text("nobody ALL=(\n")
    with pytest.raises(sudoers.InstallError, match="visudo rejects") as failure:
        sudoers.write_sudoers(file, line("nobody"))
    assert line("nobody") in str(failure.value.detail)
    assert file.read_text() == "nobody ALL=(\n"


def test_concurrent_installations_keep_each_others_lines(tmp_path: Path) -> None:
    file = tmp_path / "sudoers"
    lines = [line(f"user{number}") for number in range(8)]
    threads = [threading.Thread(target=sudoers.write_sudoers, args=(file, text)) for text in lines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(rules(file)) == lines


@pytest.mark.parametrize(
    ("user", "complaint"),
    [
        ("no-such-user-here", "there is no user 'no-such-user-here'"),
        ("%no-such-group", "there is no group 'no-such-group'"),
        ("1234567", "there is no user '1234567'"),
        ("ALL", "there is no user 'ALL'"),
        (pwd.getpwuid(0).pw_name, "doesn't need a line in sudoers: root starts the agent without sudo"),
        ("alice,bob", "'alice,bob' is not the name of a user"),
        ("", "'' is not the name of a user"),
    ],
)
def test_users_without_use_for_the_line_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: str, complaint: str
) -> None:
    monkeypatch.setattr(install_agent, "install", lambda _: pytest.fail("it was installed"))
    with pytest.raises(UsageError, match="install-agent: ") as failure:
        install_agent.main(["--user", user, "--sudoers", str(tmp_path / "sudoers")])
    assert complaint in str(failure.value)
    assert list(tmp_path.iterdir()) == []


def test_root_who_names_no_user_is_asked_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setenv("LOGNAME", "root")
    with pytest.raises(UsageError, match="--user NAME"):
        install_agent.main([])


def installed(prefix: Path) -> Path:
    """An agent with what compiling writes, but without the time that it takes."""
    install_agent.install(prefix)
    key = "5eed" * 16
    for part in (
        f"cache/{key}.program",
        f"cache/{key}.bytecode",
        f"cache/.{key}.program.7.12345",  # left by one that was killed
        "agent/__pycache__/__main__.cpython-311.pyc",
        "agent/security/__pycache__/trust.cpython-39.opt-1.pyc",
        ".new-abcd_123/old-agent/__main__.py",
        ".new-abcd_123/bpf/netpoll.c",
    ):
        (prefix / part).parent.mkdir(parents=True, exist_ok=True)
        (prefix / part).touch()
    return prefix


@pytest.fixture
def prefix() -> Iterator[Path]:
    """A directory for an agent, which must be root's all the way up; it doesn't exist yet."""
    if os.geteuid() != 0:
        pytest.skip("only root installs and removes agents")
    above = Path(f"/usr/local/lib/netpoll-test-{os.getpid()}")
    above.mkdir(mode=0o755)
    try:
        yield above / "agent-of-ours"
    finally:
        shutil.rmtree(above)


def remove(prefix: Path, file: Path, *more: str) -> int:
    return install_agent.main(["--remove", "--prefix", str(prefix), "--sudoers", str(file), *more])


def test_removing_takes_back_all_that_was_installed(tmp_path: Path, prefix: Path, capsys: Capture) -> None:
    file = tmp_path / "sudoers"
    installed(prefix)
    for user in ("nobody", "daemon"):
        sudoers.write_sudoers(file, line(user, prefix))
    assert remove(prefix, file) == 0
    out = capsys.readouterr().out
    assert line("nobody", prefix) in out
    assert f"removed the agent from {prefix}" in out
    assert f"sudo grep -rF {prefix}/agent /etc/sudoers /etc/sudoers.d" in out, "where else lines may be"
    assert "kept" not in out
    assert list(tmp_path.iterdir()) == []
    assert list(prefix.parent.iterdir()) == []
    assert remove(prefix, file) == 0, "it is all gone"
    assert f"nothing to remove: no agent at {prefix}" in capsys.readouterr().out


def test_removing_a_user_keeps_the_agent_and_the_others(tmp_path: Path, prefix: Path) -> None:
    file = tmp_path / "sudoers"
    installed(prefix)
    for user in ("nobody", "daemon"):
        sudoers.write_sudoers(file, line(user, prefix))
    assert remove(prefix, file, "--user", "daemon") == 0
    assert rules(file) == [line("nobody", prefix)]
    assert (prefix / "agent").is_dir()
    with pytest.raises(sudoers.InstallError, match="has no line for 'daemon'") as failure:
        remove(prefix, file, "--user", "daemon")
    assert f"sudo grep -rF {prefix}/agent /etc/sudoers" in str(failure.value.fix)


def test_removing_leaves_what_is_not_of_this_agent(tmp_path: Path, prefix: Path, capsys: Capture) -> None:
    file = tmp_path / "sudoers"
    others = f"nobody ALL=(root) NOPASSWD: /bin/true\n{line('nobody', Path('/opt/netpoll'))}\n"
    file.write_text(others)
    installed(prefix)
    sudoers.write_sudoers(file, line("daemon", prefix))
    notes = [prefix / name for name in ("notes", "bpf/other", "cache/important", "agent/bpf/netpoll.c")]
    for note in notes:
        note.touch()
    (prefix / "agent/security/link").symlink_to(tmp_path)
    assert remove(prefix, file) == 0
    assert file.read_text() == others
    left = {path for path in prefix.rglob("*") if not path.is_dir() or path.is_symlink()}
    assert left == {*notes, prefix / "agent/security/link"}
    assert f"sudo find {prefix}/agent {prefix}/bpf {prefix}/cache" in capsys.readouterr().out
    other = prefix.parent / "other"
    (other / "agent").mkdir(parents=True)
    with pytest.raises(sudoers.InstallError, match="no agent of install-agent"):
        remove(other, file)
    assert (other / "agent").is_dir()


@pytest.mark.parametrize("left", ["agent/__main__.py", "bpf/netpoll.h", f"cache/{'0' * 64}.program"])
def test_a_removal_that_was_interrupted_can_be_repeated(tmp_path: Path, prefix: Path, left: str) -> None:
    (prefix / left).parent.mkdir(parents=True)
    (prefix / left).touch()
    assert remove(prefix, tmp_path / "sudoers") == 0
    assert list(prefix.parent.iterdir()) == []


@pytest.mark.parametrize("spoil", ["link", "owner", "writable above"])
def test_nothing_is_removed_where_another_user_could_exchange_it(
    tmp_path: Path, prefix: Path, spoil: str
) -> None:
    file = tmp_path / "sudoers"
    named = installed(prefix)
    sudoers.write_sudoers(file, line("nobody", prefix))
    if spoil == "link":
        named = prefix.with_name("link")
        named.symlink_to(prefix)
        os.lchown(named, 65534, 65534)
        sudoers.write_sudoers(file, line("nobody", named))
    elif spoil == "owner":
        os.chown(prefix, 65534, 65534)
    else:
        prefix.parent.chmod(0o777)
    with pytest.raises(sudoers.InstallError, match="root could be made to remove other files"):
        remove(named, file)
    assert (prefix / "agent/__main__.py").is_file()
    assert (prefix / "bpf/netpoll.c").is_file()
    assert not file.exists(), "the permission is revoked anyway"


def test_removing_follows_no_link_that_is_exchanged_meanwhile(
    tmp_path: Path, prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if somebody had got around the check: a directory becomes a link when it has been listed."""
    installed(prefix)
    elsewhere = installed(prefix.with_name("elsewhere"))
    real, swapped = os.unlink, []

    def unlink(path: str, *, dir_fd: int | None = None) -> None:
        if not swapped:
            swapped.extend(prefix / name for name in ("agent", "bpf", "cache"))
            for directory in swapped:
                directory.rename(directory.with_name(f"old-{directory.name}"))
                directory.symlink_to(elsewhere / directory.name)
        real(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", unlink)
    remove(prefix, tmp_path / "sudoers")
    assert swapped
    for part in ("agent/__main__.py", "bpf/netpoll.c", f"cache/{'5eed' * 16}.program"):
        assert (elsewhere / part).is_file()


@pytest.mark.parametrize("spaced", ["{} ", "{}\t", "  {}", "{}\r"])
def test_a_line_with_other_spaces_is_removed(tmp_path: Path, spaced: str) -> None:
    file = tmp_path / "sudoers"
    text = line("nobody").replace(" ALL", "  ALL")
    file.write_text(spaced.format(text) + f"\n{line('daemon')}\n", newline="")
    assert len(sudoers.remove_lines(file, INSTALLED, "nobody")) == 1
    assert rules(file) == [line("daemon")]


def test_another_mistake_in_the_file_does_not_keep_a_permission(tmp_path: Path) -> None:
    file = tmp_path / "sudoers"
    file.write_text(f"nobody ALL=(\n{line('nobody')}\n")
    assert sudoers.remove_lines(file, INSTALLED) == [line("nobody")]
    assert file.read_text() == "nobody ALL=(\n"


def test_a_link_to_a_file_of_sudoers_is_not_replaced(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text(f"{line('nobody')}\n")
    link.symlink_to(target)
    with pytest.raises(sudoers.InstallError, match="is a symbolic link") as removing:
        sudoers.remove_lines(link, INSTALLED)
    assert removing.value.fix == f"name the file that it leads to: --sudoers {target}"
    with pytest.raises(sudoers.InstallError, match="is a symbolic link"):
        sudoers.write_sudoers(link, line("daemon"))
    assert (link.is_symlink(), rules(target)) == (True, [line("nobody")])


def install_without_compiling(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(install_agent, "fill_cache", lambda *_: "compiled")
    assert install_agent.main([*arguments, "--user", "nobody"]) == 0


def removal_in(out: str) -> list[str]:
    """The commands that were printed, without their sudo."""
    _, _, after = out.partition("to remove the agent and all lines for it again:\n")
    return [text.removeprefix("  sudo ") for text in after.splitlines() if text.startswith("  sudo ")]


def test_what_was_installed_says_whom_it_is_for_and_how_to_remove_it(
    tmp_path: Path, prefix: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    file = tmp_path / "sudoers"
    install_without_compiling(monkeypatch, "--prefix", str(prefix), "--sudoers", str(file))
    out = capsys.readouterr().out
    said = "nobody may start exactly this agent as root without a password, to measure their own processes"
    assert f"{said}\nto check that, as nobody:\n  " in out
    assert "run it only from an environment that the user can't write to" in out
    # The command it prints does it, and runs nothing of this environment.
    (removal,) = removal_in(out)
    assert removal == f"rm -r {file} {prefix}"
    subprocess.run(shlex.split(removal), check=True)
    assert list(tmp_path.iterdir()) == []
    assert list(prefix.parent.iterdir()) == []


def test_a_line_that_is_only_printed_can_be_found(
    prefix: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    install_without_compiling(monkeypatch, "--prefix", str(prefix))
    assert removal_in(capsys.readouterr().out)[-1] == f"grep -rF {prefix}/agent /etc/sudoers /etc/sudoers.d"


def test_what_others_have_there_is_not_in_the_command_that_removes(
    tmp_path: Path, prefix: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    file = tmp_path / "sudoers"
    file.write_text("daemon ALL=(root) NOPASSWD: /bin/true\n")
    prefix.mkdir()
    (prefix / "notes").touch()
    install_without_compiling(monkeypatch, "--prefix", str(prefix), "--sudoers", str(file))
    assert removal_in(capsys.readouterr().out) == [
        f"visudo -f {file}  # and delete the lines with {prefix}/agent",
        f"rm -r {prefix}/agent {prefix}/bpf {prefix}/cache",
    ]


def test_without_sudoers_the_line_and_the_command_that_writes_it_are_printed(
    prefix: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    install_without_compiling(monkeypatch, "--prefix", str(prefix))
    lines = capsys.readouterr().out.splitlines()
    assert line("nobody", prefix) in lines
    assert any(text.startswith("with it, nobody may start exactly this agent") for text in lines)
    command = lines[lines.index("to write it to /etc/sudoers.d/pytest-netpoll:") + 1]
    assert command.endswith(f"install-agent --prefix {prefix} --user nobody --sudoers")


def test_an_ordinary_user_is_given_the_call_as_an_administrator_types_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SUDO_USER", "nobody")
    monkeypatch.setattr(install_agent.os, "geteuid", lambda: 1000)
    with pytest.raises(sudoers.InstallError, match="needs root") as failure:
        install_agent.main(["--sudoers", "--prefix", "/opt/np"])
    assert str(failure.value.fix).endswith("install-agent --sudoers --prefix /opt/np --user nobody")
    with pytest.raises(sudoers.InstallError, match="needs root") as failure:
        install_agent.main([])
    assert str(failure.value.fix).endswith("install-agent --user nobody --sudoers")
    with pytest.raises(sudoers.InstallError, match="needs root") as failure:
        remove(tmp_path / "np", tmp_path / "sudoers", "--user", "nobody")
    assert failure.value.fix == f"sudo visudo -f {tmp_path}/sudoers  # and delete the line of nobody"
    with pytest.raises(sudoers.InstallError, match="needs root") as failure:
        remove(tmp_path / "np", tmp_path / "sudoers")
    assert failure.value.fix == f"sudo rm -r {tmp_path}/np"


def test_what_killed_tests_left_is_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    (tmp_path / f"netpoll-test-{ended.pid}/agent").mkdir(parents=True)
    (tmp_path / f"netpoll-test-{os.getpid()}").touch()
    (tmp_path / "other").touch()
    remove_leftovers([tmp_path])
    assert {path.name for path in tmp_path.iterdir()} == {f"netpoll-test-{os.getpid()}", "other"}


@needs_root_and_sudo
def test_sudo_knows_the_line_of_each_user() -> None:
    file = Path(f"/etc/sudoers.d/netpoll-test-{os.getpid()}")
    try:
        for user in ("nobody", "daemon"):
            sudoers.write_sudoers(file, line(user))
        for user in ("nobody", "daemon"):
            told = subprocess.run(["sudo", "-l", "-U", user], capture_output=True, text=True, check=True)
            assert f"(root) NOPASSWD: {SYSTEM_PYTHON} -I -B {INSTALLED}/agent" in told.stdout
    finally:
        file.unlink(missing_ok=True)


@needs_root_and_sudo
def test_the_hint_names_a_pytest_that_sudo_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privilege.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(privilege, "may_load_bpf", lambda _: False)
    with pytest.raises(UnmeasuredError, match="eBPF needs root") as refused:
        privilege.command(None, "never")
    command = shlex.split(str(refused.value.fix).replace("…", "--version"))
    assert command[0] == "sudo"
    run = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}, check=False)
    assert (run.returncode, run.stdout.split()[0]) == (0, "pytest"), run.stderr


def test_a_missing_go_mentions_that_sudo_has_its_own_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("SUDO_USER", "alice")
    with pytest.raises(ServiceError, match="no `go` on PATH, which is sudo's"):
        build.find_go()
