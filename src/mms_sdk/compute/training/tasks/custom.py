"""A loss of the person's own."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import CellType, CodeType
from typing import TYPE_CHECKING, Any, ClassVar

from mms_sdk.compute.training.tasks.base import Shape, Sums, WholeRows, summed
from mms_sdk.errors import InvalidRequest
from mms_sdk.storage.snapshots import OpenSnapshot

if TYPE_CHECKING:
    import jax

PerRow = Callable[[Any, Any], Any]
"""Outputs, targets → one value a row, shape (batch,)."""


@dataclass(frozen=True, kw_only=True)
class Custom(WholeRows):
    """A loss of your own: a function of outputs and targets that gives one value a row, or (values, weights).

    Attributes:
        loss: `loss(outputs, targets)` in JAX, of shape (batch,), or a pair of that and of weights (batch,).
        measured: Metrics by name, each a function like the loss.
        target: Column with the target; None for the inputs themselves.
        score: What a served model answers of the outputs; the outputs themselves if left out.
    """

    name: ClassVar[str] = "custom"
    loss: PerRow
    measured: Mapping[str, PerRow] | tuple[tuple[str, PerRow], ...] = ()
    target: str | None = "label"
    score: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "measured", tuple(dict(self.measured).items()))
        wrong = [name for name, function in self._functions if not callable(function)]
        if wrong or not callable(self.loss) or "loss" in dict(self.measured):
            raise InvalidRequest(
                f"a custom task has a function loss(outputs, targets), and one for each other metric; got loss="
                f"{self.loss!r}, measured={dict(self.measured)}"
            )

    def __repr__(self) -> str:
        # Functions by where they are, not by where they lie in memory: a run is continued in another process.
        named = {name: _named(function) for name, function in self._functions}
        score = None if self.score is None else _named(self.score)
        return f"Custom({named}, target={self.target!r}, score={score!r})"

    @property
    def _functions(self) -> tuple[tuple[str, PerRow], ...]:
        return (("loss", self.loss), *self.measured)

    @property
    def metrics(self) -> tuple[str, ...]:  # type: ignore[override]
        """The loss and what is measured besides."""
        return tuple(name for name, _ in self._functions)

    @property
    def counted(self) -> tuple[str, ...]:  # type: ignore[override]
        """The same."""
        return self.metrics

    def check(self, snapshot: OpenSnapshot) -> tuple[str, ...]:
        """The labels of the target's column, if it has some."""
        return () if self.target is None else snapshot.column(self.target).labels or ()

    def output_shape(self, input_shape: Shape, labels: tuple[str, ...]) -> None:
        """Any."""

    def pair(self, inputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The target's column, or the inputs twice where there is none."""
        return (inputs, inputs) if self.target is None else (inputs, targets)

    def sums(self, outputs: jax.Array, targets: jax.Array, weight: jax.Array) -> Sums:
        """Sums of the loss and of each metric."""
        values = {name: function(outputs, targets) for name, function in self._functions}
        if isinstance(values["loss"], tuple):
            values["loss"], own = values["loss"]
            weight = weight * _one_a_row("the weights of the loss", own, weight)
        each = tuple(_one_a_row(name, value, weight) for name, value in values.items())
        return summed(self.counted, each, weight)

    def scores(self, outputs: jax.Array) -> jax.Array:
        """What `score` makes of the outputs, float32."""
        import jax.numpy as jnp

        return (outputs if self.score is None else self.score(outputs)).astype(jnp.float32)


def _named(function: Any) -> str:
    # Where it is, and a digest of what it does: another lambda on the same line is another loss.
    if isinstance(function, partial):
        named = (f"{name}={_plain(value)}" for name, value in sorted(function.keywords.items()))
        return f"partial({', '.join([_named(function.func), *map(_plain, function.args), *named])})"
    own = inspect.unwrap(function)
    code = getattr(own, "__code__", None)
    if code is None:
        return _where(own)
    held = [cell.cell_contents for cell in own.__closure__ or () if cell != CellType()]
    does = _plain([code, own.__defaults__, list((own.__kwdefaults__ or {}).items()), held])
    return f"{_where(own)} {hashlib.sha256(does.encode()).hexdigest()[:12]}"


def _where(function: Any) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def _plain(value: Any) -> str:
    # As text that is the same in every process: without addresses, and sets in order.
    if isinstance(value, CodeType):
        return str([value.co_code.hex(), value.co_names, [_plain(constant) for constant in value.co_consts]])
    if isinstance(value, tuple | list | frozenset | set):
        told = [_plain(each) for each in value]
        return str(told if isinstance(value, tuple | list) else sorted(told))
    if isinstance(value, int | float | complex | str | bytes | None):
        return repr(value)
    return _where(value)


def _one_a_row(what: str, value: Any, weight: jax.Array) -> Any:
    if getattr(value, "shape", None) != weight.shape:
        raise InvalidRequest(
            f"{what} of a custom task has one value a row, shape {weight.shape}; got "
            f"{getattr(value, 'shape', type(value).__name__)}; take the mean over the other axes, and leave the mean "
            f"over rows to MMS, which knows which of them are padding"
        )
    return value.astype(weight.dtype)
