"""ResNet (He et al. 2015, Deep Residual Learning, table 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
from flax import nnx

from mms_sdk.compute.models.conv_norm import ConvNorm
from mms_sdk.compute.models.family import Family
from mms_sdk.compute.models.layouts import Layout
from mms_sdk.compute.models.options import check_at_least, check_choice, check_picture
from mms_sdk.compute.models.weights import Source

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_EXPANSION = 4
_POOL: Any = nnx.max_pool  # Flax gives it no types


@dataclass(frozen=True, kw_only=True)
class ResNet(Family):
    """Residual blocks of batch-normalised convolutions in four stages, an average, and one linear layer.

    Depths 18 and 34 have blocks of two 3×3 convolutions; 50 and 101 of 1×1, 3×3 and 1×1, where the 3×3 one carries the
    stride, as in torchvision (the paper has it in the first).

    Attributes:
        num_classes: Scores that come out.
        depth: Layers with weights: 18, 34, 50 or 101.
        width: Channels of the stem; the stages' blocks have 1, 2, 4 and 8 times as many.
        stem: `imagenet` halves the picture twice before the first stage, by a 7×7 convolution and a 3×3 maximum; its
            windows overlap, so that its gradient is slow on a CPU. `small` is one 3×3 convolution that halves nothing,
            for pictures of some 32 pixels a side (§4.2).
        init_from: Weights to begin with: a file or folder, or `mms.models.Weights`.
    """

    num_classes: int
    depth: int = 50
    width: int = 64
    stem: Literal["imagenet", "small"] = "imagenet"
    init_from: Source | None = None

    def __post_init__(self) -> None:
        check_choice("depth", self.depth, _BLOCKS)
        check_choice("stem", self.stem, ("imagenet", "small"))
        check_at_least(1, num_classes=self.num_classes, width=self.width)

    def build(self, input_shape: tuple[int, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        """The network for pictures of shape (height, width, channels)."""
        check_picture("ResNet", input_shape)
        return _ResNet(self, input_shape[-1], rngs=rngs)

    @property
    def expansion(self) -> int:
        """Channels that leave a block, for each of its 3×3 convolution."""
        return _EXPANSION if self.depth >= 50 else 1

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """Names of torchvision's `resnet50` and the like, and of transformers' `ResNetForImageClassification`."""
        return Layout(name="torchvision", module=_torchvision), Layout(name="transformers", module=_transformers)


def _torchvision(path: str) -> str:
    match path.split("/"):
        case ["features", "stem", part]:
            return {"conv": "conv1", "norm": "bn1"}[part]
        case ["features", "stages", stage, block, "shortcut", part]:
            return f"layer{int(stage) + 1}.{block}.downsample.{0 if part == 'conv' else 1}"
        case ["features", "stages", stage, block, layer, part]:
            return (
                f"layer{int(stage) + 1}.{block}.{'conv' if part == 'conv' else 'bn'}{int(layer.removeprefix('conv'))}"
            )
    return "fc"


def _transformers(path: str) -> str:
    parts = {"conv": "convolution", "norm": "normalization"}
    match path.split("/"):
        case ["features", "stem", part]:
            return f"resnet.embedder.embedder.{parts[part]}"
        case ["features", "stages", stage, block, "shortcut", part]:
            return f"resnet.encoder.stages.{stage}.layers.{block}.shortcut.{parts[part]}"
        case ["features", "stages", stage, block, layer, part]:
            number = int(layer.removeprefix("conv")) - 1
            return f"resnet.encoder.stages.{stage}.layers.{block}.layer.{number}.{parts[part]}"
    return "classifier.1"


class _Block(nnx.Module):
    def __init__(self, inputs: int, width: int, *, stride: int, expansion: int, rngs: nnx.Rngs) -> None:
        outputs = width * expansion
        if expansion == 1:
            self.conv1 = ConvNorm(inputs, width, 3, stride=stride, rngs=rngs)
            self.conv2 = ConvNorm(width, outputs, 3, rngs=rngs)
        else:
            self.conv1 = ConvNorm(inputs, width, 1, rngs=rngs)
            self.conv2 = ConvNorm(width, width, 3, stride=stride, rngs=rngs)
            self.conv3 = ConvNorm(width, outputs, 1, rngs=rngs)
        if stride > 1 or inputs != outputs:
            self.shortcut = ConvNorm(inputs, outputs, 1, stride=stride, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv2(nnx.relu(self.conv1(x)))
        if hasattr(self, "conv3"):
            y = self.conv3(nnx.relu(y))
        return nnx.relu(y + (self.shortcut(x) if hasattr(self, "shortcut") else x))


class _Features(nnx.Module):
    def __init__(self, family: ResNet, channels: int, *, rngs: nnx.Rngs) -> None:
        self.large = family.stem == "imagenet"
        self.stem = ConvNorm(channels, family.width, 7 if self.large else 3, stride=1 + self.large, rngs=rngs)
        inputs, stages = family.width, []
        for stage, count in enumerate(_BLOCKS[family.depth]):
            blocks = []
            for block in range(count):
                stride = 2 if stage and not block else 1
                width = family.width * 2**stage
                blocks.append(_Block(inputs, width, stride=stride, expansion=family.expansion, rngs=rngs))
                inputs = width * family.expansion
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.stem(x))
        if self.large:
            x = _POOL(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage in self.stages:
            for block in stage:
                x = block(x)
        return x.mean((1, 2))


class _ResNet(nnx.Module):
    def __init__(self, family: ResNet, channels: int, *, rngs: nnx.Rngs) -> None:
        self.features = _Features(family, channels, rngs=rngs)
        self.head = nnx.Linear(family.width * 8 * family.expansion, family.num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.features(x))
