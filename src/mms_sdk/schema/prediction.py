"""Predictions: ranked classes or numbers, and bulk prediction."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from mms_sdk.schema.base import Schema
from mms_sdk.schema.job import On
from mms_sdk.schema.sources import ImageFolder


class Ranked(Schema):
    """One class and its score; scores of one prediction add up to 1."""

    label: str
    score: float


class Prediction(Schema):
    """What the model says about one input.

    Attributes:
        ranked: Classes by falling score; none where the model answers numbers.
        values: Those numbers: one, or nested lists of the signature's shape.
    """

    ranked: tuple[Ranked, ...] = ()
    values: Any = None

    @property
    def label(self) -> str:
        """The class with the highest score."""
        return self.ranked[0].label

    def top(self, count: int = 3) -> list[tuple[str, float]]:
        """The `count` best classes as (label, score) pairs."""
        return [(entry.label, entry.score) for entry in self.ranked[:count]]


class PredictJob(Schema):
    """Asks for every row of a dataset or folder to be predicted into a Parquet file.

    Attributes:
        dataset: A dataset reference, or
        source: a source of pictures; exactly one of the two.
        top: Ranked classes kept for each row; 0 keeps all.
        save_every: Rows after which what was predicted is saved: what is done again, at most, after a kill.
        on: The engine that does it; the service's process if left out.
    """

    model: str
    dataset: str | None = None
    source: ImageFolder | None = None
    top: int = Field(default=0, ge=0)
    save_every: int = Field(default=8192, ge=1)
    on: On | None = None
