"""Answers that are the next token at every place of a text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mms_sdk.compute.evaluation.numbers import quantiles
from mms_sdk.compute.evaluation.sample import Off, divided
from mms_sdk.told import counted
from mms_sdk.types import Array

_LARGEST = math.log(np.finfo(np.float64).max)


@dataclass(frozen=True)
class Tokens:
    """Rows of tokens, as sums over the places of each row.

    Args:
        sums: As `sums_of` gives them, float64, shape (rows, 5).
        of_bytes: Whether tokens are bytes.
    """

    sums: Array
    of_bytes: bool

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.sums)

    @property
    def shares(self) -> dict[str, Array]:
        """None: a row has as many answers as tokens."""
        return {}

    def measure(self, counts: Array) -> dict[str, float]:
        """See `Sample`. Means over tokens, so that a long row weighs more than a short one."""
        loss, right, tokens, byte_loss, count = (counts @ self.sums).tolist()
        mean = float(divided(loss, tokens))
        told = {
            "loss": mean,
            "perplexity": math.exp(min(mean, _LARGEST)),
            "token_accuracy": float(divided(right, tokens)),
        }
        if self.of_bytes:
            told["bits_per_byte"] = float(divided(byte_loss, count)) / math.log(2)
        return told

    def take(self, places: Array) -> Tokens:
        """Some of the rows, by their places."""
        return replace(self, sums=self.sums[places])

    def parts(self, labels: Sequence[str]) -> dict[str, Any]:
        """See `Answers`: the quantiles of each row's loss a token."""
        means = self._by_row
        return {"row_errors": quantiles(means[~np.isnan(means)])} if not np.isnan(means).all() else {}

    def worst(self, count: int, labels: Sequence[str]) -> list[Off]:
        """See `Answers`; the score is a row's loss a token."""
        there = np.flatnonzero(~np.isnan(self._by_row))
        places = there[np.argsort(-self._by_row[there], kind="stable")[:count]].tolist()
        return [
            Off(at, counted(int(self.sums[at, 2]), "token"), f"{self.sums[at, 1]:.0f} right", float(self._by_row[at]))
            for at in places
        ]

    def notes(self) -> Iterator[str]:
        """See `Answers`."""
        if empty := int((self.sums[:, 2] == 0).sum()):
            yield f"rows of one token have none to be said: {empty:,} count nowhere"

    @property
    def _by_row(self) -> Array:
        return divided(self.sums[:, 0], self.sums[:, 2])


def sums_of(tokens: Array, logits: Array, *, pad_id: int, first_byte: int | None) -> Array:
    """Sums over the places of some rows.

    Args:
        tokens: int, shape (rows, length); the first of a row is known, the others are to be said.
        logits: At each place those of the token behind it, shape (rows, length, vocabulary).
        pad_id: Token that is not to be said.
        first_byte: Token of the byte 0, from which on tokens are bytes; None where they are something else.

    Returns:
        float64, shape (rows, 5): cross-entropy in nats, right tokens, tokens, and the cross-entropy and the number of
        those that are bytes.
    """
    following, given = tokens[:, 1:], logits[:, :-1]
    highest = given.max(-1, keepdims=True)
    partition = np.log(np.exp(given - highest).sum(-1, dtype=np.float64)) + highest[..., 0]
    # An id that the model has no score for gives NaN at every place, so that any place will do.
    places = np.minimum(following, given.shape[-1] - 1)[..., None].astype(np.int64)
    losses = partition - np.take_along_axis(given, places, axis=-1)[..., 0]
    said = following != pad_id
    of_bytes = said & (following >= first_byte) if first_byte is not None else np.zeros_like(said)
    right = said & (given.argmax(-1) == following)
    # Where nothing is to be said the loss may be anything.
    columns = (np.where(said, losses, 0.0), right, said, np.where(of_bytes, losses, 0.0), of_bytes)
    return np.stack([column.sum(1, dtype=np.float64) for column in columns], axis=1)
