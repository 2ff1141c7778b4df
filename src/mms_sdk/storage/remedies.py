"""What is done about damage, in words that commands keep."""

from __future__ import annotations

RESTORE = "restore a new workspace from a backup: mms restore FROM --workspace FOLDER"
"""A backup gives a whole workspace back, into a folder of its own; never a part of one."""
