"""A temporal convolutional network: forecasts from causal, dilated convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod

import jax
import jax.numpy as jnp
from flax import nnx

from mms_sdk.compute.models.options import check_at_least, check_shape, check_share, check_sizes
from mms_sdk.compute.models.revin import AsItIs, ReversibleNorm
from mms_sdk.compute.sharding.rules import PartitionRules


@dataclass(frozen=True, kw_only=True)
class TCN:
    """Residual blocks of two causal convolutions whose dilation doubles from block to block (Bai et al. 2018, §3).

    Takes float32 (batch, context, channels) and gives what follows, (batch, horizon, channels), or (batch, horizon,
    channels, quantiles). The forecast is one linear layer on the features of the last step, which see
    `receptive_field` steps.

    Attributes:
        horizon: Steps that are forecast.
        widths: Channels of each block; block i has dilation 2^i.
        kernel: Steps that a convolution looks at.
        quantiles: Quantiles of each value, in the order of the loss, which may cross; 0 for one value.
        revin: Whether each row is normalised by its own mean and spread, which the forecast gets back.
        dropout: Share of the channels dropped in training, each for the whole row.
    """

    horizon: int
    widths: tuple[int, ...] = (64, 64, 64, 64, 64, 64)
    kernel: int = 3
    quantiles: int = 0
    revin: bool = True
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_at_least(1, horizon=self.horizon)
        check_at_least(2, kernel=self.kernel)
        check_at_least(0, quantiles=self.quantiles)
        check_share(dropout=self.dropout)
        check_sizes(widths=self.widths)

    @property
    def receptive_field(self) -> int:
        """Steps of the context that the forecast depends on, the newest: 1 + 2 (kernel - 1) (2^blocks - 1)."""
        return 1 + 2 * (self.kernel - 1) * ((1 << len(self.widths)) - 1)

    @property
    def rules(self) -> PartitionRules:
        """How parameters are divided, if no rule of the trainer says otherwise: over `fsdp` by themselves."""
        return PartitionRules()

    def build(self, input_shape: tuple[int, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        """The network for rows of shape (context, channels).

        Raises:
            InvalidRequest: Rows of another shape.
        """
        check_shape("a TCN", ("context", "channels"), input_shape)
        return _TCN(self, input_shape[-1], rngs=rngs)


class CausalConv(nnx.Module):
    """A convolution over the steps up to each, with normalised weights (Salimans and Kingma 2016, §2).

    Args:
        inputs: Channels in.
        outputs: Channels out.
        kernel: Steps looked at.
        dilation: Steps between two of those.
        rngs: Random streams.
    """

    def __init__(self, inputs: int, outputs: int, *, kernel: int, dilation: int, rngs: nnx.Rngs) -> None:
        # He et al. 2015, eq. 10: what the ReLU behind it halves is made up for.
        values = nnx.initializers.he_normal()(rngs.params(), (kernel, inputs, outputs))
        self.kernel = nnx.Param(values)
        self.scale = nnx.Param(_lengths(values)[0, 0])
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.dilation, self.padding = dilation, (kernel - 1) * dilation

    def __call__(self, x: jax.Array) -> jax.Array:
        """(batch, steps, inputs) → (batch, steps, outputs)."""
        kernel = self.kernel[...]
        kernel = kernel * (self.scale[...][None, None] / _lengths(kernel))
        out = jax.lax.conv_general_dilated(
            x,
            kernel.astype(x.dtype),
            window_strides=(1,),
            padding=[(self.padding, 0)],
            rhs_dilation=(self.dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        return out + self.bias[...][None, None]


class _Block(nnx.Module):
    def __init__(self, inputs: int, outputs: int, *, family: TCN, dilation: int, rngs: nnx.Rngs) -> None:
        self.conv1 = CausalConv(inputs, outputs, kernel=family.kernel, dilation=dilation, rngs=rngs)
        self.conv2 = CausalConv(outputs, outputs, kernel=family.kernel, dilation=dilation, rngs=rngs)
        self.shortcut = nnx.Linear(inputs, outputs, rngs=rngs) if inputs != outputs else _same
        self.dropout = nnx.Dropout(family.dropout, broadcast_dims=(1,), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        inner = self.dropout(nnx.relu(self.conv1(x)))
        return nnx.relu(self.dropout(nnx.relu(self.conv2(inner))) + self.shortcut(x))


class _Features(nnx.Module):
    def __init__(self, family: TCN, channels: int, *, rngs: nnx.Rngs) -> None:
        self.norm = ReversibleNorm(channels) if family.revin else AsItIs()
        sizes = enumerate(pairwise((channels, *family.widths)))
        self.blocks = nnx.List(
            [_Block(inputs, outputs, family=family, dilation=2**i, rngs=rngs) for i, (inputs, outputs) in sizes]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """(batch, context, channels), normalised → (batch, context, last width)."""
        for block in self.blocks:
            x = block(x)
        return x


class _TCN(nnx.Module):
    def __init__(self, family: TCN, channels: int, *, rngs: nnx.Rngs) -> None:
        self.features = _Features(family, channels, rngs=rngs)
        self.out = (family.horizon, channels, family.quantiles or 1)
        self.head = nnx.Linear(family.widths[-1], prod(self.out), rngs=rngs)
        self.point = not family.quantiles

    def __call__(self, x: jax.Array) -> jax.Array:
        x, level = self.features.norm(x)
        last = self.features(x)[:, -1]
        forecast = self.features.norm.undo(self.head(last).reshape(x.shape[0], *self.out), level)
        return forecast[..., 0] if self.point else forecast


def _lengths(kernel: jax.Array) -> jax.Array:
    return jnp.sqrt((kernel**2).sum((0, 1), keepdims=True))


def _same(x: jax.Array) -> jax.Array:
    return x
