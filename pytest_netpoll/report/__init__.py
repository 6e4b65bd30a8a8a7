"""What the plugin says, and where: every module renders the same plain records (see record.py)."""
