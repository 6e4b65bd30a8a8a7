"""Converts a JSON report to the formats of other tools, for `python -m pytest_netpoll export`."""
