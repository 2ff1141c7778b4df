"""What is done about damage, in words that commands keep."""

from __future__ import annotations

RESTORE = "make a new workspace of a backup: mms restore FROM --workspace FOLDER"
"""A backup gives a whole workspace back, into a folder of its own; never a part of one."""
