"""A causal Transformer over tokens, as Llama: scores of the next token at every position."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
from flax import nnx

from mms_sdk.compute.models.attention import MultiHeadAttention, check_heads
from mms_sdk.compute.models.blocks import make_blocks, through, transformer_rules
from mms_sdk.compute.models.embedding import embedding
from mms_sdk.compute.models.feedforward import GatedFeedForward
from mms_sdk.compute.models.moe import MoE, check_experts
from mms_sdk.compute.models.options import check_at_least, check_ids, check_shape, check_share
from mms_sdk.compute.sharding.rules import PartitionRules
from mms_sdk.errors import InvalidRequest


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """Llama (Touvron et al. 2023, §2.2): normalised before each half of a block, rotary positions, SwiGLU, no biases.

    Takes token ids, int32 (batch, length), and gives scores of the token that follows each, (batch, length,
    vocab_size). A position sees itself and those before it.

    With `experts` the feed-forward layers are mixtures (`MoE`; Jiang et al. 2024), whose experts lie on the devices of
    the mesh's `expert` axis where it has one. How unevenly they are used stands in the state that is not trained, one
    value a block under `…/feed_forward/balance_loss`. In training a hundredth of their mean is added to the loss, and a
    thousandth of the mean of `…/feed_forward/router_z_loss` where there is one.

    Attributes:
        vocab_size: Number of token ids. A row with an id from there on gives NaN.
        width: Features of a token.
        layers: Blocks.
        heads: Query heads.
        kv_heads: Key and value heads, a divisor of heads; heads if left out.
        head_width: Features of a head; width / heads if left out.
        inner: Features inside the feed-forward layers; 8/3 of the width, up to the next multiple of 64, if left out.
        rope_theta: Base of the rotary positions; larger for longer texts.
        qk_norm: Whether queries and keys are normalised head by head, which keeps large models stable.
        tied: Whether the scores are products with the embeddings of the tokens, instead of with a head of their own.
        experts: Of each feed-forward layer; 0 for one plain layer.
        experts_per_token: How many of them a token goes through.
        capacity_factor: Room of an expert in training, in multiples of what it would get if all were used alike; what
            comes later passes it by. None for room for all, for experts / experts_per_token times the work.
        router_z_loss: Whether large scores of the routers cost something, which keeps large models stable (Zoph et al.
            2022, "ST-MoE", section 3.2).
        pad_id: An id that is not seen by others; None if padding stands behind the text only, where nothing sees it.
        dropout: Share dropped in training: of the embedded tokens, of attention, and of what each half of a block adds.
        norm_eps: Added to the mean square in normalisation.
        scan_layers: Whether blocks are stacked, which compiles in the time of one.
        remat: Whether blocks are computed again for the gradient, which saves memory.
    """

    vocab_size: int
    width: int = 512
    layers: int = 8
    heads: int = 8
    kv_heads: int | None = None
    head_width: int | None = None
    inner: int | None = None
    rope_theta: float = 10_000.0
    qk_norm: bool = False
    tied: bool = True
    experts: int = 0
    experts_per_token: int = 2
    capacity_factor: float | None = None
    router_z_loss: bool = False
    pad_id: int | None = None
    dropout: float = 0.0
    norm_eps: float = 1e-6
    scan_layers: bool = False
    remat: bool = False

    def __post_init__(self) -> None:
        check_at_least(1, vocab_size=self.vocab_size, width=self.width, layers=self.layers)
        check_at_least(1, inner=self.inner, head_width=self.head_width)
        check_at_least(0, experts=self.experts)
        check_share(dropout=self.dropout)
        check_heads(self.width, self.heads, self.kv_heads or self.heads, self.head_width, rotary=True)
        if self.experts:
            check_experts(self.experts, self.experts_per_token, self.capacity_factor)
        if self.rope_theta <= 0:
            raise InvalidRequest(f"rope_theta is the base of a power, above 0; got rope_theta={self.rope_theta}")

    @property
    def rules(self) -> PartitionRules:
        """How parameters are divided over `fsdp`, `tensor` and `expert`, if no rule of the trainer says otherwise."""
        return transformer_rules(stacked=self.scan_layers)

    @property
    def inner_width(self) -> int:
        """Features inside the feed-forward layers."""
        return self.inner or -(-8 * self.width // (3 * 64)) * 64

    def build(self, input_shape: tuple[int, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        """The network for rows of shape (length,).

        Raises:
            InvalidRequest: Rows of another shape.
        """
        check_shape("a Decoder", ("length",), input_shape)
        return _Decoder(self, rngs=rngs)

    def names(self) -> dict[str, str]:
        """Path of each parameter → its name in Hugging Face's `LlamaForCausalLM`, where kernels are transposed.

        For a decoder without experts and without normalised queries; stacked blocks have no names of their own.
        """
        names = {"features/token/embedding": "model.embed_tokens.weight", "features/norm/scale": "model.norm.weight"}
        for block in range(self.layers):
            for ours, theirs in _BLOCK_NAMES.items():
                names[f"features/blocks/{block}/{ours}"] = f"model.layers.{block}.{theirs}.weight"
        return names if self.tied else {**names, "head/kernel": "lm_head.weight"}


_BLOCK_NAMES = {
    "attention_norm/scale": "input_layernorm",
    "attention/query/kernel": "self_attn.q_proj",
    "attention/key/kernel": "self_attn.k_proj",
    "attention/value/kernel": "self_attn.v_proj",
    "attention/out/kernel": "self_attn.o_proj",
    "feed_forward_norm/scale": "post_attention_layernorm",
    "feed_forward/gate/kernel": "mlp.gate_proj",
    "feed_forward/up/kernel": "mlp.up_proj",
    "feed_forward/down/kernel": "mlp.down_proj",
}


class _Block(nnx.Module):
    def __init__(self, family: Decoder, rngs: nnx.Rngs) -> None:
        norm = partial(nnx.RMSNorm, family.width, epsilon=family.norm_eps, rngs=rngs)
        self.attention_norm = norm()
        self.attention = MultiHeadAttention(
            family.width,
            family.heads,
            kv_heads=family.kv_heads,
            head_width=family.head_width,
            rope_theta=family.rope_theta,
            causal=True,
            qk_norm=family.qk_norm,
            bias=False,
            dropout=family.dropout,
            rngs=rngs,
        )
        self.feed_forward_norm = norm()
        if family.experts:
            self.feed_forward: nnx.Module = MoE(
                family.width,
                family.inner_width,
                experts=family.experts,
                top_k=family.experts_per_token,
                capacity_factor=family.capacity_factor,
                gated=True,
                router_z_loss=family.router_z_loss,
                rngs=rngs,
            )
        else:
            self.feed_forward = GatedFeedForward(family.width, family.inner_width, rngs=rngs)
        self.dropout = nnx.Dropout(family.dropout, rngs=rngs)

    def __call__(self, x: jax.Array, keep: jax.Array | None) -> jax.Array:
        x = x + self.dropout(self.attention(self.attention_norm(x), keep))
        inner = self.feed_forward_norm(x)
        sparse = isinstance(self.feed_forward, MoE)
        return x + self.dropout(self.feed_forward(inner, keep) if sparse else self.feed_forward(inner))


class _Features(nnx.Module):
    def __init__(self, family: Decoder, *, rngs: nnx.Rngs) -> None:
        self.token = embedding(family.vocab_size, family.width, rngs=rngs)
        self.dropout = nnx.Dropout(family.dropout, rngs=rngs)
        self.blocks = make_blocks(partial(_Block, family), family.layers, stacked=family.scan_layers, rngs=rngs)
        self.norm = nnx.RMSNorm(family.width, epsilon=family.norm_eps, rngs=rngs)
        self.pad_id, self.remat = family.pad_id, family.remat

    def __call__(self, ids: jax.Array) -> jax.Array:
        """(batch, length) → (batch, length, width)."""
        keep = None if self.pad_id is None else ids != self.pad_id
        x = through(self.blocks, self.dropout(self.token(ids)), keep, remat=self.remat)
        out: jax.Array = self.norm(x)
        return out


class _Decoder(nnx.Module):
    def __init__(self, family: Decoder, *, rngs: nnx.Rngs) -> None:
        self.features = _Features(family, rngs=rngs)
        if not family.tied:
            self.head = nnx.Linear(family.width, family.vocab_size, use_bias=False, rngs=rngs)
        self.tied = family.tied

    def __call__(self, ids: jax.Array) -> jax.Array:
        check_ids("a Decoder", ids)
        features = self.features(ids)
        scores: jax.Array = self.features.token.attend(features) if self.tied else self.head(features)
        return scores
