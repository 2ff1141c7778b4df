"""ConvNeXt (Liu et al. 2022, A ConvNet for the 2020s, §2 and appendix A)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
from flax import nnx

from mms_sdk.compute.models.conv_norm import drop_branch, rising
from mms_sdk.compute.models.family import ATTENTION, CONVOLUTIONS, Family, Partition
from mms_sdk.compute.models.layouts import Layout
from mms_sdk.compute.models.options import check_at_least, check_choice, check_picture, check_share, check_sizes
from mms_sdk.compute.models.weights import Source
from mms_sdk.errors import InvalidRequest

_VARIANTS = {
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
}
_PATCH = 4


@dataclass(frozen=True, kw_only=True)
class ConvNeXt(Family):
    """Stages of depthwise 7×7 convolutions with layer normalisation and two pointwise layers; nothing per batch.

    Attributes:
        num_classes: Scores that come out.
        variant: `tiny`, `small` or `base`.
        depths: Blocks of each stage; the variant's if left out.
        widths: Channels of each stage; the variant's if left out.
        drop_branches: Share of rows for which the last residual branch is dropped in training; fewer before it.
        branch_scale: Where the learnt scales of the branches begin.
        init_from: Weights to begin with: a file or folder, or `mms.models.Weights`.
    """

    num_classes: int
    variant: str = "tiny"
    depths: tuple[int, ...] | None = None
    widths: tuple[int, ...] | None = None
    drop_branches: float = 0.1
    branch_scale: float = 1e-6
    init_from: Source | None = None

    partition: ClassVar[Partition] = (*CONVOLUTIONS, *ATTENTION)  # its pointwise layers are those of a transformer

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, _VARIANTS)
        check_at_least(1, num_classes=self.num_classes)
        check_share(drop_branches=self.drop_branches)
        depths, widths = self.plan
        check_sizes(depths=depths, widths=widths)
        if len(depths) != len(widths):
            raise InvalidRequest(f"a ConvNeXt has as many depths as widths; got depths={depths} and widths={widths}")

    def build(self, input_shape: tuple[int, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        """The network for pictures of shape (height, width, channels), large enough for each stage to halve them."""
        check_picture("ConvNeXt", input_shape, least=_PATCH * 2 ** (len(self.plan[0]) - 1))
        return _ConvNeXt(self, input_shape[-1], rngs=rngs)

    @property
    def plan(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Blocks and channels of each stage."""
        depths, widths = _VARIANTS[self.variant]
        return (depths if self.depths is None else self.depths, widths if self.widths is None else self.widths)

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """Names of the authors' release, and of transformers' `ConvNextForImageClassification`."""
        return Layout(name="the authors", module=_authors), Layout(name="transformers", module=_transformers)


def _authors(path: str) -> str:
    match path.split("/"):
        case ["features", "stem", part]:
            return f"downsample_layers.0.{0 if part == 'conv' else 1}"
        case ["features", "stages", stage, "halve", part]:
            return f"downsample_layers.{stage}.{0 if part == 'norm' else 1}"
        case ["features", "stages", stage, "blocks", block, part]:
            names = {"depthwise": "dwconv", "expand": "pwconv1", "project": "pwconv2"}
            return f"stages.{stage}.{block}.{names.get(part, part)}"
        case ["features", "norm"]:
            return "norm"
    return "head"


def _transformers(path: str) -> str:
    match path.split("/"):
        case ["features", "stem", part]:
            return f"convnext.embeddings.{'patch_embeddings' if part == 'conv' else 'layernorm'}"
        case ["features", "stages", stage, "halve", part]:
            return f"convnext.encoder.stages.{stage}.downsampling_layer.{0 if part == 'norm' else 1}"
        case ["features", "stages", stage, "blocks", block, part]:
            names = {"depthwise": "dwconv", "norm": "layernorm", "expand": "pwconv1", "project": "pwconv2"}
            part = names.get(part, "layer_scale_parameter")
            return f"convnext.encoder.stages.{stage}.layers.{block}.{part}"
        case ["features", "norm"]:
            return "convnext.layernorm"
    return "classifier"


class _Stem(nnx.Module):
    def __init__(self, channels: int, width: int, *, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(channels, width, (_PATCH, _PATCH), strides=_PATCH, padding="VALID", rngs=rngs)
        self.norm = nnx.LayerNorm(width, use_fast_variance=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y: jax.Array = self.norm(self.conv(x))
        return y


class _Halve(nnx.Module):
    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(inputs, use_fast_variance=False, rngs=rngs)
        self.conv = nnx.Conv(inputs, outputs, (2, 2), strides=2, padding="VALID", rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(self.norm(x))


class _Block(nnx.Module):
    def __init__(self, width: int, *, drop: float, scale: float, rngs: nnx.Rngs) -> None:
        self.depthwise = nnx.Conv(width, width, (7, 7), padding=3, feature_group_count=width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, use_fast_variance=False, rngs=rngs)
        self.expand = nnx.Linear(width, 4 * width, rngs=rngs)
        self.project = nnx.Linear(4 * width, width, rngs=rngs)
        self.gamma = nnx.Param(jax.numpy.full((width,), scale))
        self.drop = drop_branch(drop, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.expand(self.norm(self.depthwise(x)))
        y = self.project(nnx.gelu(y, approximate=False))
        return x + self.drop(y * self.gamma[None, None, None])


class _Stage(nnx.Module):
    def __init__(
        self, inputs: int, outputs: int, drops: list[float], *, first: bool, scale: float, rngs: nnx.Rngs
    ) -> None:
        if not first:
            self.halve = _Halve(inputs, outputs, rngs=rngs)
        self.blocks = nnx.List([_Block(outputs, drop=drop, scale=scale, rngs=rngs) for drop in drops])

    def __call__(self, x: jax.Array) -> jax.Array:
        if hasattr(self, "halve"):
            x = self.halve(x)
        for block in self.blocks:
            x = block(x)
        return x


class _Features(nnx.Module):
    def __init__(self, family: ConvNeXt, channels: int, *, rngs: nnx.Rngs) -> None:
        depths, widths = family.plan
        drops = iter(rising(family.drop_branches, sum(depths)))
        self.stem = _Stem(channels, widths[0], rngs=rngs)
        stages = []
        for number, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            mine, inputs = [next(drops) for _ in range(depth)], widths[max(0, number - 1)]
            stages.append(_Stage(inputs, width, mine, first=not number, scale=family.branch_scale, rngs=rngs))
        self.stages = nnx.List(stages)
        self.norm = nnx.LayerNorm(widths[-1], use_fast_variance=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        y: jax.Array = self.norm(x.mean((1, 2)))
        return y


class _ConvNeXt(nnx.Module):
    def __init__(self, family: ConvNeXt, channels: int, *, rngs: nnx.Rngs) -> None:
        self.features = _Features(family, channels, rngs=rngs)
        self.head = nnx.Linear(family.plan[1][-1], family.num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.features(x))
