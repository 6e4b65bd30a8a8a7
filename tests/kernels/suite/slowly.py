"""The plugin's deadlines for an emulated machine, which is 10 to 30 times as slow.

`python -m slowly doctor` is `python -m pytest_netpoll doctor` with them; conftest.py imports this.
"""

import sys

from pytest_netpoll import __main__
from pytest_netpoll.cli import doctor
from pytest_netpoll.meter import agent_client

agent_client.START_DEADLINE = 400
agent_client.ANSWER_DEADLINE = 60
doctor.AGENT_DEADLINE = agent_client.START_DEADLINE + 10
doctor.SELFTEST_DEADLINE = 400

if __name__ == "__main__":
    sys.exit(__main__.main(sys.argv[1:]))
