"""VGG (Simonyan and Zisserman 2014, Very Deep Convolutional Networks, table 1)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any, ClassVar

import jax
from flax import nnx

from mms_sdk.compute.models.conv_norm import ConvNorm
from mms_sdk.compute.models.convnet import halve
from mms_sdk.compute.models.family import CONVOLUTIONS, Family, Partition
from mms_sdk.compute.models.layouts import KERAS, Layout, Tensors
from mms_sdk.compute.models.options import check_at_least, check_choice, check_picture, check_share, check_sizes
from mms_sdk.compute.models.weights import Source

_CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_SHRINKS = 32


@dataclass(frozen=True, kw_only=True)
class VGG(Family):
    """Five stages of 3×3 convolutions and a 2×2 maximum, then linear layers over all that is left of the picture.

    Attributes:
        num_classes: Scores that come out.
        depth: Layers with weights: 11, 13, 16 or 19.
        batch_norm: Whether each convolution is followed by batch normalisation, as in torchvision's `vgg16_bn`; the
            published network has none.
        width: Channels of the first stage; those after have 2, 4, 8 and 8 times as many.
        hidden: Outputs of the linear layers before the last. Imported ones fit pictures of 224×224 only.
        dropout: Share of each hidden layer dropped in training.
        init_from: Weights to begin with: a file or folder, or `mms.models.Weights`.
    """

    num_classes: int
    depth: int = 16
    batch_norm: bool = False
    width: int = 64
    hidden: tuple[int, ...] = (4096, 4096)
    dropout: float = 0.5
    init_from: Source | None = None

    classifier: ClassVar[str] = "head/out"
    partition: ClassVar[Partition] = (*CONVOLUTIONS, (r"^head/hidden/.*/kernel$", ("fsdp", "tensor")))

    def __post_init__(self) -> None:
        check_choice("depth", self.depth, _CONVOLUTIONS)
        check_at_least(1, num_classes=self.num_classes, width=self.width)
        check_sizes(hidden=self.hidden, may_be_empty=True)
        check_share(dropout=self.dropout)

    def build(self, input_shape: tuple[int, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        """The network for pictures of shape (height, width, channels), each side at least 32."""
        check_picture("VGG", input_shape, least=_SHRINKS)
        return _VGG(self, input_shape, rngs=rngs)

    @property
    def stages(self) -> tuple[tuple[int, int], ...]:
        """(convolutions, channels) of each stage."""
        widths = (self.width * times for times in (1, 2, 4, 8, 8))
        return tuple(zip(_CONVOLUTIONS[self.depth], widths, strict=True))

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """Names of torchvision's `vgg16` and the like, and of Keras's `VGG16` and `VGG19`."""
        torchvision = Layout(name="torchvision", module=self._torchvision, prepare=self._channels_last)
        return (torchvision, Layout(name="Keras", module=self._keras, convention=KERAS))

    def _number(self, stage: str, layer: str) -> int:
        return sum(_CONVOLUTIONS[self.depth][: int(stage)]) + int(layer)

    def _torchvision(self, path: str) -> str:
        # There, convolutions, normalisations, ReLUs and maxima are counted alike.
        match path.split("/"):
            case ["features", "stages", stage, layer, part]:
                before = self._number(stage, layer) * (3 if self.batch_norm else 2) + int(stage)
                return f"features.{before + (part == 'norm')}"
            case ["head", "hidden", layer]:
                return f"classifier.{3 * int(layer)}"
        return f"classifier.{3 * len(self.hidden)}"

    def _keras(self, path: str) -> str:
        match path.split("/"):
            case ["features", "stages", stage, layer, _]:
                return "layers/" + _counted("conv2d", self._number(stage, layer))
            case ["head", "hidden", layer]:
                return "layers/" + _counted("dense", int(layer))
        return "layers/" + _counted("dense", len(self.hidden))

    def _channels_last(self, tensors: Tensors) -> Tensors:
        # PyTorch flattens (channels, height, width), we (height, width, channels).
        name, channels = "classifier.0.weight", self.stages[-1][1]
        if name not in tensors or tensors[name].shape[-1] != channels * 49:
            return tensors
        first = tensors[name].reshape(-1, channels, 7, 7).transpose(0, 2, 3, 1)
        return {**tensors, name: first.reshape(first.shape[0], -1)}


class _Convolution(nnx.Module):
    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(inputs, outputs, (3, 3), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(x)


class _Features(nnx.Module):
    def __init__(self, family: VGG, channels: int, *, rngs: nnx.Rngs) -> None:
        def stage(inputs: int, count: int, width: int) -> nnx.List[Any]:
            layer: Any = (lambda i, o: ConvNorm(i, o, 3, bias=True, rngs=rngs)) if family.batch_norm else _plain(rngs)
            return nnx.List([layer(i, o) for i, o in pairwise((inputs, *[width] * count))])

        inputs = (channels, *(width for _, width in family.stages))
        self.stages = nnx.List([stage(i, *plan) for i, plan in zip(inputs, family.stages, strict=False)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for stage in self.stages:
            for layer in stage:
                x = nnx.relu(layer(x))
            x = halve(x)
        return x


class _Head(nnx.Module):
    def __init__(self, family: VGG, inputs: int, *, rngs: nnx.Rngs) -> None:
        sizes = (inputs, *family.hidden)
        self.hidden = nnx.List([nnx.Linear(i, o, rngs=rngs) for i, o in pairwise(sizes)])
        self.dropout = nnx.Dropout(family.dropout, rngs=rngs)
        self.out = nnx.Linear(sizes[-1], family.num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.hidden:
            x = self.dropout(nnx.relu(layer(x)))
        return self.out(x)


class _VGG(nnx.Module):
    def __init__(self, family: VGG, shape: tuple[int, ...], *, rngs: nnx.Rngs) -> None:
        left = (shape[0] // _SHRINKS, shape[1] // _SHRINKS, family.stages[-1][1])
        self.features = _Features(family, shape[-1], rngs=rngs)
        self.head = _Head(family, prod(left), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.features(x)
        return self.head(x.reshape(x.shape[0], prod(x.shape[1:])))


def _plain(rngs: nnx.Rngs) -> Any:
    return lambda inputs, outputs: _Convolution(inputs, outputs, rngs=rngs)


def _counted(name: str, number: int) -> str:
    return f"{name}_{number}" if number else name
