"""The plugin's deadlines, for a machine that is emulated: 10 to 30 times as slow as one that is not.

`python -m slowly doctor` is `python -m pytest_netpoll doctor` with them; conftest.py imports this.
"""

import sys

from pytest_netpoll import __main__, doctor, probe

probe.START_DEADLINE = 400
probe.ANSWER_DEADLINE = 60
doctor.AGENT_DEADLINE = probe.START_DEADLINE + 10
doctor.SELFTEST_DEADLINE = 400

if __name__ == "__main__":
    sys.exit(__main__.main(sys.argv[1:]))
