"""The id of the request that is being answered: in the answer, in what is logged and in the audit log."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from contextvars import ContextVar

HEADER = "x-request-id"
_FORM = re.compile(r"[A-Za-z0-9._:+/=-]{1,128}")
_current: ContextVar[str] = ContextVar("request_id", default="")
_first = os.urandom(8).hex()
_numbers = itertools.count(1)


def begin(given: Sequence[str]) -> str:
    """Gives this request, in this task and the threads it starts, the id that came with it, or one of its own.

    Args:
        given: Values of the header; taken if it is one, of 1 to 128 letters, digits and `._:+/=-`.
    """
    id = given[0] if len(given) == 1 and _FORM.fullmatch(given[0]) else f"{_first}{next(_numbers):08x}"
    _current.set(id)
    return id


def current() -> str:
    """The id of the request that is being answered here; empty if none is."""
    return _current.get()
