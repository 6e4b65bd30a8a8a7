"""What a user with the line in sudoers tries against the agent, on this kernel.

Runs as root, which becomes that user; only root can see what happens to others.
"""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path

import pytest
from conftest import SERVICES

from pytest_netpoll.meter import privilege
from tests import attacks

# s. The hostile program tells thousands of lies in it, however slow the machine is.
SECONDS = float(os.environ.get("NETPOLL_HOSTILE_SECONDS", "20"))


@pytest.fixture(scope="module")
def user():
    entry = pwd.getpwnam("tester")
    return attacks.User("tester", entry.pw_uid, entry.pw_gid, Path(entry.pw_dir))


@pytest.fixture(scope="module")
def program(user):
    """program("echo") is the user's copy of that service."""
    newest = max(SERVICES.iterdir(), key=lambda path: [int(n) for n in path.name[2:].split(".")])

    def program(name):
        target = user.home / name
        shutil.copy(newest / name, target)
        shutil.chown(target, user.uid, user.gid)
        return target

    return program


@pytest.fixture(scope="module")
def ask(user):
    """One agent for all of these: it takes minutes to start."""
    with attacks.running(user, privilege.INSTALLED, uprobes=1, max_fds=16384) as ask:
        yield ask


@pytest.mark.usefixtures("ask")
def test_what_the_agent_keeps(user):
    print(attacks.what_the_agent_keeps(user, privilege.INSTALLED))


def test_a_users_probes_are_only_in_the_users_process(ask, user, program):
    attacks.a_users_probes_are_only_in_the_users_process(ask, user, program("echo"))


def test_a_user_cannot_choose_the_place_of_a_probe(ask, user, program):
    attacks.a_user_cannot_choose_the_place_of_a_probe(ask, user, program("echo"))


@pytest.mark.parametrize("how", attacks.OVERLAYS)
def test_a_file_on_a_users_overlay_gets_no_probes(ask, user, program, how):
    attacks.a_file_on_a_users_overlay_gets_no_probes(ask, user, program("echo"), how)


@pytest.mark.parametrize("how", attacks.EXEC_GAINS)
def test_a_process_that_gains_rights_by_an_exec_is_no_longer_counted(ask, user, program, how):
    attacks.a_process_that_gains_rights_by_an_exec_is_no_longer_counted(ask, user, program("brief"), how)


def test_invented_descriptors_reveal_only_the_programs_own(ask, user, program):
    told = attacks.invented_descriptors_reveal_only_the_programs_own(
        ask, user, program("hostile"), SECONDS, children=30
    )
    assert told > 100


@pytest.mark.usefixtures("ask")
def test_the_ninth_agent_is_refused(user):
    attacks.the_ninth_agent_is_refused(user, privilege.INSTALLED)
