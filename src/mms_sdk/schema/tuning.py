"""Studies: what is searched, how, and what each trial was given, as they are said and kept."""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.base import Asked, Schema
from mms_sdk.schema.findings import reasons

Value = bool | int | float | str | None
Params = dict[str, Value]
Sampler = Literal["tpe", "random", "grid"]
Direction = Literal["minimize", "maximize"]
_EXACT = 2**53  # whole numbers beyond are not exact in JSON
_LOWER = re.compile(r"(^|[/_])(loss|error|mae|mse|rmse|mape|perplexity)$")
_Checked = TypeVar("_Checked", bound="Uniform | LogUniform | Integer")


def _below(asked: _Checked) -> _Checked:
    if not (math.isfinite(asked.low) and math.isfinite(asked.high) and asked.low < asked.high):
        raise ValueError(f"a range is of finite numbers, low below high; got low={asked.low}, high={asked.high}")
    return asked


class _Range(Asked):
    by_place = ("low", "high")

    def __repr_args__(self) -> Any:
        return [(name, value) for name, value in super().__repr_args__() if name != "kind"]


class Uniform(_Range):
    """Any number of a range, each as likely.

    Attributes:
        low: Least.
        high: Greatest.
    """

    kind: Literal["uniform"] = "uniform"
    low: float
    high: float

    _ordered = model_validator(mode="after")(_below)


class LogUniform(_Range):
    """Any number of a range above 0, each order of magnitude as likely: for learning rates.

    Attributes:
        low: Least, above 0.
        high: Greatest.
    """

    kind: Literal["log-uniform"] = "log-uniform"
    low: float = Field(gt=0)
    high: float

    _ordered = model_validator(mode="after")(_below)


class Integer(_Range):
    """A whole number of a range, both ends included.

    Attributes:
        low: Least.
        high: Greatest.
        log: Each order of magnitude is as likely, instead of each number.
    """

    kind: Literal["integer"] = "integer"
    low: int = Field(ge=-_EXACT)
    high: int = Field(le=_EXACT)
    log: bool = False

    _ordered = model_validator(mode="after")(_below)

    @model_validator(mode="after")
    def _above_zero(self) -> Integer:
        if self.log and self.low < 1:
            raise ValueError(f"orders of magnitude begin at 1; got low={self.low} with log=True")
        return self


class Choice(Asked):
    """One of some values, which have no order.

    Attributes:
        values: Texts, numbers, truths or None; each once.
    """

    by_place = ("values",)
    kind: Literal["choice"] = "choice"
    values: tuple[Value, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _different(self) -> Choice:
        for at, value in enumerate(self.values):
            if value in self.values[:at]:  # 1, 1.0 and True are one value to whoever looks for them
                raise ValueError(f"a choice is between different values; got {value!r} twice in {self.values}")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"a choice is between values that JSON has; got {value!r}")
        return self

    def __repr_args__(self) -> Any:
        return [("values", self.values)]


Range = Annotated[Uniform | LogUniform | Integer | Choice, Field(discriminator="kind")]
Space = dict[str, Range]


class ASHA(Asked):
    """Ends trials early: a trial goes on from a rung only with the best of those that came so far.

    The rungs stand at `min_epochs`, and at each `reduction` times as many epochs as the one before. Asynchronous
    successive halving, Li et al., A System for Massively Parallel Hyperparameter Tuning (2020), Algorithm 2.

    Attributes:
        min_epochs: No trial ends before.
        reduction: One of so many goes on.
    """

    kind: Literal["asha"] = "asha"
    min_epochs: int = Field(default=1, ge=1)
    reduction: int = Field(default=3, ge=2)


class Hyperband(Asked):
    """Successive halving in several brackets, which begin to end trials at different epochs.

    For metrics of which nobody knows how early they tell. Li et al., Hyperband (2018), Algorithm 1.

    Attributes:
        max_epochs: What a trial trains that is not ended.
        min_epochs: No trial ends before.
        reduction: One of so many goes on.
    """

    by_place = ("max_epochs",)
    kind: Literal["hyperband"] = "hyperband"
    max_epochs: int = Field(ge=1)
    min_epochs: int = Field(default=1, ge=1)
    reduction: int = Field(default=3, ge=2)

    @model_validator(mode="after")
    def _ordered(self) -> Hyperband:
        if self.max_epochs <= self.min_epochs:
            raise ValueError(
                f"a bracket has epochs between min_epochs and max_epochs; got {self.min_epochs} and {self.max_epochs}"
            )
        return self


Pruner = Annotated[ASHA | Hyperband, Field(discriminator="kind")]


class Code(Schema):
    """The script of a study, which travels as its text.

    Attributes:
        name: Of the file that it is kept in, beside the study.
        sha256: Of its bytes.
        origin: Where it was taken from: a path, a module, or what it was called in a notebook.
        folder: Where the script finds what lies beside it; empty for none.
        package: For relative imports of a module; empty for none.
    """

    name: str
    sha256: str
    origin: str
    folder: str = ""
    package: str = ""


class StudySpec(Schema):
    """What was asked of a study.

    Attributes:
        metric: What trials are compared by.
        direction: Which way is better.
        space: What is searched.
        trials: How many, those that end early or fail included.
        sampler: How the next values are found.
        pruner: Which trials end early; None for none.
        parallel: Trials at once.
        seed: Of the sampler.
        max_failures: So many trials in a row that fail end the study.
        environment: Names of variables that trials are given beside the usual ones.
        code: The script.
        working_folder: Where trials run.
    """

    metric: str
    direction: Direction
    space: Space
    trials: int
    sampler: Sampler
    pruner: Pruner | None
    parallel: int
    seed: int
    max_failures: int
    environment: tuple[str, ...] = ()
    code: Code
    working_folder: str


class TrialSpec(Schema):
    """What one attempt at a trial was given.

    Attributes:
        number: Of the trial in its study, from 0.
        attempt: From 1; a later one has the same values.
        params: The values.
        metric: What is asked for.
    """

    number: int
    attempt: int
    params: Params
    metric: str


def space_of(space: Mapping[str, Any]) -> Space:
    """A search space as it was asked for, checked.

    Raises:
        InvalidRequest: It is empty, a name is no identifier, or a value is no range.
    """
    if not isinstance(space, Mapping) or not space:
        raise InvalidRequest(
            f"a search space names at least one value, e.g. space={{'lr': mms.LogUniform(1e-5, 1e-2)}}; got {space!r}"
        )
    for name, value in space.items():
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
            raise InvalidRequest(
                f"a name in a search space is an identifier of Python, since scripts take it as an argument; got "
                f"{name!r}"
            )
        if not isinstance(value, Uniform | LogUniform | Integer | Choice):
            raise InvalidRequest(
                f"a search space has mms.Uniform, LogUniform, Integer or Choice; got {name}={value!r}; for a value "
                f"that stays the same write it into the script, or Choice([{value!r}])"
            )
    return dict(space)


def better_way(metric: str) -> Direction:
    """Which way a metric is better, by its name: losses and errors lower, everything else higher."""
    return "minimize" if _LOWER.search(metric) else "maximize"


def study_of(spec: Mapping[str, Any]) -> StudySpec:
    """What the catalog keeps of a study.

    Raises:
        InvalidRequest: It comes from a newer MMS.
    """
    try:
        return TypeAdapter(StudySpec).validate_python(spec)
    except ValidationError as error:
        raise InvalidRequest(f"the study was recorded by another MMS: {reasons(error.errors())}") from error
