"""The reports. Every module renders the same plain records (see record.py)."""
