"""How the versions of each task are measured: what is known of rows, what is kept of answers, what is made of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np

from mms_sdk.compute.data.preprocess.pipeline import Pipeline, from_json
from mms_sdk.compute.evaluation.classes import Classes
from mms_sdk.compute.evaluation.forecasts import Forecasts, kept_of
from mms_sdk.compute.evaluation.intervals import Tell
from mms_sdk.compute.evaluation.known import Known, every_row, known_classes, known_rows
from mms_sdk.compute.evaluation.labels import Labels
from mms_sdk.compute.evaluation.neighbours import neighbours
from mms_sdk.compute.evaluation.numbers import Numbers
from mms_sdk.compute.evaluation.reconstructions import Reconstructions, errors_of
from mms_sdk.compute.evaluation.sample import Answers
from mms_sdk.compute.evaluation.tokens import Tokens, sums_of
from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.model import ModelCard
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.types import Array, Rows


class Measure(Protocol):
    """What the evaluation of a version asks of its task."""

    @property
    def ahead(self) -> int:
        """Steps of a series that are asked for behind those that the version sees."""

    @property
    def alike(self) -> Hashable:
        """What two versions have in common whose metrics can be compared."""

    def known(self, snapshot: OpenSnapshot, rows: Rows) -> Known:
        """The rows that answers can be compared with.

        Raises:
            InvalidRequest: The target is no such column.
            ColumnNotFound: There is no target.
            DataError: There are no rows to compare with.
        """

    def kept(self, rows: Array, scores: Array) -> Array:
        """What is kept of a batch, one value a row or more: of prepared rows, and of what was said of them."""

    def sample(self, kept: Array, targets: Array, tell: Tell) -> Answers:
        """What is measured, from what was kept of all batches."""

    def notes(self) -> Sequence[str]:
        """What to know of the numbers before they are believed."""


@dataclass(frozen=True)
class Scored:
    """Scores are kept as they are, and compared with a column: classes, several classes at once, or numbers.

    Args:
        card: The version's.
        labels: Names of its classes, in the order of codes that is wanted.
    """

    ahead: ClassVar[int] = 0
    alike: ClassVar[None] = None
    card: ModelCard
    labels: Sequence[str]

    def known(self, snapshot: OpenSnapshot, rows: Rows) -> Known:
        """Rows with a target."""
        return known_rows(self.card, snapshot, rows, self.labels)

    def kept(self, rows: Array, scores: Array) -> Array:
        """The scores."""
        return scores

    def sample(self, kept: Array, targets: Array, tell: Tell) -> Answers:
        """Numbers, or classes in the order that is wanted."""
        if self.card.task == "regression":
            return self._numbers(kept.reshape(len(kept), -1).astype(np.float64), targets)
        ordered = kept[:, [self.card.labels.index(label) for label in self.labels]]
        if self.card.task == "classification":
            return Classes(ordered, targets)
        return Labels(ordered, targets, self.card.options["threshold"])

    def _numbers(self, said: Array, targets: Array) -> Numbers:
        if said.shape != targets.shape:
            raise InvalidRequest(
                f"the version says {said.shape[1]} numbers a row, and {self.card.target!r} has {targets.shape[1]} "
                f"here; evaluate it on data with a target like the one it was trained on"
            )
        return Numbers(said, targets)

    def notes(self) -> Sequence[str]:
        """None."""
        return ()


@dataclass(frozen=True)
class Vectors:
    """Vectors are kept, and compared with one another."""

    ahead: ClassVar[int] = 0
    alike: ClassVar[None] = None
    card: ModelCard
    labels: Sequence[str]

    def known(self, snapshot: OpenSnapshot, rows: Rows) -> Known:
        """Rows with a class, whether the version has seen that one or not."""
        return known_classes(str(self.card.target), snapshot, rows)

    def kept(self, rows: Array, scores: Array) -> Array:
        """The vectors."""
        return scores

    def sample(self, kept: Array, targets: Array, tell: Tell) -> Answers:
        """What each row finds among all others."""
        names, codes = np.unique(targets, return_inverse=True)
        return neighbours(kept, codes.reshape(-1), tuple(names.tolist()), tell)

    def notes(self) -> Sequence[str]:
        """None."""
        return ()


class _OfInputs:
    # What is compared is in the rows themselves, as preprocessing leaves them.

    card: ModelCard

    def known(self, snapshot: OpenSnapshot, rows: Rows) -> Known:
        """All of them."""
        return every_row(snapshot, rows)

    def notes(self) -> Sequence[str]:
        """What numbers are measured in."""
        steps = [str(step["step"]) for step in self.card.device]
        told = f"errors are in what preprocessing leaves of the values, by {', '.join(steps)}"
        return (told,) if steps else ()

    @cached_property
    def _device(self) -> Pipeline:
        return Pipeline(device=tuple(from_json(step) for step in self.card.device))

    def _preprocessed(self, rows: Array) -> Array:
        import jax.numpy as jnp

        return np.asarray(self._device.on_batch(jnp.asarray(rows)))


@dataclass(frozen=True)
class Steps(_OfInputs):
    """Of a forecast errors are kept, step by step."""

    card: ModelCard
    labels: Sequence[str]

    @property
    def ahead(self) -> int:
        """The horizon."""
        return int(self.card.options["horizon"])

    @property
    def alike(self) -> Hashable:
        """The horizon, and what the values are measured in."""
        return self.ahead, repr(self.card.device)

    @property
    def _levels(self) -> tuple[float, ...]:
        return tuple(self.card.options["quantiles"])

    def kept(self, rows: Array, scores: Array) -> Array:
        """Means over channels."""
        whole = self._preprocessed(rows)
        whole = whole.reshape(*whole.shape[:2], -1)
        history, targets = whole[:, : -self.ahead], whole[:, -self.ahead :]
        return kept_of(history, targets, scores.reshape(*targets.shape, len(self._levels)), self._levels)

    def sample(self, kept: Array, targets: Array, tell: Tell) -> Answers:
        """Forecasts."""
        return Forecasts(kept, self._levels)


@dataclass(frozen=True)
class Text(_OfInputs):
    """Of texts sums over tokens are kept."""

    ahead: ClassVar[int] = 0
    card: ModelCard
    labels: Sequence[str]

    @property
    def alike(self) -> Hashable:
        """How texts become tokens."""
        return repr(self.card.host)

    @property
    def _first_byte(self) -> int | None:
        steps = [from_json(step) for step in self.card.host]
        return getattr(steps[-1], "first_byte", None) if steps else None

    def kept(self, rows: Array, scores: Array) -> Array:
        """Sums of losses, right tokens and tokens."""
        return sums_of(
            self._preprocessed(rows), scores, pad_id=int(self.card.options["pad_id"]), first_byte=self._first_byte
        )

    def sample(self, kept: Array, targets: Array, tell: Tell) -> Answers:
        """Tokens."""
        return Tokens(kept, of_bytes=self._first_byte is not None)

    def notes(self) -> Sequence[str]:
        """None: a token is a token."""
        return ()


@dataclass(frozen=True)
class Copies(_OfInputs):
    """Of what is to be the input again errors are kept."""

    ahead: ClassVar[int] = 0
    card: ModelCard
    labels: Sequence[str]

    @property
    def alike(self) -> Hashable:
        """What the model sees of a row."""
        return repr((self.card.host, self.card.device))

    def kept(self, rows: Array, scores: Array) -> Array:
        """Means over the values of a row."""
        return errors_of(self._preprocessed(rows), scores)

    def sample(self, kept: Array, targets: Array, tell: Tell) -> Answers:
        """Reconstructions."""
        return Reconstructions(kept)


_MEASURES: dict[str, Callable[[ModelCard, Sequence[str]], Measure]] = {
    "classification": Scored,
    "multi-label": Scored,
    "regression": Scored,
    "forecasting": Steps,
    "embedding": Vectors,
    "language-modelling": Text,
    "reconstruction": Copies,
}


def measure_of(card: ModelCard, labels: Sequence[str]) -> Measure:
    """How a version is measured.

    Args:
        card: The version's.
        labels: Names of its classes, in the order of codes that is wanted.

    Raises:
        InvalidRequest: What is right is known to its author's code only.
    """
    if card.task not in _MEASURES:
        raise InvalidRequest(
            f"evaluated are versions trained for {', '.join(_MEASURES)}; this one was trained for {card.task}, whose "
            f"loss is code that a version does not carry; measure it in Python, from what ws.predict writes"
        )
    return _MEASURES[card.task](card, labels)
