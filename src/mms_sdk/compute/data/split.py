"""Splits: which rows are trained on, and which are kept to judge by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mms_sdk.errors import DataError, InvalidRequest
from mms_sdk.schema.dataset import SPLITS
from mms_sdk.schema.specs import Split
from mms_sdk.types import Array


def place(
    ids: Array, classes: Array, *, split: Split, before: Mapping[int, Mapping[str, int]], labels: Sequence[str]
) -> Array:
    """Places new rows into splits, class by class, without moving a row that has its place.

    Within a class the rows are put in an order that depends on nothing but their content and the seed, and dealt so
    that the class, old rows included, comes as near to the fractions as whole rows allow.

    Args:
        ids: Content digests, uint8, shape (rows, 16).
        classes: Class codes, int, shape (rows,).
        split: The rule.
        before: For each class code, the rows each split has already.
        labels: Class names, for messages.

    Returns:
        Codes into `SPLITS`, uint8, shape (rows,).

    Raises:
        DataError: A class has fewer rows than there are splits.
    """
    if split.by == "content":
        return place_by_content(ids, split=split)
    names = list(split.fractions)
    codes = np.array([SPLITS.index(name) for name in names], np.uint8)
    out = np.zeros(len(ids), np.uint8)
    keys = _order_keys(ids, split.seed)
    for code in np.unique(classes):
        members = np.flatnonzero(classes == code)
        members = members[np.argsort(keys[members], kind="stable")]
        held = Counter(before.get(int(code), {}))
        total = len(members) + sum(held.values())
        if total < len(names):
            label = labels[int(code)]
            rule, seen = (
                (f"every class has at least one row in each of {names}", f"class {label!r} has {total} in all")
                if label
                else (f"there is at least one row in each of {names}", f"there are {total} in all")
            )
            raise DataError(
                f"{rule}; {seen}; add rows to it, remove it, or split into fewer parts, e.g. mms.Split(train=0.8, "
                f"val=0.2, test=0)"
            )
        wanted = _shares(total, split.fractions)
        needed = [max(0, wanted[name] - held[name]) for name in names]
        dealt = np.repeat(codes, needed)
        if len(dealt) > len(members):  # old rows hold more than their share of a split; the others share what there is
            dealt = dealt[np.arange(len(members)) * len(dealt) // len(members)]
        out[members] = dealt
    return out


def place_by_content(ids: Array, *, split: Split) -> Array:
    """Places each row by its content and the seed alone, so that no writer needs to know of another's rows.

    The fractions hold on average, and the same content has the same place wherever and whenever it comes in.

    Args:
        ids: Content digests, uint8, shape (rows, 16).
        split: The rule.

    Returns:
        Codes into `SPLITS`, uint8, shape (rows,).
    """
    codes = np.array([SPLITS.index(name) for name in split.fractions], np.uint8)
    ends = np.cumsum(list(split.fractions.values()))[:-1]
    out: Array = codes[np.searchsorted(ends, _order_keys(ids, split.seed) / 2.0**64, side="right")]
    return out


def place_by_time(values: Array, *, cuts: Mapping[str, int | float]) -> Array:
    """Places rows by the order of a column.

    Args:
        values: Of the column, shape (rows,).
        cuts: For each split but the first, the lowest value that is in it.

    Returns:
        Codes into `SPLITS`, uint8, shape (rows,).
    """
    out = np.zeros(len(values), np.uint8)
    for name, lowest in cuts.items():
        out[values >= lowest] = SPLITS.index(name)
    return out


def cuts_of(values: Array, *, split: Split) -> dict[str, int | float]:
    """Where a column is cut, so that its splits come as near to the fractions as rows of equal values allow.

    Args:
        values: Of the column, shape (rows,).
        split: The rule.

    Returns:
        For each split but the first, the lowest value that is in it.

    Raises:
        DataError: A split would have no row.
    """
    distinct, rows = np.unique(values, return_counts=True)
    before = np.cumsum(rows) - rows  # rows below each value
    ends = np.cumsum(list(split.fractions.values()))[:-1] * len(values)
    places = [int(np.abs(before - end).argmin()) for end in ends]
    if len({0, *places}) <= len(places):
        raise DataError(
            f"by time each of {list(split.fractions)} has rows, and rows of one value are in one split; "
            f"{split.column!r} has {len(distinct):,} values in {len(values):,} rows, which do not divide so; use other "
            f"fractions or another column"
        )
    return {name: distinct[at].item() for name, at in zip(list(split.fractions)[1:], places, strict=True)}


def rule_in(told: Mapping[str, Any]) -> Split:
    """The rule in a snapshot's `split_rule`; the usual one where its rows were placed by their source."""
    return Split(**{name: told[name] for name in Split.model_fields if name in told}) if "train" in told else Split()


def refuse_by_column(split: Split, *, what: str) -> None:
    """Refuses to place rows by a column where there is none.

    Raises:
        InvalidRequest: The rule names one.
    """
    if split.by_column:
        raise InvalidRequest(
            f"by {split.by} rows of tables and arrays are placed that are ingested; {what} are placed by class or "
            f"content; use mms.Split(by='content')"
        )


def _shares(total: int, fractions: Mapping[str, float]) -> dict[str, int]:
    # Largest remainder, with one row for every split first, so that no split of a small class is empty.
    spare = total - len(fractions)
    exact = {name: max(0.0, fraction * total - 1) for name, fraction in fractions.items()}
    scale = spare / (sum(exact.values()) or 1.0)
    shares = {name: 1 + int(part * scale) for name, part in exact.items()}
    by_remainder = sorted(exact, key=lambda name: round(exact[name] * scale % 1, 9), reverse=True)  # ties: first named
    for name in by_remainder[: total - sum(shares.values())]:
        shares[name] += 1
    return shares


def _order_keys(ids: Array, seed: int) -> Array:
    words = np.ascontiguousarray(ids).view("<u8")
    salt = np.random.SeedSequence(seed & 2**63 - 1).generate_state(2, np.uint64)
    mixed = (words[:, 0] ^ salt[0]) * np.uint64(0x9E3779B97F4A7C15) + words[:, 1]
    keys: Array = (mixed ^ mixed >> np.uint64(32)) * np.uint64(0xD6E8FEB86659FD93) ^ salt[1]
    return keys
