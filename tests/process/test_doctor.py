"""`python -m pytest_netpoll doctor` if something is wrong: what it prints, and that it continues."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_netpoll import __main__
from pytest_netpoll.cli import doctor
from pytest_netpoll.meter import checks
from pytest_netpoll.options import Config

EVERY_CHECK = [*checks.CHECKS, "BCC", "agent", "Go", "self-test"]


def run(*options: str, under: tuple[str, ...] = (), env: dict[str, str] | None = None):
    """(exit status, {name: finding}) of the command with --json."""
    process = subprocess.run(
        [*under, sys.executable, "-m", "pytest_netpoll", "doctor", "--json", *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **(env or {})},
    )
    assert process.stderr == ""
    report = json.loads(process.stdout)
    findings = {finding.pop("name"): finding for finding in report["checks"]}
    assert list(findings) == EVERY_CHECK
    assert report["works"] is (process.returncode == 0)
    for name, finding in findings.items():
        if finding["status"] != "ok" and name != "self-test":
            assert finding["fix"], name
    return process.returncode, findings


def test_without_bcc_it_names_the_package_to_install_and_fails():
    status, findings = run(f"--netpoll-python={sys.executable}")
    assert status == 1
    assert findings["BCC"]["status"] == "fail"
    assert "cannot be imported by" in findings["BCC"]["seen"]
    assert "install" in findings["BCC"]["fix"]
    assert findings["agent"]["seen"] == findings["BCC"]["seen"], "a test gets the same reason"
    assert findings["self-test"]["status"] == "fail"
    assert findings["kernel"]["status"] == "ok"


def test_the_bcc_of_pypi_is_recognized_and_its_removal_comes_first(tmp_path):
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    (site / "bcc").mkdir()
    (site / "bcc" / "__init__.py").write_text("lattice = 'body-centred cubic'\n")
    status, findings = run(f"--netpoll-python={python}")
    assert status == 1
    assert "is not BCC but an unrelated package of the same name" in findings["BCC"]["seen"]
    assert findings["BCC"]["fix"].startswith(f"sudo {python} -m pip uninstall bcc; ")


def test_a_missing_python_is_named():
    status, findings = run("--netpoll-python=/no/python")
    assert status == 1
    assert findings["BCC"]["seen"].startswith("there is no Python at /no/python")


def test_a_python_that_cannot_run_the_agent_is_quoted(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho broken beyond repair >&2\nexit 1\n")
    python.chmod(0o755)
    status, findings = run(f"--netpoll-python={python}")
    assert status == 1
    assert findings["BCC"]["detail"] == "broken beyond repair"
    assert findings["agent"]["detail"] == "broken beyond repair"
    assert findings["agent"]["fix"] == checks.DOCTOR


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        ("null", "the agent sent an invalid response: it: expected an object, got None"),
        ('{"about": {"bcc": "0.26.0"}}', "the agent sent an invalid response: about has no 'bcc_file'"),
        ('{"failed": 7}', "the agent failed: 7"),
    ],
    ids=range(3),
)
def test_an_invalid_response_of_the_agent_is_quoted(tmp_path, answer, seen):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{answer}'\n")
    python.chmod(0o755)
    assert doctor.bcc(Config.from_arguments(parsed(f"--netpoll-python={python}"))).seen == seen


@pytest.mark.skipif(os.geteuid() != 0, reason="takes capabilities away from root")
@pytest.mark.bpf
def test_a_containers_root_gets_the_missing_capabilities():
    """The agent, too, checks its own capabilities before it tries."""
    under = ("setpriv", "--bounding-set", "-bpf,-perfmon,-sys_admin")
    status, findings = run(under=under)
    assert status == 1
    assert findings["privileges"]["status"] == "fail"
    assert findings["privileges"]["fix"] == "docker run --cap-add BPF --cap-add PERFMON …"
    assert findings["agent"]["status"] == "fail"
    assert findings["agent"]["seen"] == "the agent lacks CAP_BPF and CAP_PERFMON"
    assert findings["agent"]["fix"].endswith("--cap-add BPF --cap-add PERFMON")
    assert findings["Go"]["status"] == "ok"


@pytest.mark.bpf
def test_without_go_it_works_and_reports_the_missing_proof(tmp_path):
    status, findings = run(env={"PATH": str(tmp_path)})
    assert status == 0
    assert findings["Go"]["status"] == "warn"
    assert findings["self-test"]["status"] == "warn"
    assert findings["self-test"]["seen"] == "skipped: there is no Go to build its program with"


def test_a_check_that_hangs_is_stopped_and_the_others_run(monkeypatch, tmp_path):
    """A Python that never answers; its child isn't left behind either."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho $$ >> {tmp_path}/pids\nexec sleep 60\n")
    python.chmod(0o755)
    monkeypatch.setattr(doctor, "DEADLINE", 1.0)
    monkeypatch.setattr(doctor, "AGENT_DEADLINE", 1.0)
    monkeypatch.setattr(doctor, "go", lambda: checks.Finding("ok", "a disk may be slower than that"))
    monkeypatch.setattr(checks, "CHECKS", {"hangs": lambda: time.sleep(60), "kernel": checks.kernel})
    started = time.monotonic()
    findings = doctor.examine(
        Config.from_arguments(parsed(f"--netpoll-python={python}", "--netpoll-sudo=auto"))
    )
    assert time.monotonic() - started < 50
    assert findings["hangs"].seen.startswith("timed out after 1 s")
    assert findings["BCC"].seen.startswith("timed out after 1 s")
    assert findings["agent"].seen.startswith("timed out after 1 s")
    assert findings["kernel"].status == "ok"
    assert findings["Go"].status == "ok"
    for pid in (tmp_path / "pids").read_text().split():
        assert not Path(f"/proc/{pid}").exists()


