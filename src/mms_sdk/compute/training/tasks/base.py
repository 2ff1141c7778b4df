"""Tasks: what a model is trained for, as sums that stay exact under padding, sharding and accumulation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np

from mms_sdk.errors import DataError, InvalidRequest
from mms_sdk.schema.dataset import Column
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.types import Array

if TYPE_CHECKING:
    import jax

    from mms_sdk.compute.data.preprocess.pipeline import HostStep

Sums = dict[str, Any]
"""Sums over the rows of a batch, each row times its weight; under `weight` the sum of the weights. Scalars."""

Shape = tuple[int, ...]


class Task(Protocol):
    """What the loop asks of a task. A frozen dataclass of JSON values and functions.

    Attributes:
        name: On the wire and in a version's card.
        metrics: What `averages` gives; `loss` is among them.
        compares_rows: Whether a row is measured by the others of its batch, so that batches have to be mixed.
        counted: What `sums` gives besides `weight`; `loss` is among them, and its mean is what is minimised.
    """

    name: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]
    counted: ClassVar[tuple[str, ...]]
    compares_rows: ClassVar[bool]

    @property
    def target(self) -> str | None:
        """Column that says what the answer is; None where the inputs do."""

    def check(self, snapshot: OpenSnapshot) -> tuple[str, ...]:
        """Names of the classes, or of the values that come out; none where they have no names.

        Raises:
            DataError: The data does not suit the task.
        """

    def fit(self, snapshot: OpenSnapshot) -> Self:
        """The task with what it needs to know of the training rows."""

    def output_shape(self, input_shape: Shape, labels: tuple[str, ...]) -> tuple[int | None, ...] | None:
        """Shape that the model gives for one row; None in it, or instead of it, where any will do."""

    def model_shape(self, shape: Shape) -> Shape:
        """Shape of one row as the model takes it, of rows as preprocessing leaves them."""

    def pair(self, inputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What the model takes, and what it should answer, of a preprocessed batch."""

    def sums(self, outputs: jax.Array, targets: jax.Array, weight: jax.Array) -> Sums:
        """Sums of one batch.

        Args:
            outputs: float32, what the model gave.
            targets: Of the same rows.
            weight: float32, shape (batch,): 0 for padding.
        """

    def averages(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Metrics from the sums of all batches; zeros where there were none."""

    def scores(self, outputs: jax.Array) -> jax.Array:
        """What a served model answers, float32."""

    def at_serving(self, step: HostStep) -> HostStep:
        """A host step as a served model's rows go through it, which lack what the task is to say."""


class WholeRows:
    """The usual case of a task: the model takes rows as they are, and metrics are means over rows."""

    metrics: ClassVar[tuple[str, ...]]
    counted: ClassVar[tuple[str, ...]]
    compares_rows: ClassVar[bool] = False

    def fit(self, snapshot: OpenSnapshot) -> Self:
        """The task itself: it has nothing to learn from the rows."""
        return self

    def model_shape(self, shape: Shape) -> Shape:
        """The same shape."""
        return shape

    def pair(self, inputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Both as they are."""
        return inputs, targets

    def at_serving(self, step: HostStep) -> HostStep:
        """The same step."""
        return step

    def averages(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Means over rows."""
        weight = sums["weight"] or 1.0
        return {name: sums[name] / weight for name in self.metrics}

    def scores(self, outputs: jax.Array) -> jax.Array:
        """The outputs, float32."""
        import jax.numpy as jnp

        return outputs.astype(jnp.float32)


def summed(names: tuple[str, ...], values: tuple[Any, ...], weight: jax.Array) -> Sums:
    """Weighted sums of values that each row has one of.

    Args:
        names: One a value.
        values: float, each of shape (batch,).
        weight: float32, shape (batch,).
    """
    import jax.numpy as jnp

    # Summed together: one reduction, and one exchange between devices, instead of one each.
    each = jnp.stack([*values, jnp.ones_like(values[0])])
    return dict(zip((*names, "weight"), (each * weight[None]).sum(1), strict=True))


def per_row(values: jax.Array) -> jax.Array:
    """The mean over all axes but the first."""
    return values.reshape(values.shape[0], -1).mean(1) if values.ndim > 1 else values


def column_of(snapshot: OpenSnapshot, name: str, task: str) -> Column:
    """The target's column, which has numbers of one shape in every row.

    Raises:
        DataError: It has rows of varying length, or rows without a value among those of `train`.
    """
    column = snapshot.column(name)
    if column.varies:
        raise DataError(
            f"the target of {task} has one shape in every row; {name!r} of {snapshot.ref} is {column.form}; name "
            f"another column as target"
        )
    if column.nullable:
        rows = snapshot.split_rows("train")
        if missing := int((~snapshot.has_value(name, rows)).sum()):
            raise DataError(
                f"every row that is trained on has its answer; {missing} of {len(rows)} rows of {snapshot.ref}/train "
                f"have none in {name!r}; leave them out with dataset.clean(mms.drop_missing({name!r}))"
            )
    return column


def train_values(snapshot: OpenSnapshot, name: str) -> Array:
    """A column's values in the training rows, float64, not masked."""
    found = snapshot.gather(name, snapshot.split_rows("train"))
    return np.asarray(np.ma.getdata(found), np.float64)


def refuse_share(name: str, value: float, *, below: bool = True) -> None:
    """Refuses what is not a share of one.

    Raises:
        InvalidRequest: It is not in [0, 1), or in (0, 1) where `below` is False.
    """
    if not (0 <= value < 1 if below else 0 < value < 1):
        raise InvalidRequest(f"{name} is a share in {'[0, 1)' if below else '(0, 1)'}; got {name}={value}")
