"""Conformer and ConvNet1D: equal to Hugging Face's and PyTorch's layers, over frames of any number."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from torch_weights import arrays, compiled, shaken, shapes

from mms_sdk.compute.models.conformer import Conformer, ConformerBlock, by_pair, sinusoids
from mms_sdk.compute.models.convnet1d import ConvNet1D, halve_frames
from mms_sdk.errors import InvalidRequest

SMALL = {"num_classes": 3, "width": 8, "layers": 1, "heads": 2, "inner": 12, "kernel": 5, "dropout": 0.0}

BLOCK_NAMES = {
    "feed_forward1_norm": "ffn1_layer_norm",
    "feed_forward1/up": "ffn1.intermediate_dense",
    "feed_forward1/down": "ffn1.output_dense",
    "attention_norm": "self_attn_layer_norm",
    "attention/query": "self_attn.linear_q",
    "attention/key": "self_attn.linear_k",
    "attention/value": "self_attn.linear_v",
    "attention/out": "self_attn.linear_out",
    "attention/distance": "self_attn.linear_pos",
    "convolution/norm": "conv_module.layer_norm",
    "convolution/up": "conv_module.pointwise_conv1",
    "convolution/depthwise": "conv_module.depthwise_conv",
    "convolution/inner_norm": "conv_module.batch_norm",
    "convolution/down": "conv_module.pointwise_conv2",
    "feed_forward2_norm": "ffn2_layer_norm",
    "feed_forward2/up": "ffn2.intermediate_dense",
    "feed_forward2/down": "ffn2.output_dense",
    "norm": "final_layer_norm",
}
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def block_value(path: str, shape: tuple[int, ...], source: dict[str, np.ndarray]) -> jax.Array:
    """The array of a Conformer block from Hugging Face's, by our path."""
    biases = {"attention/content_bias": "self_attn.pos_bias_u", "attention/distance_bias": "self_attn.pos_bias_v"}
    module, _, leaf = path.rpartition("/")
    array = source[biases.get(path) or f"{BLOCK_NAMES[module]}.{LEAVES[leaf]}"]
    if leaf == "kernel":
        array = array.transpose(2, 1, 0) if module.endswith("depthwise") else array.reshape(array.shape[:2]).T
    assert array.shape == shape, (path, array.shape, shape)
    return jnp.asarray(array)


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_a_conformer_block_equals_that_of_transformers(training: bool) -> None:
    import torch
    from transformers import Wav2Vec2ConformerConfig
    from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import (
        Wav2Vec2ConformerEncoderLayer,
        Wav2Vec2ConformerRelPositionalEmbedding,
    )

    torch.manual_seed(0)
    config = Wav2Vec2ConformerConfig(
        hidden_size=8, num_attention_heads=2, intermediate_size=12, conv_depthwise_kernel_size=5, hidden_act="swish",
        position_embeddings_type="relative", attention_dropout=0.0, hidden_dropout=0.0, activation_dropout=0.0,
        conformer_conv_dropout=0.0, attn_implementation="eager", max_source_positions=50,
    )  # fmt: skip
    reference = shaken(Wav2Vec2ConformerEncoderLayer(config)).train(training)
    before = {name: value.copy() for name, value in arrays(reference).items()}
    x = np.random.default_rng(0).normal(size=(3, 9, 8)).astype(np.float32)
    positions = Wav2Vec2ConformerRelPositionalEmbedding(config)(torch.from_numpy(x))
    with torch.no_grad():
        expected = reference(torch.from_numpy(x), relative_position_embeddings=positions).numpy()
    np.testing.assert_allclose(sinusoids(9, 8), positions[0].numpy(), atol=1e-6)

    block: Any = nnx.jit(lambda: ConformerBlock(Conformer(**SMALL), nnx.Rngs(0)))()
    state: Any = nnx.state(block, nnx.Any(nnx.Param, nnx.BatchStat))
    flat = [
        (path, variable.replace(block_value("/".join(map(str, path)), variable.get_value().shape, before)))
        for path, variable in nnx.to_flat_state(state)
    ]
    assert len(flat) == len([name for name in before if "num_batches" not in name])
    nnx.update(block, nnx.from_flat_state(flat))
    block.train() if training else block.eval()
    ours = nnx.jit(lambda block: block(x))(block)

    print("Conformer block: largest difference", np.abs(ours - expected).max())
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    after = arrays(reference)["conv_module.batch_norm.running_mean"]
    np.testing.assert_allclose(block.convolution.inner_norm.mean[...], after, atol=1e-6)


