"""Preprocessing as an ordered list of small steps.

Host steps turn one stored row into an array of fixed shape, in NumPy, before the batch is made. Device steps turn a
batch into another, in JAX, inside the compiled program: they are differentiated, sharded and exported with the model.
The same steps run in training and in serving; steps that are random do nothing outside training. What a row is before
the first step depends on its kind; `mms_sdk.compute.data.kinds.rows` tells.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np

from mms_sdk.errors import Damaged, InvalidRequest
from mms_sdk.types import Array

if TYPE_CHECKING:
    import jax


@runtime_checkable
class HostStep(Protocol):
    """Works on one row, in NumPy. A frozen dataclass of JSON values.

    A name that begins with a kind and a point, such as `text.bytes`, is a step for rows of that kind. A class attribute
    `dtype` says what comes out, where that is not what rows of the kind are on the device.
    """

    name: ClassVar[str]

    def shape(self, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Shape of a row after the step; None if that depends on the row."""

    def on_row(self, row: Any) -> Any:
        """The row after the step.

        Raises:
            InvalidInput: The row is none that the step takes.
        """


@runtime_checkable
class RowsStep(HostStep, Protocol):
    """A host step that works on many rows at once, for the same result as one by one."""

    def on_rows(self, rows: Any) -> Any:
        """The rows after the step."""


@runtime_checkable
class FittedHostStep(HostStep, Protocol):
    """A host step that has to know the training rows."""

    def fit(self, batches: Iterable[Any]) -> HostStep:
        """The step with what it needs to know of the training rows.

        Args:
            batches: The training rows as they reach this step, some at a time. A step that knows enough does not touch
                them.
        """


@runtime_checkable
class DeviceStep(Protocol):
    """Works on a batch, in JAX, under `jit`. A frozen dataclass of JSON values."""

    name: ClassVar[str]

    def fit(self, batches: Iterable[Array]) -> DeviceStep:
        """The step with what it needs to know of the training rows.

        Args:
            batches: float32 arrays of shape (rows, *row shape): the training rows as they reach this step, once. A
                step that needs nothing does not touch them.
        """

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of a row after the step."""

    def on_batch(self, batch: jax.Array, key: jax.Array | None) -> jax.Array:
        """The batch after the step.

        Args:
            batch: float32, or int32 where rows are ids, shape (batch, *row shape).
            key: A PRNG key in training; None otherwise, when random steps return the batch as it is.
        """


_KINDS: dict[str, type[Any]] = {}
_Step = TypeVar("_Step", bound=type[Any])


def register(kind: _Step) -> _Step:
    """Makes a step's class known by its name, so that it can be read back from JSON."""
    _KINDS[kind.name] = kind
    return kind


def to_json(step: HostStep | DeviceStep) -> dict[str, Any]:
    """A step as JSON: its name and its fields."""
    return {"step": step.name, **asdict(step)}  # type: ignore[call-overload]


def from_json(told: dict[str, Any]) -> Any:
    """A step from JSON.

    Raises:
        Damaged: There is no such step, or its fields are not its own.
    """
    from mms_sdk.compute.data.preprocess import audio, image, series, table, text  # noqa: F401  (register their steps)

    fields = {key: _frozen(value) for key, value in told.items() if key != "step"}
    try:
        return _KINDS[told["step"]](**fields)
    except (KeyError, TypeError) as error:
        raise Damaged(f"a preprocessing step is one of {sorted(_KINDS)} with its own fields; got {told}") from error


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


