"""What holds for every family for texts, sounds, series and tables: paths, names, division, export, precision."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from torch_weights import shapes

from mms_sdk.compute.models import (
    TCN,
    Conformer,
    ConvNet1D,
    Decoder,
    Encoder,
    FTTransformer,
    PatchTST,
    TableMLP,
    by_name,
)
from mms_sdk.compute.models.functional import functional
from mms_sdk.compute.sharding.mesh import make_mesh

BLOCKS = {"width": 16, "layers": 2, "heads": 4, "inner": 32}
CASES: dict[str, tuple[Any, tuple[int, ...], tuple[int | str, ...]]] = {
    "encoder": (Encoder(vocab_size=32, num_classes=3, **BLOCKS), (6,), (3,)),
    "encoder of pairs": (Encoder(vocab_size=32, pooling="cls", **BLOCKS), (2, 6), (16,)),
    "stacked encoder": (Encoder(vocab_size=32, scan_layers=True, remat=True, **BLOCKS), (6,), (16,)),
    "decoder": (Decoder(vocab_size=32, kv_heads=2, tied=False, pad_id=0, **BLOCKS), (6,), (6, 32)),
    "decoder with experts": (Decoder(vocab_size=32, experts=4, **BLOCKS), (6,), (6, 32)),
    "stacked decoder with experts": (
        Decoder(vocab_size=32, experts=4, capacity_factor=0.5, router_z_loss=True, scan_layers=True, **BLOCKS),
        (6,),
        (6, 32),
    ),
    "conformer": (Conformer(num_classes=3, kernel=3, **BLOCKS), (9, 8), (3,)),
    "convnet1d": (ConvNet1D(num_classes=3, widths=(8, 16)), (9, 8), (3,)),
    "tcn": (TCN(horizon=4, widths=(8, 8)), (9, 2), (4, 2)),
    "patchtst": (PatchTST(horizon=4, quantiles=3, patch=4, stride=2, **BLOCKS), (9, 2), (4, 2, 3)),
    "ft-transformer": (FTTransformer(num_classes=3, categories=(4, 6), **BLOCKS), (5,), (3,)),
    "table-mlp": (TableMLP(num_classes=3, categories=(4, 6), widths=(16, 8)), (5,), (3,)),
}
EVERY = pytest.mark.parametrize(("family", "shape", "gives"), CASES.values(), ids=CASES)
IDS = (Encoder, Decoder)


def batch_of(family: Any, shape: tuple[int, ...], rows: Any = 2) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((rows, *shape), np.int32 if isinstance(family, IDS) else np.float32)


@EVERY
def test_backbone_and_head_are_told_apart_by_their_paths(
    family: Any, shape: tuple[int, ...], gives: tuple[int, ...]
) -> None:
    params, rest = shapes(family, shape)

    assert {path.split("/")[0] for path in (*params, *rest)} <= {"features", "head"}
    headless = getattr(family, "tied", False) or (isinstance(family, Encoder) and family.num_classes is None)
    assert any(path.startswith("head/") for path in params) is not headless


@EVERY
def test_a_family_is_exported_for_batches_of_any_size(
    family: Any, shape: tuple[int, ...], gives: tuple[int, ...]
) -> None:
    model = functional(family, shape)
    params, rest = jax.eval_shape(model.init, jax.random.key(0))
    (rows,) = jax.export.symbolic_shape("rows")

    exported = jax.export.export(
        jax.jit(lambda params, rest, batch: model.apply(params, rest, batch, None)[0]), platforms=("cpu", "cuda", "tpu")
    )(params, rest, batch_of(family, shape, rows))

    assert exported.out_avals[0].shape == (rows, *gives)
    assert exported.out_avals[0].dtype == np.float32


@EVERY
@pytest.mark.parametrize("training", [False, True])
def test_a_family_computes_in_bfloat16_if_its_parameters_are(
    family: Any, shape: tuple[int, ...], gives: tuple[int, ...], training: bool
) -> None:
    model = functional(family, shape)
    params, rest = jax.eval_shape(model.init, jax.random.key(0))
    params = {path: jax.ShapeDtypeStruct(value.shape, jnp.bfloat16) for path, value in params.items()}
    batch = batch_of(family, shape)
    batch = batch if isinstance(family, IDS) else jax.ShapeDtypeStruct(batch.shape, jnp.bfloat16)

    out, after = jax.eval_shape(
        lambda params, rest, batch: model.apply(params, rest, batch, jax.random.key(0) if training else None),
        params,
        rest,
        batch,
    )

    assert out.dtype == jnp.bfloat16 and out.shape == (2, *gives)
    assert {path: (value.shape, value.dtype) for path, value in after.items()} == {
        path: (value.shape, value.dtype) for path, value in rest.items()
    }


@EVERY
def test_the_rules_of_a_family_divide_its_parameters(
    family: Any, shape: tuple[int, ...], gives: tuple[int, ...]
) -> None:
    mesh = make_mesh({"fsdp": 2, "tensor": 2, "expert": 2})

    specs = {path: family.rules.spec(path, shape, mesh) for path, shape in shapes(family, shape)[0].items()}

    ahead = (None,) if getattr(family, "scan_layers", False) else ()
    for path, spec in specs.items():
        if path.endswith(("/attention/query/kernel", "/feed_forward/up/kernel")):
            assert spec == (*ahead, "fsdp", "tensor"), path
        if path.endswith(("/attention/out/kernel", "/feed_forward/down/kernel")):
            assert spec == (*ahead, "tensor", "fsdp"), path
        if path.endswith("/feed_forward/up"):
            assert spec == (*ahead, "expert", "fsdp", "tensor"), path
        if path == "features/token/embedding":
            assert spec == ("tensor", "fsdp")


def test_the_rules_of_a_decoder_say_more_of_its_experts_than_the_names_these_give_to_dimensions() -> None:
    family, shape, _ = CASES["stacked decoder with experts"]

    assert functional(family, shape).names == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["decoder", "stacked decoder with experts", "encoder of pairs"])
def test_a_divided_model_gives_what_a_whole_one_gives(name: str) -> None:
    family, shape, _ = CASES[name]
    model = functional(family, shape)
    params, rest = jax.jit(model.init)(jax.random.key(0))
    ids = np.random.default_rng(0).integers(0, 2, (4, *shape)).astype(np.int32)
    mesh = make_mesh({"fsdp": 2, "tensor": 2, "expert": 2})
    divided = {
        path: jax.device_put(value, NamedSharding(mesh, PartitionSpec(*family.rules.spec(path, value.shape, mesh))))
        for path, value in params.items()
    }
    apply = jax.jit(lambda params: model.apply(params, rest, ids, None)[0])

    np.testing.assert_allclose(apply(divided), apply(params), atol=1e-5)


def test_families_are_found_by_their_names() -> None:
    assert by_name("encoder", vocab_size=9) == Encoder(vocab_size=9)
    assert by_name("decoder", vocab_size=9) == Decoder(vocab_size=9)
    assert by_name("conformer", num_classes=2) == Conformer(num_classes=2)
    assert by_name("convnet1d", num_classes=2) == ConvNet1D(num_classes=2)
    assert by_name("tcn", horizon=2) == TCN(horizon=2)
    assert by_name("patchtst", horizon=2) == PatchTST(horizon=2)
    assert by_name("ft-transformer", num_classes=2) == FTTransformer(num_classes=2)
    assert by_name("table-mlp", num_classes=2) == TableMLP(num_classes=2)
