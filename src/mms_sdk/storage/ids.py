"""Identifiers that sort by the time they were made."""

from __future__ import annotations

import os
import re
import threading
import time
from datetime import UTC, datetime

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford base 32, as in the ULID specification
_ID = re.compile(f"[{_ALPHABET}]{{26}}")


_last = 0
_making = threading.Lock()


def new_id() -> str:
    """A ULID: 48 bits of milliseconds and 80 random bits, as 26 letters and digits.

    Those that one process makes are in order even within a millisecond, as the specification has it.
    """
    global _last
    with _making:
        drawn = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
        _last = value = drawn if drawn >> 80 > _last >> 80 else _last + 1
    return "".join(_ALPHABET[value >> shift & 31] for shift in range(125, -1, -5))


def is_id(text: str) -> bool:
    """Whether a text is such an identifier, and so no path."""
    return _ID.fullmatch(text) is not None


def now() -> str:
    """The time as ISO 8601 in UTC with milliseconds, e.g. `2025-06-01T12:00:00.000Z`."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