@dataclass(frozen=True)
class Pipeline:
    """Host steps, then device steps.

    Attributes:
        host: Before the batch is made.
        device: Inside the compiled program.
    """

    host: tuple[HostStep, ...] = ()
    device: tuple[DeviceStep, ...] = ()

    @classmethod
    def of(cls, steps: Sequence[HostStep | DeviceStep]) -> Pipeline:
        """Sorts steps into the two parts.

        Raises:
            InvalidRequest: A host step stands behind a device step.
        """
        host: list[HostStep] = []
        device: list[DeviceStep] = []
        for step in steps:
            if isinstance(step, type) or not isinstance(step, HostStep | DeviceStep):  # a class: parentheses forgotten
                raise InvalidRequest(f"a preprocessing step is e.g. mms.image.Resize(64); got {step!r}")
            if isinstance(step, DeviceStep):
                device.append(step)
            elif device:
                raise InvalidRequest(
                    f"host steps come before device steps; {step.name} stands behind {device[-1].name}; move it forward"
                )
            else:
                host.append(step)
        return cls(tuple(host), tuple(device))

    def host_shape(self, shape: tuple[int, ...] | None) -> tuple[int, ...]:
        """Shape of a row when it reaches the device.

        Raises:
            InvalidRequest: Rows still vary in shape.
        """
        for step in self.host:
            shape = step.shape(shape)
        if shape is None:
            raise InvalidRequest(
                "rows of one batch have one shape; these pictures differ in size; begin preprocess with "
                "mms.image.Resize(size), or end the host steps of other rows with one that gives them a shape"
            )
        return shape

    def device_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of a row as the model takes it."""
        for step in self.device:
            shape = step.shape(shape)
        return shape

    def on_row(self, row: Any) -> Any:
        """A row after the host part."""
        for step in self.host:
            row = step.on_row(row)
        return row

    def on_rows(self, rows: Any) -> Any:
        """Rows after the host part: a sequence of what `on_row` gives, an array if the last step makes one."""
        for step in self.host:
            rows = step.on_rows(rows) if isinstance(step, RowsStep) else in_threads(step.on_row, rows)
        return rows

    @property
    def whole(self) -> bool:
        """Whether its host part works on many rows at once rather than on each."""
        return all(isinstance(step, RowsStep) for step in self.host)

    def fit_host(self, batches: Callable[[], Iterable[Any]]) -> Pipeline:
        """The pipeline with the host steps fitted that have something to learn.

        Args:
            batches: Gives the training rows before the host part, some at a time; called for each such step.
        """
        fitted: list[HostStep] = []
        for step in self.host:
            if isinstance(step, FittedHostStep):
                before = Pipeline(tuple(fitted))
                step = step.fit(before.on_rows(rows) for rows in batches())
            fitted.append(step)
        return Pipeline(tuple(fitted), self.device)

    def on_batch(self, batch: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """A batch after the device part.

        Args:
            batch: Shape (batch, *host shape). Pixels, which are uint8, become float32 in [0, 1] first; ids, which are
                int32, stay what they are; floats become float32.
            key: PRNG key in training, None otherwise.
        """
        import jax

        batch = to_unit(batch)
        keys = [None] * len(self.device) if key is None else list(jax.random.split(key, max(1, len(self.device))))
        for step, own in zip(self.device, keys, strict=False):
            batch = step.on_batch(batch, own)
        return batch

    def fit(self, batches: Iterable[Array]) -> Pipeline:
        """The pipeline with every step fitted on the training rows, which are read at most once.

        Args:
            batches: Training rows after the host part, shape (rows, *host shape).
        """
        fitted: list[DeviceStep] = []
        for step in self.device:
            before = Pipeline((), tuple(fitted))
            fitted.append(step.fit(_through(before, batches)))
        return Pipeline(self.host, tuple(fitted))


def _through(pipeline: Pipeline, batches: Iterable[Any]) -> Iterator[Array]:
    return (np.asarray(pipeline.on_batch(batch)) for batch in batches)


def in_threads(work: Callable[[Any], Any], rows: Iterable[Any]) -> list[Any]:
    """What some work makes of each row, in order, by as many threads as there are processors."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(work, rows))


def to_unit(batch: Any) -> Any:
    """Pixels (uint8) as float32 in [0, 1]; ids (int32) as they are; all else as float32. NumPy and JAX arrays."""
    if batch.dtype == np.int32:
        return batch
    scale = np.float32(1 / 255) if batch.dtype == np.uint8 else np.float32(1)
    return batch.astype(np.float32) * scale


def device_dtype(host: np.dtype[Any]) -> np.dtype[Any]:
    """What rows of a dtype are as the first device step takes them: see `to_unit`."""
    return host if host == np.int32 else np.dtype(np.float32)
