"""Vision Transformer (Dosovitskiy et al. 2020, An Image is Worth 16×16 Words, §3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mms_sdk.compute.data.preprocess.image import Normalize, Resize
from mms_sdk.compute.models.attention import check_heads
from mms_sdk.compute.models.conv_norm import drop_branch, rising
from mms_sdk.compute.models.family import ATTENTION, Family, Partition
from mms_sdk.compute.models.layouts import Layout, Tensors
from mms_sdk.compute.models.options import check_at_least, check_choice, check_picture, check_share
from mms_sdk.compute.models.weights import Source
from mms_sdk.types import Array

VARIANTS = {
    # width, blocks, heads
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
}


@dataclass(frozen=True, kw_only=True)
class ViT(Family):
    """Patches as tokens, blocks of self-attention, and one linear layer over the class token or the patches' mean.

    Attributes:
        num_classes: Scores that come out.
        variant: `tiny`, `small` or `base`.
        width: Of a token; the variant's if left out.
        depth: Blocks; the variant's if left out.
        heads: Of each attention; the variant's if left out.
        patch: Pixels a side of a patch.
        pooling: `cls` takes the class token, `mean` the average over the patches; the class token is there in both, so
            that the same weights fit.
        dropout: Share dropped in training of the tokens with their positions and of what each block adds.
        drop_branches: Share of rows for which the last residual branch is dropped in training; fewer before it.
        epsilon: Added to the variance in layer normalisation; transformers' default is 1e-12.
        init_from: Weights to begin with: a file or folder, or `mms.models.Weights`. Positions learnt at another size
            are interpolated (§3.2).
    """

    num_classes: int
    variant: str = "base"
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    patch: int = 16
    pooling: Literal["cls", "mean"] = "cls"
    dropout: float = 0.0
    drop_branches: float = 0.0
    epsilon: float = 1e-6
    init_from: Source | None = None

    partition: ClassVar[Partition] = ATTENTION

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, VARIANTS)
        check_choice("pooling", self.pooling, ("cls", "mean"))
        width, depth, heads = self.plan
        check_at_least(1, num_classes=self.num_classes, patch=self.patch, width=width, depth=depth, heads=heads)
        check_share(dropout=self.dropout, drop_branches=self.drop_branches)
        check_heads(width, heads, heads)

    def build(self, input_shape: tuple[int, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        """The network for pictures of shape (height, width, channels), sides in multiples of the patch."""
        check_picture("ViT", input_shape, least=self.patch, multiple=self.patch)
        return _ViT(self, input_shape, rngs=rngs)

    @property
    def plan(self) -> tuple[int, int, int]:
        """Width, blocks and heads."""
        return plan_of(self)

    @property
    def preprocess(self) -> tuple[Any, ...]:
        """Steps that bring RGB pictures to what published weights were trained on: values from -1 to 1."""
        return Resize(self.size), Normalize((0.5,) * 3, (0.5,) * 3)

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """Names in files of transformers' `ViTForImageClassification`, of its modules since 5, and of timm."""
        return _TRANSFORMERS, _TRANSFORMERS_5, _TIMM

    def adapted(self, path: str, value: Array, shape: tuple[int, ...]) -> Array | None:
        """Positions interpolated to another number of patches, where both grids are square."""
        if path != "features/position" or value.ndim != 3 or value.shape[::2] != shape[::2]:
            return None
        sides = [isqrt(count - 1) for count in (value.shape[1], shape[1])]
        if any(side**2 + 1 != count for side, count in zip(sides, (value.shape[1], shape[1]), strict=True)):
            return None
        grid = value[:, 1:].reshape(1, sides[0], sides[0], -1)
        resized = jax.image.resize(grid, (1, sides[1], sides[1], shape[2]), "cubic", antialias=False)
        return np.concatenate([value[:, :1], np.asarray(resized).reshape(1, -1, shape[2])], 1)


def plan_of(family: Any) -> tuple[int, int, int]:
    """Width, blocks and heads: a family's own options, or those of its variant."""
    given = (family.width, family.depth, family.heads)
    width, depth, heads = (
        its if own is None else own for own, its in zip(given, VARIANTS[family.variant], strict=True)
    )
    return width, depth, heads


def _layout(name: str, block: str, inside: dict[str, str], outside: dict[str, str], **options: Any) -> Layout:
    """A layout in which block n is called `block` with n in it, and its layers as `inside` says."""

    def module(path: str) -> str:
        match path.split("/"):
            case ["features", "blocks", number, *part]:
                return f"{block.format(number)}.{inside[part[-1]]}"
        return outside[path]

    return Layout(name=name, module=module, **options)


_TRANSFORMERS_OUTSIDE = {
    "features/patch": "vit.embeddings.patch_embeddings.projection",
    "features/cls": "vit.embeddings.cls_token",
    "features/position": "vit.embeddings.position_embeddings",
    "features/norm": "vit.layernorm",
    "head": "classifier",
}
_TRANSFORMERS = _layout(
    "transformers",
    "vit.encoder.layer.{}",
    {
        "query": "attention.attention.query",
        "key": "attention.attention.key",
        "value": "attention.attention.value",
        "out": "attention.output.dense",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "expand": "intermediate.dense",
        "project": "output.dense",
    },
    _TRANSFORMERS_OUTSIDE,
)
_TRANSFORMERS_5 = _layout(
    "transformers 5",
    "vit.layers.{}",
    {
        "query": "attention.q_proj",
        "key": "attention.k_proj",
        "value": "attention.v_proj",
        "out": "attention.o_proj",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "expand": "mlp.fc1",
        "project": "mlp.fc2",
    },
    _TRANSFORMERS_OUTSIDE,
)


