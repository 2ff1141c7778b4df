"""Factorised video transformer (Arnab et al. 2021, ViViT, §3.3, model 2: the factorised encoder)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
from flax import nnx

from mms_sdk.compute.models.attention import check_heads
from mms_sdk.compute.models.family import ATTENTION, Family, Partition
from mms_sdk.compute.models.options import check_at_least, check_choice, check_picture, check_share
from mms_sdk.compute.models.vit import VARIANTS, Encoder, PatchEncoder, plan_of
from mms_sdk.compute.models.weights import Source
from mms_sdk.errors import InvalidRequest


@dataclass(frozen=True, kw_only=True)
class FactorisedViT(Family):
    """A ViT over the patches of each frame, then a transformer over the frames' class tokens, and one linear layer.

    Attention over all patches of all frames grows with the square of their number; this one with the square of the
    patches of one frame and the square of the frames.

    Attributes:
        num_classes: Scores that come out.
        variant: Of the frame's encoder: `tiny`, `small` or `base`.
        width: Of a token; the variant's if left out.
        depth: Blocks over the patches of a frame; the variant's if left out.
        time_depth: Blocks over the frames.
        heads: Of each attention; the variant's if left out.
        patch: Pixels a side of a patch, of one frame.
        dropout: Share dropped in training of tokens and of what each block adds.
        drop_branches: Share of rows for which the last residual branch is dropped in training; fewer before it.
        epsilon: Added to the variance in layer normalisation.
        init_from: Weights to begin with: a file or folder, or `mms.models.Weights`.
    """

    num_classes: int
    variant: str = "base"
    width: int | None = None
    depth: int | None = None
    time_depth: int = 4
    heads: int | None = None
    patch: int = 16
    dropout: float = 0.0
    drop_branches: float = 0.0
    epsilon: float = 1e-6
    init_from: Source | None = None

    partition: ClassVar[Partition] = ATTENTION

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, VARIANTS)
        width, depth, heads = self.plan
        check_at_least(1, num_classes=self.num_classes, patch=self.patch, time_depth=self.time_depth)
        check_at_least(1, width=width, depth=depth, heads=heads)
        check_share(dropout=self.dropout, drop_branches=self.drop_branches)
        check_heads(width, heads, heads)

    def build(self, input_shape: tuple[int, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        """The network for clips of shape (frames, height, width, channels), sides in multiples of the patch."""
        if len(input_shape) != 4:
            raise InvalidRequest(
                f"FactorisedViT takes clips of shape (frames, height, width, channels); got rows of shape {input_shape}"
            )
        check_picture("a frame of FactorisedViT", input_shape[1:], least=self.patch, multiple=self.patch)
        return _FactorisedViT(self, input_shape, rngs=rngs)

    @property
    def plan(self) -> tuple[int, int, int]:
        """Width, blocks over a frame, and heads."""
        return plan_of(self)

    @property
    def preprocess(self) -> tuple[Any, ...]:
        """None: clips come in as float32 from 0 to 1."""
        return ()


class _Features(nnx.Module):
    def __init__(self, family: FactorisedViT, shape: tuple[int, ...], *, rngs: nnx.Rngs) -> None:
        width, depth, heads = family.plan
        options: dict[str, Any] = {
            "heads": heads,
            "dropout": family.dropout,
            "drop_branches": family.drop_branches,
            "epsilon": family.epsilon,
            "rngs": rngs,
        }
        self.frame = PatchEncoder(shape[1:], family.patch, width, depth=depth, **options)
        self.time = Encoder(shape[0], width, family.time_depth, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        frames = x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
        tokens = self.frame(frames)[:, 0]
        return self.time(tokens.reshape(x.shape[0], x.shape[1], tokens.shape[-1]))[:, 0]


class _FactorisedViT(nnx.Module):
    def __init__(self, family: FactorisedViT, shape: tuple[int, ...], *, rngs: nnx.Rngs) -> None:
        self.features = _Features(family, shape, rngs=rngs)
        self.head = nnx.Linear(family.plan[0], family.num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.features(x))
