"""TCN and PatchTST: what they see, what they equal, and that a forecast moves with its series."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_weights import arrays, compiled, shaken, shapes

from mms_sdk.compute.models.functional import functional
from mms_sdk.compute.models.patchtst import PatchTST, patched
from mms_sdk.compute.models.tcn import TCN
from mms_sdk.errors import InvalidRequest

PATCHES = {"horizon": 5, "patch": 4, "stride": 2, "width": 8, "layers": 2, "heads": 2, "inner": 12, "dropout": 0.0}
CONVS = {"horizon": 5, "widths": (6, 8, 8), "kernel": 3, "dropout": 0.0}


def series(rows: int = 3, context: int = 16, channels: int = 2) -> np.ndarray:
    return np.random.default_rng(0).normal(2.0, 3.0, (rows, context, channels)).astype(np.float32)


@pytest.mark.parametrize(("kernel", "blocks"), [(2, 2), (3, 2), (2, 3)])
def test_a_forecast_of_a_tcn_depends_on_its_receptive_field_and_on_nothing_before(kernel: int, blocks: int) -> None:
    family = TCN(horizon=2, widths=(8,) * blocks, kernel=kernel, revin=False, dropout=0.0)
    field = family.receptive_field
    x = series(1, field + 3, 1)
    model = functional(family, x.shape[1:])

    @jax.jit
    def slopes(key: jax.Array) -> jax.Array:
        params, rest = model.init(key)
        return jax.grad(lambda x: model.apply(params, rest, x, None)[0].sum())(x)

    # Over several seeds: a ReLU may hide a step from one of them.
    seen = sum(np.abs(np.asarray(slopes(jax.random.key(seed)))) for seed in range(6))[0, :, 0]

    assert (seen[:3] == 0).all() and seen[3] > 0 and seen[-1] > 0


@pytest.mark.slow
@pytest.mark.parametrize("revin", [False, True])
def test_a_tcn_equals_one_of_pytorch(revin: bool) -> None:
    import torch
    from torch.nn.utils.parametrizations import weight_norm

    torch.manual_seed(0)
    x = series()
    family = TCN(revin=revin, quantiles=2, **CONVS)
    model = compiled(family, x.shape[1:])
    params, rest = model.init(jax.random.key(0))
    params = {path: value + 0.1 * (np.arange(value.size).reshape(value.shape) % 3) for path, value in params.items()}

    def tensor(path: str) -> Any:
        return torch.from_numpy(np.array(params[path]))

    given = torch.from_numpy(x)
    out, mean, spread, scale, shift = given, 0.0, 1.0, torch.ones(2), torch.zeros(2)
    if revin:
        scale, shift = tensor("features/norm/scale"), tensor("features/norm/shift")
        mean = given.mean(1, keepdim=True)
        spread = (given.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        out = (given - mean) / spread * scale + shift
    out = out.transpose(1, 2)
    for block in range(3):
        inner, below = out, f"features/blocks/{block}"
        for name in ("conv1", "conv2"):
            kernel = tensor(f"{below}/{name}/kernel").permute(2, 1, 0)
            conv = torch.nn.Conv1d(kernel.shape[1], kernel.shape[0], 3, dilation=2**block)
            conv = weight_norm(conv)
            conv.parametrizations.weight.original0.data = tensor(f"{below}/{name}/scale")[:, None, None]
            conv.parametrizations.weight.original1.data = kernel
            conv.bias.data = tensor(f"{below}/{name}/bias")
            inner = torch.relu(conv(torch.nn.functional.pad(inner, (2 * 2**block, 0))))
        if f"{below}/shortcut/kernel" in params:
            out = (out.transpose(1, 2) @ tensor(f"{below}/shortcut/kernel") + tensor(f"{below}/shortcut/bias")).mT
        out = torch.relu(inner + out)
    told = (out[..., -1] @ tensor("head/kernel") + tensor("head/bias")).reshape(3, 5, 2, 2)
    expected = (told - shift[:, None]) / scale[:, None]
    if revin:
        expected = expected * spread[..., None] + mean[..., None]

    ours, _ = model.apply(params, rest, x, None)
    print("TCN: largest difference", np.abs(ours - expected.detach().numpy()).max(), "of", np.abs(ours).max())
    np.testing.assert_allclose(ours, expected.detach().numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_a_patchtst_forecasts_as_that_of_transformers(norm: str) -> None:
    import torch
    from transformers import PatchTSTConfig, PatchTSTForPrediction

    torch.manual_seed(0)
    config = PatchTSTConfig(
        num_input_channels=2, context_length=17, prediction_length=5, patch_length=4, patch_stride=2, d_model=8,
        num_hidden_layers=2, num_attention_heads=2, ffn_dim=12, norm_type=f"{norm}norm", pre_norm=False, scaling="std",
        share_embedding=True, share_projection=True, channel_attention=False, use_cls_token=False, pooling_type=None,
        positional_encoding_type="random", loss="mse", attention_dropout=0.0, ff_dropout=0.0, head_dropout=0.0,
        positional_dropout=0.0, path_dropout=0.0, do_mask_input=False,
    )  # fmt: skip
    reference = shaken(PatchTSTForPrediction(config))
    x = series(context=17)
    with torch.no_grad():
        expected = reference(past_values=torch.from_numpy(x)).prediction_outputs.numpy()

    family = PatchTST(**PATCHES, pad_end=False, norm=norm)
    paths, others = shapes(family, x.shape[1:])
    source = arrays(reference)
    named = {path: patchtst_name(path, norm) for path in (*paths, *others) if not path.startswith("features/norm/")}
    assert set(named.values()) == {name for name in source if "num_batches" not in name}
    values = {
        path: jnp.asarray(source[name].T if path.endswith("kernel") else source[name]) for path, name in named.items()
    }
    assert {path: value.shape for path, value in values.items()} == {
        path: shape for path, shape in (paths | others).items() if path in values
    }
    params = {path: values[path] for path in paths if path in values}
    params |= {
        "features/norm/scale": jnp.ones(2),
        "features/norm/shift": jnp.zeros(2),
    }  # transformers has RevIN without them
    ours, _ = compiled(family, x.shape[1:]).apply(params, {path: values[path] for path in others}, x, None)

    print(f"PatchTST, {norm}: largest difference", np.abs(ours - expected).max(), "of", np.abs(expected).max())
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def patchtst_name(path: str, norm: str) -> str:
    leaf = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    module, _, last = path.rpartition("/")
    last = leaf.get(last, last)
    if module == "features/patch":
        return f"model.encoder.embedder.input_embedding.{last}"
    if path == "features/position":
        return "model.encoder.positional_encoder.position_enc"
    if module == "head":
        return f"head.projection.{last}"
    _, _, block, part = module.split("/", 3)
    inside = ".batchnorm" if norm == "batch" else ""
    theirs = {
        "attention/query": "self_attn.q_proj",
        "attention/key": "self_attn.k_proj",
        "attention/value": "self_attn.v_proj",
        "attention/out": "self_attn.out_proj",
        "attention_norm": f"norm_sublayer1{inside}",
        "feed_forward/up": "ff.0",
        "feed_forward/down": "ff.3",
        "feed_forward_norm": f"norm_sublayer3{inside}",
    }[part]
    return f"model.encoder.layers.{block}.{theirs}.{last}"


@pytest.mark.parametrize("family", [TCN(**CONVS), PatchTST(**PATCHES, norm="layer")], ids=["tcn", "patchtst"])
def test_a_forecast_moves_and_grows_with_its_series(family: Any) -> None:
    x = series()
    model = compiled(family, x.shape[1:])
    params, rest = model.init(jax.random.key(0))

    forecast, _ = model.apply(params, rest, x, None)
    moved, _ = model.apply(params, rest, x * 10 + np.array([5, -70], np.float32)[None, None], None)

    assert forecast.shape == (3, 5, 2)
    np.testing.assert_allclose(moved, forecast * 10 + np.array([5, -70], np.float32)[None, None], rtol=1e-3, atol=1e-2)


def test_a_patchtst_forecasts_each_channel_by_itself() -> None:
    x = series(channels=3)
    changed = x.copy()
    changed[..., 2] = 0.0
    model = compiled(PatchTST(**PATCHES, norm="layer"), x.shape[1:])
    params, rest = model.init(jax.random.key(0))

    before, after = (np.asarray(model.apply(params, rest, rows, None)[0]) for rows in (x, changed))

    np.testing.assert_allclose(after[..., :2], before[..., :2], atol=1e-5)
    assert np.isfinite(after).all()


@pytest.mark.parametrize(
    "family",
    [TCN(**CONVS, quantiles=3, revin=False), PatchTST(**PATCHES, quantiles=3, revin=False)],
    ids=["tcn", "patchtst"],
)
def test_quantiles_come_last_and_without_revin_there_is_nothing_to_normalise(family: Any) -> None:
    model = functional(family, (16, 2))

    params, rest = jax.eval_shape(model.init, jax.random.key(0))
    out, _ = jax.eval_shape(lambda params, rest: model.apply(params, rest, series(), None), params, rest)

    assert out.shape == (3, 5, 2, 3)
    assert not any(path.startswith("features/norm/") for path in params)


@pytest.mark.parametrize(("context", "patch", "stride"), [(16, 4, 2), (17, 4, 3), (4, 4, 4), (9, 4, 5)])
def test_patches_are_the_pieces_that_a_loop_cuts(context: int, patch: int, stride: int) -> None:
    x = np.random.default_rng(0).normal(size=(2, context)).astype(np.float32)
    longer = np.concatenate([x, np.repeat(x[:, -1:], stride, axis=1)], axis=1)
    ends = [end for end in range(context, 0, -stride) if end >= patch][::-1]

    padded = patched(jnp.asarray(x), patch, stride, pad_end=True)
    plain = patched(jnp.asarray(x), patch, stride, pad_end=False)

    starts = range(0, context + stride - patch + 1, stride)
    np.testing.assert_array_equal(padded, np.stack([longer[:, start : start + patch] for start in starts], 1))
    np.testing.assert_array_equal(plain, np.stack([x[:, end - patch : end] for end in ends], 1))
    assert padded.shape[1] == PatchTST(horizon=1, patch=patch, stride=stride).patches(context)
    assert plain.shape[1] == PatchTST(horizon=1, patch=patch, stride=stride, pad_end=False).patches(context)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: TCN(horizon=0), "horizon is a whole number from 1; got horizon=0"),
        (lambda: TCN(horizon=1, kernel=1), "kernel is a whole number from 2; got kernel=1"),
        (lambda: TCN(horizon=1, widths=()), r"got widths=\(\)"),
        (lambda: TCN(horizon=1).build((9,), rngs=None), r"rows of shape \(context, channels\); got \(9,\)"),
        (lambda: PatchTST(horizon=1, stride=0), "stride is a whole number from 1; got stride=0"),
        (lambda: PatchTST(horizon=1, norm="rms"), "norm is one of batch, layer"),
        (lambda: PatchTST(horizon=1, quantiles=-1), "quantiles is a whole number from 0; got quantiles=-1"),
        (lambda: PatchTST(horizon=1).build((9, 1), rngs=None), "rows of 9 steps with patch=16; shorten the patch"),
    ],
)
def test_options_and_rows_that_do_not_fit_a_forecaster_are_refused(make: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        make()
