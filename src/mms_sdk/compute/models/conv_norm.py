"""A convolution with its batch normalisation, and the dropping of whole branches."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from flax import nnx

from mms_sdk.compute.models.batch_norm import BatchNorm


class ConvNorm(nnx.Module):
    """A convolution, then batch normalisation (Ioffe and Szegedy 2015).

    The running averages are state, not parameters. In training all rows of a batch count, and so do those that pad
    the last batch of an epoch: with weight 0 they change no loss, but they move the averages a little. The variance
    kept is that of the batch; PyTorch's is larger by n / (n - 1).

    Args:
        inputs: Channels in.
        outputs: Channels out.
        side: Of the square kernel.
        stride: Of the kernel.
        groups: Channels are convolved in so many groups.
        padding: None for half a kernel on each side, as PyTorch has it; `SAME` is TensorFlow's, which pads the far
            side more when the stride is 2.
        bias: Whether the convolution adds one; the normalisation takes it away again.
        epsilon: Added to the variance.
        rngs: Of the initial values.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        side: int,
        *,
        stride: int = 1,
        groups: int = 1,
        padding: str | None = None,
        bias: bool = False,
        epsilon: float = 1e-5,
        rngs: nnx.Rngs,
    ) -> None:
        pads: str | Sequence[tuple[int, int]] = padding or [(side // 2, side // 2)] * 2
        self.conv = nnx.Conv(
            inputs,
            outputs,
            (side, side),
            strides=stride,
            padding=pads,
            feature_group_count=groups,
            use_bias=bias,
            rngs=rngs,
        )
        self.norm = BatchNorm(outputs, epsilon=epsilon, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(batch, height, width, inputs) → (batch, height / stride, width / stride, outputs)."""
        y: jax.Array = self.norm(self.conv(x))
        return y


def drop_branch(rate: float, dimensions: int, *, rngs: nnx.Rngs) -> nnx.Dropout:
    """Drops a residual branch whole, row by row, in training (Huang et al. 2016, stochastic depth).

    Args:
        rate: Share of rows for which it is dropped.
        dimensions: Of the branch's output.
        rngs: Of the choice.
    """
    return nnx.Dropout(rate, broadcast_dims=tuple(range(1, dimensions)), rngs=rngs)


def rising(rate: float, count: int) -> list[float]:
    """Rates of so many branches: from 0 at the first to `rate` at the last, in even steps."""
    return [rate * index / max(1, count - 1) for index in range(count)]
