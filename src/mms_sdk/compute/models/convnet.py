"""A small convolutional network for pictures of any size."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import jax
from flax import nnx

from mms_sdk.compute.models.group_norm import GroupNorm
from mms_sdk.errors import InvalidRequest


@dataclass(frozen=True, kw_only=True)
class ConvNet:
    """Stages of two 3×3 convolutions and a 2×2 maximum, then an average over the picture and one linear layer.

    Attributes:
        num_classes: Scores that come out.
        widths: Channels of each stage; multiples of 8.
        dropout: Share of the averaged features dropped in training.
    """

    num_classes: int
    widths: tuple[int, ...] = (32, 64)
    dropout: float = 0.2

    def __post_init__(self) -> None:
        if not self.widths or any(width < 8 or width % 8 for width in self.widths):
            raise InvalidRequest(f"the widths of a ConvNet are multiples of 8; got widths={self.widths}")

    def build(self, input_shape: tuple[int, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        """The network for pictures of shape (height, width, channels)."""
        return _ConvNet(self, input_shape[-1], rngs=rngs)


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


class _ConvNet(nnx.Module):
    def __init__(self, family: ConvNet, channels: int, *, rngs: nnx.Rngs) -> None:
        sizes = (channels, *family.widths)
        self.stages = nnx.List([_Stage(inputs, outputs, rngs=rngs) for inputs, outputs in pairwise(sizes)])
        self.dropout = nnx.Dropout(family.dropout, rngs=rngs)
        self.head = nnx.Linear(sizes[-1], family.num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for stage in self.stages:
            x = stage(x)
        return self.head(self.dropout(x.mean((1, 2))))


def halve(x: jax.Array) -> jax.Array:
    """The maximum over 2×2 windows of (batch, height, width, channels); an odd last row or column is dropped.

    Written with a reshape: the gradient of `nnx.max_pool` scatters, which takes twice as long on a CPU.
    """
    batch, height, width, channels = x.shape
    if height < 2 or width < 2:
        return x
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))
