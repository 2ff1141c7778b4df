"""A small convolutional network for pictures of any size."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax
from flax import nnx

from mms_sdk.compute.data.preprocess.image import Normalize
from mms_sdk.compute.models.family import Family
from mms_sdk.compute.models.group_norm import GroupNorm
from mms_sdk.compute.models.options import check_at_least, check_picture, check_share, check_sizes
from mms_sdk.compute.models.weights import Source


@dataclass(frozen=True, kw_only=True)
class ConvNet(Family):
    """Stages of two 3×3 convolutions and a 2×2 maximum, then an average over the picture and one linear layer.

    Attributes:
        num_classes: Scores that come out.
        widths: Channels of each stage; multiples of 8.
        dropout: Share of the averaged features dropped in training.
        init_from: Weights to begin with: a file or folder, or `mms.models.Weights`.
    """

    num_classes: int
    widths: tuple[int, ...] = (32, 64)
    dropout: float = 0.2
    init_from: Source | None = None

    def __post_init__(self) -> None:
        check_at_least(1, num_classes=self.num_classes)
        check_share(dropout=self.dropout)
        check_sizes(widths=self.widths, multiple=8)

    def build(self, input_shape: tuple[int, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        """The network for pictures of shape (height, width, channels)."""
        check_picture("ConvNet", input_shape)
        return _ConvNet(self, input_shape[-1], rngs=rngs)

    @property
    def preprocess(self) -> tuple[Any, ...]:
        """Pictures are standardised, in the size they have: no weights were published."""
        return (Normalize(),)


class _Stage(nnx.Module):
    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs) -> None:
        # Normalised over groups, not over the batch: padding rows change nothing, and neither does the batch size.
        self.conv1 = nnx.Conv(inputs, outputs, (3, 3), use_bias=False, rngs=rngs)
        self.norm1 = GroupNorm(outputs)
        self.conv2 = nnx.Conv(outputs, outputs, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = GroupNorm(outputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm1(self.conv1(x)))
        return nnx.relu(halve(self.norm2(self.conv2(x))))  # the same in this order, on a quarter of the values


class _Features(nnx.Module):
    def __init__(self, family: ConvNet, channels: int, *, rngs: nnx.Rngs) -> None:
        sizes = (channels, *family.widths)
        self.stages = nnx.List([_Stage(inputs, outputs, rngs=rngs) for inputs, outputs in pairwise(sizes)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for stage in self.stages:
            x = stage(x)
        return x.mean((1, 2))


class _ConvNet(nnx.Module):
    def __init__(self, family: ConvNet, channels: int, *, rngs: nnx.Rngs) -> None:
        self.features = _Features(family, channels, rngs=rngs)
        self.dropout = nnx.Dropout(family.dropout, rngs=rngs)
        self.head = nnx.Linear(family.widths[-1], family.num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.dropout(self.features(x)))


def halve(x: jax.Array) -> jax.Array:
    """The maximum over 2×2 windows of (batch, height, width, channels); an odd last row or column is dropped.

    Written with a reshape: the gradient of `nnx.max_pool` scatters, which takes twice as long on a CPU.
    """
    batch, height, width, channels = x.shape
    if height < 2 or width < 2:
        return x
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))
