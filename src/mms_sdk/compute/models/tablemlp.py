"""A multi-layer perceptron over rows of tables, with embedded categories."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import jax
from flax import nnx

from mms_sdk.compute.models.columns import Columns, check_categories, check_row
from mms_sdk.compute.models.options import check_at_least, check_share, check_sizes
from mms_sdk.compute.sharding.rules import PartitionRules


@dataclass(frozen=True, kw_only=True)
class TableMLP:
    """Linear layers with ReLU and dropout between them (Gorishniy et al. 2021, §3.1), over numbers and categories.

    Takes float32 (batch, numbers + categories): standardised numbers, NaN where one is missing, and then the codes of
    the categories. Gives (batch, num_classes).

    Attributes:
        num_classes: Scores or values that come out.
        categories: Codes of each category, with 0 for what is not known.
        widths: Outputs of each hidden layer.
        embedding: Features of an embedded category.
        dropout: Share of the hidden features dropped in training.
    """

    num_classes: int
    categories: tuple[int, ...] = ()
    widths: tuple[int, ...] = (256, 256)
    embedding: int = 16
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_at_least(1, num_classes=self.num_classes, embedding=self.embedding)
        check_share(dropout=self.dropout)
        check_categories(self.categories)
        check_sizes(widths=self.widths)

    @property
    def rules(self) -> PartitionRules:
        """How parameters are divided, if no rule of the trainer says otherwise: over `fsdp` by themselves."""
        return PartitionRules()

    def build(self, input_shape: tuple[int, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        """The network for rows of shape (numbers + categories,).

        Raises:
            InvalidRequest: Rows of another shape, or shorter than their categories.
        """
        return _TableMLP(self, check_row("a TableMLP", self.categories, input_shape), rngs=rngs)


class _Features(nnx.Module):
    def __init__(self, family: TableMLP, numbers: int, *, rngs: nnx.Rngs) -> None:
        self.columns = Columns(numbers, family.categories, family.embedding, rngs=rngs)
        sizes = pairwise((numbers + len(family.categories) * family.embedding, *family.widths))
        self.layers = nnx.List([nnx.Linear(inputs, outputs, rngs=rngs) for inputs, outputs in sizes])
        self.dropout = nnx.Dropout(family.dropout, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(batch, numbers + categories) → (batch, last width)."""
        x = self.columns.flat(x)
        for layer in self.layers:
            x = self.dropout(nnx.relu(layer(x)))
        return x


class _TableMLP(nnx.Module):
    def __init__(self, family: TableMLP, numbers: int, *, rngs: nnx.Rngs) -> None:
        self.features = _Features(family, numbers, rngs=rngs)
        self.head = nnx.Linear(family.widths[-1], family.num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.features(x))
