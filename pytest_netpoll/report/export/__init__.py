"""A JSON report in the formats of other tools, for `python -m pytest_netpoll export`."""
