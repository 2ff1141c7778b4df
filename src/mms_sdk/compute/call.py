"""What stands at the end of a function's module in a job: its arguments, and what becomes of its value."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mms_sdk.compute.engines.folder import RANK
from mms_sdk.compute.values import pack, unpack

ARGUMENTS = "arguments.npz"
"""In the bundle, beside the function."""
RETURNED = "returned.npz"
"""In the folder of the attempt."""


def module_of(name: str, text: str) -> str:
    """A module that defines a function by its text and calls it with the arguments beside it."""
    call = f"_call.returned({name}, __file__)"
    return f"{text}\nif __name__ == '__main__':\n    from mms_sdk.compute import call as _call\n\n    {call}\n"


def returned(function: Any, module: str) -> None:
    """Calls the function of a job's module and keeps its value, that of the first rank, in the folder of the attempt.

    Raises:
        InvalidRequest: The value is nothing that travels.
    """
    place = Path(module).parent
    args, kwargs = unpack((place / ARGUMENTS).read_bytes())
    value = function(*args, **kwargs)
    if os.environ.get(RANK, "0") != "0":
        return  # the first speaks for all
    packed = pack(value, what=f"what {function.__name__} returned")
    draft = place.parent / f".{RETURNED}"
    draft.write_bytes(packed)
    draft.replace(place.parent / RETURNED)
