"""The test that compose.yaml runs: pytest is in one container, and the service that it measures in another
one."""

import pytest


@pytest.fixture(scope="session")
def server(go_service):
    return go_service(process="/server")  # its path in its own container


@pytest.mark.netpoll(max_spurious="5%", min_wakeups=100)
def test_a_message_wakes_its_reader_and_nobody_else(server, ping):
    ping(server, 200, pause=0.001)
