"""Splits of a source by name, and which of a dataset's they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mms_sdk.errors import InvalidRequest

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}
"""The split that is meant, by the names that people give to it."""


def chosen_splits(there: Sequence[str], asked: Sequence[str] | None, *, of: Any) -> list[str]:
    """Those asked for, in the order in which they are there; all, if none is asked for.

    Raises:
        InvalidRequest: One is not there.
    """
    if missing := set(asked or ()) - set(there):
        raise InvalidRequest(f"splits of {of} are {list(there)}; got {sorted(missing)}; choose among them")
    return [name for name in there if asked is None or name in asked]


def places_of(chosen: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """For each split where its rows go, empty for as the rule places them, and what is to be said about it."""
    places = {name: SPLIT_NAMES.get(name, "") for name in chosen}
    if len(chosen) > 1 and "" not in places.values():
        return places, []
    # One split says nothing of how to divide it, and another's name nothing of what it is for.
    note = f"splits {list(chosen)} are none of train, validation and test; rows are placed by the split rule"
    return dict.fromkeys(chosen, ""), [note] if len(chosen) > 1 else []