def late() -> checks.Finding:
    time.sleep(60)
    raise AssertionError("it is interrupted")


def examine_with(monkeypatch, **found):
    """The doctor's findings with these checks replaced."""
    monkeypatch.setattr(doctor, "DEADLINE", 0.1)
    monkeypatch.setattr(checks, "CHECKS", {})
    for name, check in {"go": lambda: checks.Finding("warn", "there is none"), **found}.items():
        monkeypatch.setattr(doctor, name, lambda *_, check=check: check())
    return doctor.examine(Config.from_arguments(parsed()))


def test_a_check_that_takes_too_long_does_not_contradict_an_agent_that_attached(monkeypatch):
    """On an emulated machine, asking for BCC took more than its 20 s."""
    findings = examine_with(monkeypatch, bcc=late, agent=lambda: checks.Finding("ok", "attached"))
    assert findings["BCC"].status == "warn"
    assert (
        findings["BCC"].seen
        == "timed out after 0 s: it hangs, or the machine is overloaded; but the agent loaded and attached"
    )
    assert findings["BCC"].fix == f"try again when the machine is idle: {checks.DOCTOR}"
    assert doctor.conclusion(findings).startswith("Measuring should work here")


def test_a_self_test_that_takes_too_long_proves_nothing(monkeypatch):
    monkeypatch.setattr(doctor, "SELFTEST_DEADLINE", 0.1)
    found = {"bcc": lambda: checks.Finding("ok", "there"), "agent": lambda: checks.Finding("ok", "attached")}
    go = lambda: checks.Finding("ok", "there")  # noqa: E731
    findings = examine_with(monkeypatch, **found, go=go, self_test=late)
    assert findings["self-test"].status == "warn"
    assert doctor.conclusion(findings) == ("Measuring should work here, but the self-test did not finish.")


def test_a_slow_check_fails_if_the_agent_fails_too(monkeypatch):
    findings = examine_with(monkeypatch, bcc=late, agent=lambda: checks.Finding("fail", "refused"))
    assert findings["BCC"].status == "fail"
    assert doctor.conclusion(findings) == "Measuring does not work here: BCC, agent, self-test."


def parsed(*options: str):
    import argparse

    from pytest_netpoll.options import add_agent_options

    parser = argparse.ArgumentParser()
    add_agent_options(parser)
    return parser.parse_args(options)


