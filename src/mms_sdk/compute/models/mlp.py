"""A multi-layer perceptron over whatever a row holds."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod

import jax
from flax import nnx

from mms_sdk.compute.models.options import check_at_least, check_sizes


@dataclass(frozen=True, kw_only=True)
class MLP:
    """Linear layers with ReLU between them, over the flattened row.

    Attributes:
        num_classes: Scores that come out.
        widths: Outputs of each hidden layer.
    """

    num_classes: int
    widths: tuple[int, ...] = (256, 256)

    def __post_init__(self) -> None:
        check_at_least(1, num_classes=self.num_classes)
        check_sizes(widths=self.widths, may_be_empty=True)

    def build(self, input_shape: tuple[int, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        """The network for rows of the given shape."""
        return _MLP(self, prod(input_shape), rngs=rngs)


class _MLP(nnx.Module):
    def __init__(self, family: MLP, inputs: int, *, rngs: nnx.Rngs) -> None:
        sizes = (inputs, *family.widths)
        self.layers = nnx.List([nnx.Linear(width, outputs, rngs=rngs) for width, outputs in pairwise(sizes)])
        self.head = nnx.Linear(sizes[-1], family.num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], prod(x.shape[1:]))  # `len` would ask an exported batch for a number it has not got
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.head(x)