def _taken_apart(tensors: Tensors) -> Tensors:
    # There, queries, keys and values come from one layer, one below the other.
    apart: Tensors = {}
    for name, value in tensors.items():
        before, fused, leaf = name.partition("attn.qkv.")
        if fused and len(value) % 3 == 0:
            parts = zip(("query", "key", "value"), np.split(value, 3), strict=True)
            apart |= {f"{before}attn.{part}.{leaf}": third for part, third in parts}
        else:
            apart[name] = value
    return apart


_TIMM = _layout(
    "timm",
    "blocks.{}",
    {
        "query": "attn.query",
        "key": "attn.key",
        "value": "attn.value",
        "out": "attn.proj",
        "norm1": "norm1",
        "norm2": "norm2",
        "expand": "mlp.fc1",
        "project": "mlp.fc2",
    },
    {
        "features/patch": "patch_embed.proj",
        "features/cls": "cls_token",
        "features/position": "pos_embed",
        "features/norm": "norm",
        "head": "head",
    },
    prepare=_taken_apart,
)


class _Attention(nnx.Module):
    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs) -> None:
        self.query = nnx.Linear(width, width, rngs=rngs)
        self.key = nnx.Linear(width, width, rngs=rngs)
        self.value = nnx.Linear(width, width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)
        self.heads = heads

    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*x.shape[:-1], self.heads, x.shape[-1] // self.heads)
        query, key, value = (layer(x).reshape(shape) for layer in (self.query, self.key, self.value))
        return self.out(jax.nn.dot_product_attention(query, key, value).reshape(x.shape))


class _Block(nnx.Module):
    def __init__(self, width: int, heads: int, *, dropout: float, drop: float, epsilon: float, rngs: nnx.Rngs) -> None:
        self.norm1 = nnx.LayerNorm(width, epsilon=epsilon, use_fast_variance=False, rngs=rngs)
        self.attention = _Attention(width, heads, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, epsilon=epsilon, use_fast_variance=False, rngs=rngs)
        self.expand = nnx.Linear(width, 4 * width, rngs=rngs)
        self.project = nnx.Linear(4 * width, width, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.drop = drop_branch(drop, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.drop(self.dropout(self.attention(self.norm1(x))))
        y = self.project(nnx.gelu(self.expand(self.norm2(x)), approximate=False))
        return x + self.drop(self.dropout(y))


class Encoder(nnx.Module):
    """A class token and positions in front of pre-normalised transformer blocks.

    Args:
        tokens: Those that come in.
        width: Of a token.
        depth: Blocks.
        heads: Of each attention.
        dropout: Share dropped in training.
        drop_branches: Share of rows for which the last branch is dropped in training.
        epsilon: Of the normalisations.
        rngs: Of initial values and of what is dropped.
    """

    def __init__(
        self,
        tokens: int,
        width: int,
        depth: int,
        heads: int,
        *,
        dropout: float,
        drop_branches: float,
        epsilon: float,
        rngs: nnx.Rngs,
    ) -> None:
        self.cls = nnx.Param(jnp.zeros((1, 1, width)))
        self.position = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, tokens + 1, width)))
        drops = rising(drop_branches, depth)
        self.blocks = nnx.List(
            [_Block(width, heads, dropout=dropout, drop=drop, epsilon=epsilon, rngs=rngs) for drop in drops]
        )
        self.norm = nnx.LayerNorm(width, epsilon=epsilon, use_fast_variance=False, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(batch, tokens, width) → (batch, 1 + tokens, width): the class token first."""
        cls = jnp.broadcast_to(self.cls[...], (x.shape[0], 1, x.shape[2]))
        x = self.dropout(jnp.concatenate([cls, x], 1) + self.position)
        for block in self.blocks:
            x = block(x)
        y: jax.Array = self.norm(x)
        return y


class PatchEncoder(Encoder):
    """An encoder over the patches of a picture.

    Args:
        shape: (height, width, channels) of a picture.
        patch: Pixels a side.
        width: Of a token.
        options: Of the encoder.
    """

    def __init__(self, shape: tuple[int, ...], patch: int, width: int, **options: Any) -> None:
        super().__init__((shape[0] // patch) * (shape[1] // patch), width, **options)
        self.patch = nnx.Conv(shape[-1], width, (patch, patch), strides=patch, padding="VALID", rngs=options["rngs"])

    def __call__(self, x: jax.Array) -> jax.Array:
        """(batch, height, width, channels) → (batch, 1 + patches, width)."""
        x = self.patch(x)
        return super().__call__(x.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[3]))


class _ViT(nnx.Module):
    def __init__(self, family: ViT, shape: tuple[int, ...], *, rngs: nnx.Rngs) -> None:
        width, depth, heads = family.plan
        self.features = PatchEncoder(
            shape,
            family.patch,
            width,
            depth=depth,
            heads=heads,
            dropout=family.dropout,
            drop_branches=family.drop_branches,
            epsilon=family.epsilon,
            rngs=rngs,
        )
        self.head = nnx.Linear(width, family.num_classes, rngs=rngs)
        self.pooling = family.pooling

    def __call__(self, x: jax.Array) -> jax.Array:
        tokens = self.features(x)
        return self.head(tokens[:, 0] if self.pooling == "cls" else tokens[:, 1:].mean(1))