@pytest.mark.slow
def test_a_conformer_makes_one_of_four_frames_as_pytorch_does() -> None:
    import torch

    model = nnx.jit(lambda: Conformer(**SMALL).build((11, 7), rngs=nnx.Rngs(0)))()
    subsampling: Any = model.features.subsampling
    x = np.random.default_rng(0).normal(size=(2, 11, 7)).astype(np.float32)

    def tensor(array: Any) -> Any:
        return torch.from_numpy(np.array(array))

    out = tensor(x)[:, None]
    for conv in (subsampling.conv1, subsampling.conv2):
        kernel = tensor(conv.kernel[...]).permute(3, 2, 0, 1)
        out = torch.relu(torch.nn.functional.conv2d(out, kernel, tensor(conv.bias[...]), stride=2, padding=1))
    out = out.permute(0, 2, 3, 1).flatten(2)
    expected = out @ tensor(subsampling.linear.kernel[...]) + tensor(subsampling.linear.bias[...])

    assert expected.shape == (2, 3, 8)
    np.testing.assert_allclose(nnx.jit(lambda module: module(x))(subsampling), expected.numpy(), atol=1e-5)


def test_what_is_given_by_distance_stands_at_its_pairs() -> None:
    length = 5
    by_distance = np.random.default_rng(0).normal(size=(2, 3, length, 2 * length - 1))

    pairs = np.asarray(by_pair(jnp.asarray(by_distance, jnp.float32)))

    for i in range(length):
        for j in range(length):
            np.testing.assert_allclose(pairs[..., i, j], by_distance[..., i, length - 1 - (i - j)], rtol=1e-6)


def test_a_conformer_with_layer_norm_gives_a_sound_the_same_scores_whatever_stands_beside_it() -> None:
    model = compiled(Conformer(**SMALL | {"norm": "layer"}), (9, 6))
    params, rest = model.init(jax.random.key(0))
    sounds = np.random.default_rng(0).normal(size=(3, 9, 6)).astype(np.float32)

    together, _ = model.apply(params, rest, sounds, jax.random.key(0))
    alone, _ = model.apply(params, rest, sounds[:1], jax.random.key(0))

    np.testing.assert_allclose(together[:1], alone, atol=1e-5)
    assert together.shape == (3, 3)


def test_only_a_conformer_with_batch_norm_has_averages() -> None:
    _, batch = shapes(Conformer(**SMALL), (9, 6))
    _, layer = shapes(Conformer(**SMALL | {"norm": "layer"}), (9, 6))

    assert set(batch) == {f"features/blocks/0/convolution/inner_norm/{name}" for name in ("mean", "var")}
    assert layer == {}


@pytest.mark.parametrize("frames", [1, 2, 7, 50])
def test_a_convnet_over_frames_gives_one_score_a_class_for_sounds_of_any_length(frames: int) -> None:
    family = ConvNet1D(num_classes=4, widths=(8, 16))

    made = nnx.eval_shape(lambda: family.build((frames, 6), rngs=nnx.Rngs(0))(np.ones((2, frames, 6), np.float32)))

    assert made.shape == (2, 4)


@pytest.mark.slow
def test_a_convnet_over_frames_equals_layers_of_pytorch() -> None:
    import torch
    from torch.nn import functional as f

    model = nnx.jit(lambda: ConvNet1D(num_classes=4, widths=(8, 16), kernel=3).build((11, 6), rngs=nnx.Rngs(0)))()
    model.eval()
    x = np.random.default_rng(0).normal(size=(2, 11, 6)).astype(np.float32)

    def tensor(variable: Any) -> Any:
        return torch.from_numpy(np.array(variable[...]))

    out = torch.from_numpy(x).transpose(1, 2)
    for stage in model.features.stages:
        for conv, norm in ((stage.conv1, stage.norm1), (stage.conv2, stage.norm2)):
            out = f.conv1d(out, tensor(conv.kernel).permute(2, 1, 0), padding="same")
            out = f.relu(f.group_norm(out, 8, tensor(norm.scale), tensor(norm.bias), eps=1e-6))
        out = f.max_pool1d(out, 2)
    expected = out.mean(-1) @ tensor(model.head.kernel) + tensor(model.head.bias)

    ours = nnx.jit(lambda model: model(x))(model)
    print("ConvNet1D: largest difference", np.abs(ours - expected.numpy()).max())
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-5)


def test_one_frame_is_not_halved() -> None:
    x = np.ones((2, 1, 3), np.float32)

    assert halve_frames(x) is x


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Conformer(num_classes=0), "num_classes is a whole number from 1; got num_classes=0"),
        (lambda: Conformer(num_classes=2, kernel=4), "kernel is odd, with as much before as behind .* got kernel=4"),
        (lambda: Conformer(num_classes=2, width=9, heads=3), "got width=9; take even"),
        (lambda: Conformer(num_classes=2, norm="group"), "norm is one of batch, layer; got norm='group'"),
        (lambda: Conformer(num_classes=2).build((9,), rngs=None), r"rows of shape \(frames, mels\); got \(9,\)"),
        (lambda: ConvNet1D(num_classes=2, widths=(12,)), r"multiples of 8; got widths=\(12,\)"),
        (lambda: ConvNet1D(num_classes=2, widths=()), r"multiples of 8; got widths=\(\)"),
        (lambda: ConvNet1D(num_classes=2, kernel=2), "got kernel=2"),
        (lambda: ConvNet1D(num_classes=2).build((9, 0), rngs=None), r"got \(9, 0\)"),
    ],
)
def test_options_and_rows_that_do_not_fit_a_family_for_sounds_are_refused(make: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        make()
