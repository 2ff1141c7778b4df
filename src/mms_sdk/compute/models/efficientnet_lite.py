"""EfficientNet-Lite (Liu 2020): EfficientNet (Tan and Le 2019) without squeeze-and-excitation, and with ReLU6."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import jax
from flax import nnx

from mms_sdk.compute.data.preprocess.image import Normalize, Resize
from mms_sdk.compute.models.conv_norm import ConvNorm, drop_branch
from mms_sdk.compute.models.family import Family
from mms_sdk.compute.models.layouts import Layout
from mms_sdk.compute.models.options import check_at_least, check_choice, check_picture, check_share
from mms_sdk.compute.models.weights import Source

_VARIANTS = {
    # times the channels, times the blocks, pixels a side
    "lite0": (1.0, 1.0, 224),
    "lite1": (1.0, 1.1, 240),
    "lite2": (1.1, 1.2, 260),
    "lite3": (1.2, 1.4, 280),
    "lite4": (1.4, 1.8, 300),
}
_STAGES = (
    # blocks, kernel, stride, times the channels inside, channels out (Tan and Le 2019, table 1)
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM, _TOP = 32, 1280  # the same in all variants
_EPSILON = 1e-3


@dataclass(frozen=True, kw_only=True)
class EfficientNetLite(Family):
    """Inverted bottlenecks with depthwise convolutions, an average, and one linear layer.

    Attributes:
        num_classes: Scores that come out.
        variant: `lite0` (3.4 million parameters in the backbone) to `lite4` (11.7 million).
        dropout: Share of the averaged features dropped in training.
        drop_branches: Share of rows for which the last residual branch is dropped in training; fewer before it.
        init_from: Weights to begin with: a file or folder, or `mms.models.Weights`.
    """

    num_classes: int
    variant: str = "lite0"
    dropout: float = 0.2
    drop_branches: float = 0.2
    init_from: Source | None = None

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, _VARIANTS)
        check_at_least(1, num_classes=self.num_classes)
        check_share(dropout=self.dropout, drop_branches=self.drop_branches)

    def build(self, input_shape: tuple[int, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        """The network for pictures of shape (height, width, channels)."""
        check_picture("EfficientNetLite", input_shape)
        return _EfficientNetLite(self, input_shape[-1], rngs=rngs)

    @property
    def size(self) -> int:
        """Pixels a side of the pictures it was published for."""
        return _VARIANTS[self.variant][2]

    @property
    def preprocess(self) -> tuple[Any, ...]:
        """Steps that bring RGB pictures to what published weights were trained on: (value - 127) / 128."""
        return Resize(self.size), Normalize((127 / 255,) * 3, (128 / 255,) * 3)

    @property
    def plan(self) -> tuple[tuple[int, int, int, int, int], ...]:
        """(channels in, channels out, kernel, stride, times the channels inside) of each block."""
        wider, deeper, _ = _VARIANTS[self.variant]
        inputs, plan = _STEM, []
        for number, (count, side, stride, times, outputs) in enumerate(_STAGES):
            outputs = _rounded(outputs * wider)
            ends = number in (0, len(_STAGES) - 1)  # not made deeper
            for block in range(count if ends else ceil(count * deeper)):
                plan.append((inputs, outputs, side, 1 if block else stride, times))
                inputs = outputs
        return tuple(plan)

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """The PyTorch package `efficientnet_lite_pytorch`."""
        return (Layout(name="efficientnet_lite_pytorch", module=self._torch),)

    def _torch(self, path: str) -> str:
        match path.split("/"):
            case ["features", "stem", part]:
                return {"conv": "_conv_stem", "norm": "_bn0"}[part]
            case ["features", "top", part]:
                return {"conv": "_conv_head", "norm": "_bn1"}[part]
            case ["features", "blocks", block, layer, "conv"]:
                return f"_blocks.{block}._{layer}_conv"
            case ["features", "blocks", block, layer, "norm"]:
                return f"_blocks.{block}._bn{('expand', 'depthwise', 'project').index(layer)}"
        return "_fc"


def _rounded(channels: float) -> int:
    # To a multiple of 8, and not to less than nine tenths (Tan and Le's code rounds so).
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _conv_norm(inputs: int, outputs: int, side: int, *, stride: int = 1, groups: int = 1, rngs: nnx.Rngs) -> ConvNorm:
    return ConvNorm(inputs, outputs, side, stride=stride, groups=groups, padding="SAME", epsilon=_EPSILON, rngs=rngs)


class _Block(nnx.Module):
    def __init__(
        self, inputs: int, outputs: int, side: int, stride: int, times: int, *, drop: float, rngs: nnx.Rngs
    ) -> None:
        inside = inputs * times
        if times > 1:
            self.expand = _conv_norm(inputs, inside, 1, rngs=rngs)
        self.depthwise = _conv_norm(inside, inside, side, stride=stride, groups=inside, rngs=rngs)
        self.project = _conv_norm(inside, outputs, 1, rngs=rngs)
        self.residual = stride == 1 and inputs == outputs
        self.drop = drop_branch(drop, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu6(self.expand(x)) if hasattr(self, "expand") else x
        y = self.project(nnx.relu6(self.depthwise(y)))
        return x + self.drop(y) if self.residual else y


class _Features(nnx.Module):
    def __init__(self, family: EfficientNetLite, channels: int, *, rngs: nnx.Rngs) -> None:
        plan = family.plan
        self.stem = _conv_norm(channels, _STEM, 3, stride=2, rngs=rngs)
        self.blocks = nnx.List(
            [
                _Block(*block, drop=family.drop_branches * number / len(plan), rngs=rngs)
                for number, block in enumerate(plan)
            ]
        )
        self.top = _conv_norm(plan[-1][1], _TOP, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu6(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return nnx.relu6(self.top(x)).mean((1, 2))


class _EfficientNetLite(nnx.Module):
    def __init__(self, family: EfficientNetLite, channels: int, *, rngs: nnx.Rngs) -> None:
        self.features = _Features(family, channels, rngs=rngs)
        self.dropout = nnx.Dropout(family.dropout, rngs=rngs)
        self.head = nnx.Linear(_TOP, family.num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.dropout(self.features(x)))
