"""Cleaning: steps as they are said and kept, and what they did."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from mms_sdk import html
from mms_sdk.schema.base import Asked, Schema
from mms_sdk.schema.dataset import Dtype

Names = Annotated[
    tuple[str, ...], Field(min_length=1), BeforeValidator(lambda names: (names,) if isinstance(names, str) else names)
]
"""One name or several."""


class DropUnreadable(Asked):
    """Drops files that do not decode to a picture."""

    step: Literal["drop-unreadable"] = "drop-unreadable"


class DropDuplicates(Asked):
    """Drops what is there twice: pictures with the same bytes, rows of a table with the same values.

    In an ingest, what the dataset holds counts as seen before, and stays.

    Attributes:
        by: Columns of a table whose values make two rows the same; None for all of them, as they came.
        keep: Which of several stays.
    """

    by_place = ("by",)
    step: Literal["drop-duplicates"] = "drop-duplicates"
    by: Names | None = None
    keep: Literal["first", "last"] = "first"


class DropNearDuplicates(Asked):
    """Drops what is nearly the same as something before it; the first one stays.

    Pictures by a perceptual hash of 64 bits, `drop_near_duplicates(distance=4)`; rows of a table by one of its columns
    of text, `drop_near_duplicates("text", similarity=0.8)`.

    Attributes:
        column: Which column of text; None for pictures.
        distance: Of pictures: in how many of the 64 bits two may differ. 0 to 4 finds copies that were scaled or
            compressed again; from 8 on, different pictures are taken for copies too.
        similarity: Of texts: what share of their runs of five characters two have in common, of all in either, as
            estimated from 128 of them.
    """

    by_place = ("column",)
    step: Literal["drop-near-duplicates"] = "drop-near-duplicates"
    column: str | None = None
    distance: int | None = Field(default=None, ge=0, le=11)
    similarity: float | None = Field(default=None, ge=0.2, le=1)

    @model_validator(mode="before")
    @classmethod
    def _with_default(cls, told: Any) -> Any:
        if not isinstance(told, dict):
            return told
        return {**({"distance": 4} if told.get("column") is None else {"similarity": 0.8}), **told}

    @model_validator(mode="after")
    def _is_one_of_both(self) -> DropNearDuplicates:
        if (self.column is None) == (self.distance is None) or (self.column is None) != (self.similarity is None):
            raise ValueError(
                f"pictures are near by distance=, and texts of a column by similarity=; got column={self.column!r}, "
                f"distance={self.distance}, similarity={self.similarity}"
            )
        return self


class DropMissing(Asked):
    """Drops rows that lack a value.

    Attributes:
        columns: Where to look; None for all columns.
    """

    by_place = ("columns",)
    step: Literal["drop-missing"] = "drop-missing"
    columns: Names | None = None


class DropOutOfRange(Asked):
    """Drops rows with a number outside a range. Rows without a value stay.

    Attributes:
        column: Which column.
        min: The least that stays; None for no bound.
        max: The greatest that stays; None for no bound.
    """

    by_place = ("column",)
    step: Literal["drop-out-of-range"] = "drop-out-of-range"
    column: str
    min: int | float | None = None
    max: int | float | None = None


class KeepWhere(Asked):
    """Keeps rows for which an expression holds; where a value it needs is missing, it does not hold.

    Attributes:
        expression: Columns by name, numbers, quoted texts, `+ - * /`, comparisons, `in`, `and`, `or`, `not` and
            `is None`, e.g. `age >= 18 and city in ("Rome", "Oslo")`.
    """

    by_place = ("expression",)
    step: Literal["keep-where"] = "keep-where"
    expression: str = Field(max_length=10_000)


class DropConstant(Asked):
    """Drops columns that have one and the same value in every row."""

    step: Literal["drop-constant"] = "drop-constant"


class Clip(Asked):
    """Moves numbers outside a range to its nearest end.

    Attributes:
        column: Which column.
        min: The least; None for no bound.
        max: The greatest; None for no bound.
    """

    by_place = ("column",)
    step: Literal["clip"] = "clip"
    column: str
    min: int | float | None = None
    max: int | float | None = None


class Impute(Asked):
    """Fills in missing values.

    Attributes:
        column: Which column.
        by: Its mean, its most frequent value, or the value given.
        value: With `by="value"`, what to fill in.
    """

    by_place = ("column",)
    step: Literal["impute"] = "impute"
    column: str
    by: Literal["mean", "most-frequent", "value"] = "mean"
    value: bool | int | float | str | None = None

    @model_validator(mode="after")
    def _has_a_value(self) -> Impute:
        if (self.by == "value") != (self.value is not None):
            raise ValueError(f"a value is given with by='value', and only then; got by={self.by!r}, {self.value!r}")
        return self


class Convert(Asked):
    """Gives a column another type. A value that would not come through without loss goes with its row.

    Whole numbers, truth values and times come through exactly or not at all; among floats a value is rounded to the
    nearest. What is missing stays missing, and NaN is no value for anything but floats.

    Attributes:
        column: Which column.
        to: A number's dtype, `bool`, `text`, `category` or `timestamp`.
        errors: Whether a row with such a value is dropped, or its value goes missing.
        format: Of texts that are times, as `strptime` has it; None for ISO 8601, with or without an offset.
        unit: Of times; of numbers, what they count from 1970-01-01 UTC. None for what times have, and `us` for texts.
    """

    by_place = ("column", "to")
    step: Literal["convert"] = "convert"
    column: str
    to: Dtype | Literal["text", "category", "timestamp"]
    errors: Literal["drop", "missing"] = "drop"
    format: str | None = Field(default=None, max_length=200)
    unit: Literal["s", "ms", "us", "ns"] | None = None

    @model_validator(mode="after")
    def _is_of_times(self) -> Convert:
        if self.to != "timestamp" and (self.format is not None or self.unit is not None):
            raise ValueError(f"format= and unit= are of times; got them with to={self.to!r}; leave them out")
        if self.format is not None and ("%z" in self.format or "%Z" in self.format):
            raise ValueError(
                f"a format says a time without its zone; got {self.format!r}; leave format= out for ISO times, which "
                f"may have an offset"
            )
        return self


class DropOddSizes(Asked):
    """Drops pictures whose size differs from the one nearly all others have.

    Attributes:
        min_share: Share of the pictures that must agree on a size before the others are taken for mistakes. Below
            it, pictures are plainly of many sizes and nothing is dropped.
    """

    step: Literal["drop-odd-sizes"] = "drop-odd-sizes"
    min_share: float = Field(default=0.95, gt=0.5, le=1.0)


PictureStep = DropUnreadable | DropDuplicates | DropNearDuplicates | DropOddSizes
TableStep = (
    DropMissing
    | DropDuplicates
    | DropNearDuplicates
    | DropOutOfRange
    | KeepWhere
    | DropConstant
    | Clip
    | Impute
    | Convert
)
CleanStep = Annotated[PictureStep | TableStep, Field(discriminator="step")]


class Reject(Schema):
    """One file or row that did not come in, and why."""

    source: str
    reason: str


class CleaningStepReport(Schema):
    """What one cleaning step did.

    Attributes:
        examples: The first rejects; the whole list lies in the job's `rejects.jsonl`.
        note: What became of values or columns.
    """

    step: str
    dropped: int
    examples: tuple[Reject, ...] = ()
    note: str = ""

    @property
    def example(self) -> str:
        """The first reject and why, if there is one."""
        return f"{self.examples[0].source}: {self.examples[0].reason}" if self.examples else ""

    @property
    def outcome(self) -> str:
        """What it did, without its name."""
        dropped = f"{self.dropped:,} dropped{', e.g. ' if self.examples else ''}{self.example}"
        return f"{self.note}; {dropped}" if self.note and self.dropped else self.note or dropped

    def __str__(self) -> str:
        first = f", e.g. {self.example}" if self.examples else ""
        note = f"; {self.note}" if self.note else ""
        return f"{self.step} dropped {self.dropped:,}{first}{note}"


class CleaningReport(Schema):
    """What an ingest saw, kept and dropped."""

    found: int
    already_present: int
    kept: int
    steps: tuple[CleaningStepReport, ...]
    notes: tuple[str, ...] = ()

    @property
    def dropped(self) -> int:
        """Rows dropped by all steps together."""
        return sum(step.dropped for step in self.steps)

    @property
    def summary(self) -> str:
        """How many there were and are."""
        there = f", {self.already_present:,} of them there already" if self.already_present else ""
        nothing = f"; {self.nothing_new}" if self.nothing_new else ""
        return f"{self.found:,} found{there}, {self.kept:,} kept{nothing}"

    @property
    def nothing_new(self) -> str:
        """That nothing came of it, and why; nothing if something did."""
        if self.kept:
            return ""
        there = [f"{self.already_present:,} were there already"] if self.already_present else []
        dropped = [f"{each.step} dropped {each.dropped:,}, e.g. {each.example}" for each in self.steps if each.dropped]
        left_out = self.found - self.already_present - self.dropped
        rest = [f"{left_out:,} could not be taken"] if left_out > 0 else []
        why = "; ".join([*there, *dropped, *rest])
        return f"nothing new came in{': ' if why else ''}{why}"

    def table(self) -> list[dict[str, Any]]:
        """Of each step what it dropped, the first of it, and what became of values."""
        rows = [
            {"step": each.step, "dropped": each.dropped, "e.g.": each.example, "note": each.note} for each in self.steps
        ]
        said = {name for row in rows for name, value in row.items() if value != ""}
        return [{name: value for name, value in row.items() if name in said} for row in rows]

    def __str__(self) -> str:
        return "\n".join([self.summary, *map(str, self.steps), *self.notes])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = self.table()
        told = html.table(self.summary, list(rows[0]), [list(row.values()) for row in rows], level=4) if rows else ""
        notes = "".join(map(html.line, self.notes))
        return told + notes if rows else html.titled(self.summary, notes, level=4)
