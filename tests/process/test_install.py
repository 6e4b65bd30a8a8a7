"""install-agent: for which users, and what it leaves unchanged. tests/bpf checks that sudo obeys the line."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from pytest_netpoll.cli import install_agent
from pytest_netpoll.errors import ServiceError, UnmeasuredError, UsageError
from pytest_netpoll.meter import privilege
from pytest_netpoll.meter.privilege import INSTALLED, SYSTEM_PYTHON
from pytest_netpoll.service import build

needs_root_and_sudo = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("sudo"), reason="asking sudo about others takes root, and a sudo"
)


Capture = pytest.CaptureFixture[str]


def line(user: str, prefix: Path = INSTALLED) -> str:
    return install_agent.sudoers_line(user, SYSTEM_PYTHON, prefix)


def rules(file: Path) -> list[str]:
    return [text for text in file.read_text().splitlines() if not text.startswith("#")]


def test_each_user_keeps_their_own_line(tmp_path: Path) -> None:
    file = tmp_path / "sudoers"
    assert install_agent.write_sudoers(file, line("daemon")) == []
    assert install_agent.write_sudoers(file, line("nobody")) == []
    assert install_agent.write_sudoers(file, line("%users")) == []
    assert install_agent.write_sudoers(file, line("daemon")) == [], "it is there already"
    assert sorted(rules(file)) == sorted([line("daemon"), line("nobody"), line("%users")])
    assert file.stat().st_mode & 0o777 == 0o440
    assert [path.name for path in tmp_path.iterdir()] == ["sudoers"]


def test_a_users_own_line_is_replaced_and_reported(tmp_path: Path) -> None:
    file = tmp_path / "sudoers"
    install_agent.write_sudoers(file, line("nobody"))
    install_agent.write_sudoers(file, line("daemon"))
    elsewhere = line("nobody", Path("/opt/netpoll"))
    assert install_agent.write_sudoers(file, elsewhere) == [line("nobody")]
    assert rules(file) == [line("daemon"), elsewhere]


def test_the_rest_of_the_file_stays(tmp_path: Path) -> None:
    file = tmp_path / "sudoers"
    others = "# caf\udce9\nDefaults:nobody !requiretty\nnobody ALL=(root) NOPASSWD: /bin/true\n"
    file.write_text(others, errors="surrogateescape")
    install_agent.write_sudoers(file, line("nobody"))
    assert file.read_text(errors="surrogateescape") == f"{others}{line('nobody')}\n"


@pytest.mark.skipif(not shutil.which("visudo", path="/usr/sbin:/usr/bin"), reason="there is no visudo")
def test_a_file_that_sudo_would_not_read_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "sudoers"
    file.write_text("nobody ALL=(\n")
    with pytest.raises(install_agent.InstallError, match="visudo rejects") as failure:
        install_agent.write_sudoers(file, line("nobody"))
    assert line("nobody") in str(failure.value.detail)
    assert file.read_text() == "nobody ALL=(\n"


def test_concurrent_installations_keep_each_others_lines(tmp_path: Path) -> None:
    file = tmp_path / "sudoers"
    lines = [line(f"user{number}") for number in range(8)]
    threads = [threading.Thread(target=install_agent.write_sudoers, args=(file, text)) for text in lines]
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


def fake_agent(prefix: Path) -> Path:
    for part in (*install_agent._OURS, "cache/1.program"):
        (prefix / part).parent.mkdir(parents=True, exist_ok=True)
        (prefix / part).touch()
    return prefix


def test_removing_takes_back_all_that_was_installed(tmp_path: Path, capsys: Capture) -> None:
    file, prefix = tmp_path / "sudoers", fake_agent(tmp_path / "agent-of-ours")
    for user in ("nobody", "daemon"):
        install_agent.write_sudoers(file, line(user, prefix))
    remove = ["--remove", "--prefix", str(prefix), "--sudoers", str(file)]
    assert install_agent.main(remove) == 0
    out = capsys.readouterr().out
    assert line("nobody", prefix) in out
    assert f"removed the agent from {prefix}" in out
    assert list(tmp_path.iterdir()) == []
    assert install_agent.main(remove) == 0, "it is all gone"
    assert f"nothing to remove: no agent at {prefix}" in capsys.readouterr().out


def test_removing_a_user_keeps_the_agent_and_the_others(tmp_path: Path) -> None:
    file, prefix = tmp_path / "sudoers", fake_agent(tmp_path / "agent-of-ours")
    for user in ("nobody", "daemon"):
        install_agent.write_sudoers(file, line(user, prefix))
    remove = ["--remove", "--user", "daemon", "--prefix", str(prefix), "--sudoers", str(file)]
    assert install_agent.main(remove) == 0
    assert rules(file) == [line("nobody", prefix)]
    assert (prefix / "agent").is_dir()
    with pytest.raises(install_agent.InstallError, match="has no line for daemon"):
        install_agent.main(remove)


def test_removing_leaves_what_is_not_of_this_agent(tmp_path: Path) -> None:
    file, prefix = tmp_path / "sudoers", fake_agent(tmp_path / "agent-of-ours")
    others = f"nobody ALL=(root) NOPASSWD: /bin/true\n{line('nobody', Path('/opt/netpoll'))}\n"
    file.write_text(others)
    install_agent.write_sudoers(file, line("daemon", prefix))
    (prefix / "notes").touch()
    (tmp_path / "other" / "agent").mkdir(parents=True)
    install_agent.main(["--remove", "--prefix", str(prefix), "--sudoers", str(file)])
    assert file.read_text() == others
    assert [path.name for path in prefix.iterdir()] == ["notes"]
    with pytest.raises(install_agent.InstallError, match="no agent of install-agent"):
        install_agent.main(["--remove", "--prefix", str(tmp_path / "other"), "--sudoers", str(file)])
    assert (tmp_path / "other" / "agent").is_dir()


def test_what_was_installed_says_whom_it_is_for_and_how_to_remove_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    file, prefix = tmp_path / "sudoers", tmp_path / "prefix"
    monkeypatch.setattr(install_agent, "install", fake_agent)
    monkeypatch.setattr(install_agent, "fill_cache", lambda *_: "compiled")
    arguments = ["--prefix", str(prefix), "--sudoers", str(file)]
    assert install_agent.main([*arguments, "--user", "nobody"]) == 0
    out = capsys.readouterr().out
    assert "nobody may start exactly this agent as root without a password" in out
    # The command it prints does it.
    (removal,) = (text.strip() for text in out.splitlines() if "--remove" in text)
    _, _, options = removal.partition("install-agent ")
    assert install_agent.main(shlex.split(options)) == 0
    assert list(tmp_path.iterdir()) == []


def test_without_sudoers_the_line_and_the_command_that_writes_it_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(install_agent, "install", fake_agent)
    monkeypatch.setattr(install_agent, "fill_cache", lambda *_: "compiled")
    prefix = tmp_path / "prefix"
    assert install_agent.main(["--prefix", str(prefix), "--user", "nobody"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert line("nobody", prefix) in lines
    assert any(text.startswith("with it, nobody may start exactly this agent") for text in lines)
    command = lines[lines.index("to write it to /etc/sudoers.d/pytest-netpoll:") + 1]
    assert command.endswith(f"install-agent --prefix {prefix} --user nobody --sudoers")


def test_an_ordinary_user_is_given_the_call_as_an_administrator_types_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SUDO_USER", "nobody")
    monkeypatch.setattr(install_agent.os, "geteuid", lambda: 1000)
    with pytest.raises(install_agent.InstallError, match="needs root") as failure:
        install_agent.main(["--sudoers", "--prefix", "/opt/np"])
    assert str(failure.value.fix).endswith("install-agent --sudoers --prefix /opt/np --user nobody")
    with pytest.raises(install_agent.InstallError, match="needs root") as failure:
        install_agent.main([])
    assert str(failure.value.fix).endswith("install-agent --user nobody --sudoers")
    with pytest.raises(install_agent.InstallError, match="needs root") as failure:
        install_agent.main(["--remove", "--user", "nobody"])
    assert str(failure.value.fix).endswith("install-agent --remove --user nobody")


@needs_root_and_sudo
def test_sudo_knows_the_line_of_each_user() -> None:
    file = Path(f"/etc/sudoers.d/netpoll-test-{os.getpid()}")
    try:
        for user in ("nobody", "daemon"):
            install_agent.write_sudoers(file, line(user))
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
