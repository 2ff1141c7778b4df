"""A convolutional autoencoder: what comes in comes out, through a code of fewer values."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx

from mms_sdk.compute.models.family import Family
from mms_sdk.compute.models.group_norm import GroupNorm
from mms_sdk.compute.models.options import check_at_least, check_picture, check_sizes
from mms_sdk.compute.models.weights import Source


@dataclass(frozen=True, kw_only=True)
class Autoencoder(Family):
    """An encoder that halves the picture with each stage, a code, and a decoder that doubles it again.

    The decoder repeats pixels and convolves, for transposed convolutions leave checkerboards (Odena et al. 2016,
    Deconvolution and Checkerboard Artifacts). The encoder lies under `features/`, the decoder under `head/`. Its output
    has the shape of its input, and no bounds; train it with a loss over pictures, such as the mean squared error.

    Attributes:
        widths: Channels of each stage; multiples of 8. Sides of a picture divide by 2 once a stage.
        code: Channels of the code.
        init_from: Weights to begin with: a file or folder, or `mms.models.Weights`.
    """

    widths: tuple[int, ...] = (32, 64, 128)
    code: int = 16
    init_from: Source | None = None

    def __post_init__(self) -> None:
        check_at_least(1, code=self.code)
        check_sizes(widths=self.widths, multiple=8)

    def build(self, input_shape: tuple[int, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        """The network for pictures of shape (height, width, channels)."""
        check_picture("Autoencoder", input_shape, multiple=2 ** len(self.widths))
        return _Autoencoder(self, input_shape[-1], rngs=rngs)


class _Stage(nnx.Module):
    def __init__(self, inputs: int, outputs: int, *, stride: int, rngs: nnx.Rngs) -> None:
        # Normalised over groups, not over the batch: padding rows change nothing.
        self.conv = nnx.Conv(inputs, outputs, (3, 3), strides=stride, padding=1, use_bias=False, rngs=rngs)
        self.norm = GroupNorm(outputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.relu(self.norm(self.conv(x)))


class _Encoder(nnx.Module):
    def __init__(self, family: Autoencoder, channels: int, *, rngs: nnx.Rngs) -> None:
        sizes = (channels, *family.widths)
        self.stages = nnx.List([_Stage(i, o, stride=2, rngs=rngs) for i, o in pairwise(sizes)])
        self.code = nnx.Conv(sizes[-1], family.code, (1, 1), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for stage in self.stages:
            x = stage(x)
        return self.code(x)


class _Decoder(nnx.Module):
    def __init__(self, family: Autoencoder, channels: int, *, rngs: nnx.Rngs) -> None:
        sizes = (family.code, *family.widths[::-1])
        self.stages = nnx.List([_Stage(i, o, stride=1, rngs=rngs) for i, o in pairwise(sizes)])
        self.out = nnx.Conv(sizes[-1], channels, (3, 3), padding=1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for stage in self.stages:
            x = stage(_doubled(x))
        return self.out(x)


class _Autoencoder(nnx.Module):
    def __init__(self, family: Autoencoder, channels: int, *, rngs: nnx.Rngs) -> None:
        self.features = _Encoder(family, channels, rngs=rngs)
        self.head = _Decoder(family, channels, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(batch, height, width, channels) → the same."""
        return self.head(self.encode(x))

    def encode(self, x: jax.Array) -> jax.Array:
        """(batch, height, width, channels) → (batch, height / 2^stages, width / 2^stages, code)."""
        return self.features(x)


def _doubled(x: jax.Array) -> jax.Array:
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