@pytest.mark.parametrize(
    ("release", "machine", "status"),
    [
        ("5.8.0", "x86_64", "ok"),
        ("6.12.0-rc1+", "aarch64", "ok"),
        ("5.4.0-150-generic", "x86_64", "fail"),
        ("4.18.0", "aarch64", "fail"),
        ("6.1.0", "riscv64", "fail"),
        ("strange", "x86_64", "fail"),
    ],
)
def test_kernels_are_classified(monkeypatch, release, machine, status):
    monkeypatch.setattr(checks.platform, "release", lambda: release)
    monkeypatch.setattr(checks.platform, "machine", lambda: machine)
    finding = checks.kernel()
    assert finding.status == status
    assert release in finding.seen
    assert (finding.fix is None) == (status == "ok")


@pytest.mark.parametrize(
    ("text", "status", "seen"),
    [
        ("[none] integrity confidentiality\n", "ok", "none"),
        ("none [integrity] confidentiality\n", "ok", "integrity"),
        ("none integrity [confidentiality]\n", "fail", "confidentiality: BPF programs may not read"),
        (None, "ok", "none"),
    ],
)
def test_a_locked_down_kernel_is_recognized(monkeypatch, tmp_path, text, status, seen):
    path = tmp_path / "lockdown"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(checks, "LOCKDOWN", path)
    finding = checks.lockdown()
    assert (finding.status, finding.seen[: len(seen)]) == (status, seen)


def test_interpreted_bpf_and_missing_btf_are_warnings(monkeypatch, tmp_path):
    (tmp_path / "jit").write_text("0\n")
    monkeypatch.setattr(checks, "JIT", tmp_path / "jit")
    monkeypatch.setattr(checks, "BTF", tmp_path / "none")
    assert (checks.jit().status, checks.btf().status) == ("warn", "warn")
    assert checks.jit().fix == "sudo sysctl net.core.bpf_jit_enable=1"


def test_the_fix_for_a_probe_that_does_not_load_comes_from_the_failed_check(monkeypatch):
    assert checks.likely_fix() == checks.DOCTOR
    monkeypatch.setattr(checks.platform, "release", lambda: "4.19.0")
    assert checks.likely_fix().startswith("run the tests on Linux 5.8 or newer (kernel: ")


def test_a_command_is_not_broken_into_lines_so_that_it_can_be_pasted():
    command = "sudo /home/user/with/a/long/path/.venv/bin/python -m pytest_netpoll install-agent --sudoers"
    fix = f"if there is no other way, an administrator runs once: {command}; or sudo -v, then again"
    lines = [
        line.strip() for line in doctor.table({"bad": checks.Finding("fail", "it", fix)}, 80).splitlines()
    ]
    assert f"{command};" in lines
    assert "or sudo -v, then again" in lines
    assert "fix: if there is no other way, an administrator runs once:" in lines


def test_the_table_shows_findings_and_fixes_and_fits_the_terminal():
    findings = {
        "good": checks.Finding("ok", "as it should be"),
        "bad": checks.Finding("fail", "word " * 40, "sudo repair --it", "compiler: no"),
        "self-test": checks.Finding("warn", "not done"),
    }
    lines = doctor.table(findings, 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[:2] for line in lines if line[0] != " "][1:] == [
        ["good", "ok"],
        ["bad", "FAIL"],
        ["self-test", "warn"],
    ]
    assert any(line.strip() == "fix: sudo repair --it" for line in lines)
    assert any(line.strip() == "| compiler: no" for line in lines)
    assert doctor.conclusion(findings) == "Measuring does not work here: bad."
    del findings["bad"]
    assert doctor.conclusion(findings).startswith("Measuring should work here, but the self-test")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "usage: python -m pytest_netpoll COMMAND [...]"),
        (["docter"], "usage: python -m pytest_netpoll COMMAND [...]"),
        (["doctor", "--netpoll-max-fds=none"], "'none' is not an integer > 0"),
    ],
)
def test_wrong_usage_is_exit_status_2(capsys, arguments, said):
    try:
        status = __main__.main(arguments)
    except SystemExit as error:  # argparse's
        status = error.code
    assert status == 2
    assert said in capsys.readouterr().err
