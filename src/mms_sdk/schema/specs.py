"""What datasets are made by: ingests, splits, cleanings, joins and concatenations as they are asked for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mms_sdk.schema.base import Asked, Schema
from mms_sdk.schema.cleaning import CleanStep
from mms_sdk.schema.dataset import SPLITS, ColumnName, Profile
from mms_sdk.schema.job import On
from mms_sdk.schema.sources import Source, Union


class Split(Asked):
    """How rows are placed into train, val and test.

    Fractions are held within each class, and a row's place never changes afterwards: rows added later are placed so
    that each class keeps its fractions.

    Attributes:
        train: Share of the rows to train on.
        val: Share that decides when to stop and which checkpoint is best.
        test: Share that is looked at once, at the end.
        seed: Which of the many possible placements.
        by: `class` for fractions that are held within each class. `content` places each row by a hash of its content
            alone, so that they hold on average and a class may have a single row: right where rows come one by one. Of
            tables and arrays, `group` keeps rows of one value of a column together, by a hash of it; `time` puts those
            with the highest values into test, those before into val, and cuts rows that come later at the same values.
        column: Which column, for `group` and `time`.
    """

    train: float = Field(default=0.8, gt=0, le=1)
    val: float = Field(default=0.1, ge=0, lt=1)
    test: float = Field(default=0.1, ge=0, lt=1)
    seed: int = 0
    by: Literal["class", "content", "group", "time"] = "class"
    column: ColumnName | None = None

    @model_validator(mode="after")
    def _adds_up(self) -> Split:
        total = self.train + self.val + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"split fractions add up to 1; train + val + test is {total:g}")
        if self.by_column != (self.column is not None):
            raise ValueError(f"a split by group or by time names a column, others none; got {self.by}, {self.column}")
        return self

    @property
    def by_column(self) -> bool:
        """Whether the values of a column place the rows."""
        return self.by in ("group", "time")

    @property
    def fractions(self) -> dict[str, float]:
        """The fractions above zero, by split name."""
        return {name: getattr(self, name) for name in SPLITS if getattr(self, name) > 0}


class IngestSpec(Asked):
    """Everything an ingest job needs to know.

    Attributes:
        profile: How columns of a new dataset lie; None for what suits the place.
    """

    source: Annotated[Source | Union, Field(discriminator="type")]
    clean: tuple[CleanStep, ...] = ()
    split: Split = Split()
    message: str = ""
    profile: Profile | None = None


class IngestJob(IngestSpec):
    """An ingest, and what does it.

    Attributes:
        on: The engine that does it; the service's process if left out.
    """

    on: On | None = None


class CleanSpec(Asked):
    """Everything a cleaning job needs to know."""

    clean: tuple[CleanStep, ...] = Field(min_length=1, max_length=1000)
    message: str = ""


class JoinSpec(Asked):
    """Everything a join job needs to know.

    Attributes:
        left: Dataset whose rows they are.
        right: Dataset whose columns come along.
        on: Names of key columns of the left, each with its name in the right.
        how: Whether rows without a partner go, or stay without values.
        many: Whether several rows of the right may have one key; then the first counts.
        columns: Which of the right come along; None for all but the keys, and what is known of its rows.
        rename: New names for columns of the right.
        suffix: Put behind the name of a column of the right that the left has too.
        message: Kept with the snapshot.
    """

    left: str
    right: str
    on: dict[str, str] = Field(min_length=1)
    how: Literal["inner", "left"] = "inner"
    many: Literal["refuse", "first"] = "refuse"
    columns: tuple[str, ...] | None = Field(default=None, min_length=1)
    rename: dict[str, ColumnName] = {}
    suffix: str = Field(default="", pattern=r"^[a-z0-9_]{0,20}$")
    message: str = ""


class JoinReport(Schema):
    """What became of the rows of a join.

    Attributes:
        rows: There are now.
        matched: Rows of the left that have a partner.
        unmatched: Rows of the left that have none.
    """

    rows: int
    matched: int
    unmatched: int


class ConcatSpec(Asked):
    """Everything a job needs to know that puts datasets end to end.

    Attributes:
        datasets: In order.
        missing: What becomes of a column that is not in all of them: refused, or without values there.
        message: Kept with the snapshot.
    """

    datasets: tuple[str, ...] = Field(min_length=2, max_length=1000)
    missing: Literal["refuse", "null"] = "refuse"
    message: str = ""
