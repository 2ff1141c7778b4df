"""Answers that are vectors, by the rows that lie nearest to each row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mms_sdk.compute.evaluation.intervals import Tell
from mms_sdk.compute.evaluation.sample import Off, divided
from mms_sdk.schema.job import Progress
from mms_sdk.types import Array

NEAREST = (1, 5)
BLOCK_BYTES = 64 * 2**20
"""Of the cosines that are held at a time, whatever the number of rows."""


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Rows that look for rows of their class among all others of the split, by the cosine.

    Attributes:
        found: For each of `NEAREST`, whether a row of the class is among so many nearest ones, bool, shape (rows, 2).
        precision: Average precision of the row's search, float64, shape (rows,).
        alone: Rows whose class no other row has; they look for nothing, and count nowhere. bool, shape (rows,).
        codes: The class of each row, int64.
        nearest: The class of the row that lies nearest, int64.
        cosine: Of the nearest row.
        names: Of the classes, by code.
    """

    found: Array
    precision: Array
    alone: Array
    codes: Array
    nearest: Array
    cosine: Array
    names: tuple[str, ...]

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.codes)

    @property
    def shares(self) -> dict[str, Array]:
        """See `Sample`; none where some rows count nowhere."""
        if self.alone.any():
            return {}
        return {f"recall_at_{count}": self.found[:, at] for at, count in enumerate(NEAREST)}

    def measure(self, counts: Array) -> dict[str, float]:
        """See `Sample`. What there is to find stays the same; it is the searches that are drawn."""
        looking = counts * ~self.alone
        values = np.column_stack([self.found, self.precision])
        means = divided(looking @ values, np.broadcast_to(looking.sum(), values.shape[1])).tolist()
        return dict(zip((*(f"recall_at_{count}" for count in NEAREST), "map"), means, strict=True))

    def take(self, places: Array) -> Neighbours:
        """Some of the rows, by their places; what they found is what they found among all."""
        arrays = {name: value[places] for name, value in vars(self).items() if name != "names"}
        return Neighbours(names=self.names, **arrays)

    def parts(self, labels: Sequence[str]) -> dict[str, Any]:
        """Nothing beside the metrics."""
        return {}

    def worst(self, count: int, labels: Sequence[str]) -> list[Off]:
        """See `Answers`: rows that lie nearest to one of another class; the score is the cosine."""
        wrong = np.flatnonzero((self.nearest != self.codes) & ~self.alone)
        places = wrong[np.argsort(-self.cosine[wrong], kind="stable")[:count]].tolist()
        return [
            Off(at, self.names[self.codes[at]], self.names[self.nearest[at]], float(self.cosine[at])) for at in places
        ]

    def notes(self) -> Iterator[str]:
        """See `Answers`."""
        if alone := int(self.alone.sum()):
            yield f"rows whose class no other row here has are found by none: {alone:,} count in no metric"


def neighbours(vectors: Array, codes: Array, names: tuple[str, ...], tell: Tell = lambda _: None) -> Neighbours:
    """Lets each row look for those of its class among all others.

    Of rows that lie equally near, those of another class count as nearer in `found`; in `precision` they count
    together, as scikit-learn has it.

    Args:
        vectors: Of length 1, shape (rows, size).
        codes: Classes, int64, shape (rows,).
        names: Of the classes.
        tell: Called with the progress.
    """
    rows = len(codes)
    found, precision = np.zeros((rows, len(NEAREST)), bool), np.zeros(rows)
    nearest, cosine = codes.copy(), np.zeros(rows)
    block = max(1, BLOCK_BYTES // (4 * max(1, rows)))
    for start in range(0, rows, block):
        near = vectors[start : start + block] @ vectors.T
        for at, each in enumerate(near, start):
            each[at] = -np.inf
            nearest[at], cosine[at] = _nearest(each, codes, at)
            same = codes == codes[at]
            same[at] = False
            found[at], precision[at] = _search(each, same)
        tell(Progress(done=min(rows, start + block), total=rows, what="rows compared with all others"))
    return Neighbours(
        found=found,
        precision=precision,
        alone=np.bincount(codes, minlength=len(names))[codes] == 1,
        codes=codes,
        nearest=nearest,
        cosine=cosine,
        names=names,
    )


def _nearest(cosines: Array, codes: Array, own: int) -> tuple[int, float]:
    if len(codes) == 1:
        return int(codes[own]), 0.0
    place = int(cosines.argmax())
    return int(codes[place]), float(cosines[place])


def _search(cosines: Array, same: Array) -> tuple[list[bool], float]:
    hits = np.sort(cosines[same])[::-1]
    if not len(hits):
        return [False] * len(NEAREST), 0.0
    # For each hit how many rows, and how many hits, lie as near or nearer; the row itself is at the far end.
    ranked = np.sort(cosines)
    rows = len(ranked) - np.searchsorted(ranked, hits, side="left")
    among = len(hits) - np.searchsorted(hits[::-1], hits, side="left")
    others = int(rows[0] - among[0])
    return [others < count for count in NEAREST], float((among / rows).mean())
