"""A small convolutional network along one dimension: log-mel frames, or series."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import jax
from flax import nnx

from mms_sdk.compute.models.group_norm import GroupNorm
from mms_sdk.compute.models.options import check_at_least, check_odd, check_shape, check_share, check_sizes
from mms_sdk.compute.sharding.rules import PartitionRules


@dataclass(frozen=True, kw_only=True)
class ConvNet1D:
    """Stages of two convolutions and the maximum of each two neighbours, then an average and one linear layer.

    Takes float32 (batch, frames, channels), for instance log-mel frames, and gives scores (batch, num_classes).

    Attributes:
        num_classes: Scores that come out.
        widths: Channels of each stage; multiples of 8.
        kernel: Frames that a convolution looks at; odd.
        dropout: Share of the averaged features dropped in training.
    """

    num_classes: int
    widths: tuple[int, ...] = (64, 128, 128)
    kernel: int = 5
    dropout: float = 0.2

    def __post_init__(self) -> None:
        check_at_least(1, num_classes=self.num_classes, kernel=self.kernel)
        check_odd(kernel=self.kernel)
        check_share(dropout=self.dropout)
        check_sizes(widths=self.widths, multiple=8)

    @property
    def rules(self) -> PartitionRules:
        """How parameters are divided, if no rule of the trainer says otherwise: over `fsdp` by themselves."""
        return PartitionRules()

    def build(self, input_shape: tuple[int, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        """The network for rows of shape (frames, channels).

        Raises:
            InvalidRequest: Rows of another shape.
        """
        check_shape("a ConvNet1D", ("frames", "channels"), input_shape)
        return _ConvNet1D(self, input_shape[-1], rngs=rngs)


class _Stage(nnx.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, *, rngs: nnx.Rngs) -> None:
        # Normalised over groups, not over the batch: padding rows change nothing, and neither does the batch size.
        self.conv1 = nnx.Conv(inputs, outputs, (kernel,), use_bias=False, rngs=rngs)
        self.norm1 = GroupNorm(outputs)
        self.conv2 = nnx.Conv(outputs, outputs, (kernel,), use_bias=False, rngs=rngs)
        self.norm2 = GroupNorm(outputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm1(self.conv1(x)))
        return nnx.relu(halve_frames(self.norm2(self.conv2(x))))  # the same in this order, on half of the values


class _Features(nnx.Module):
    def __init__(self, family: ConvNet1D, channels: int, *, rngs: nnx.Rngs) -> None:
        sizes = pairwise((channels, *family.widths))
        self.stages = nnx.List([_Stage(inputs, outputs, family.kernel, rngs=rngs) for inputs, outputs in sizes])

    def __call__(self, x: jax.Array) -> jax.Array:
        """(batch, frames, channels) → (batch, last width)."""
        for stage in self.stages:
            x = stage(x)
        return x.mean(1)


class _ConvNet1D(nnx.Module):
    def __init__(self, family: ConvNet1D, channels: int, *, rngs: nnx.Rngs) -> None:
        self.features = _Features(family, channels, rngs=rngs)
        self.dropout = nnx.Dropout(family.dropout, rngs=rngs)
        self.head = nnx.Linear(family.widths[-1], family.num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.dropout(self.features(x)))


def halve_frames(x: jax.Array) -> jax.Array:
    """The maximum of each two neighbouring frames of (batch, frames, channels); an odd last one is dropped."""
    batch, frames, channels = x.shape
    if frames < 2:
        return x
    return x[:, : frames // 2 * 2].reshape(batch, frames // 2, 2, channels).max(2)
