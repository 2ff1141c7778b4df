"""The families for pictures and clips: options, paths, state, division over a mesh; their outputs are compared in
`test_architectures.py`."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mms_sdk.compute import models
from mms_sdk.compute.models.conv_norm import ConvNorm
from mms_sdk.compute.models.functional import Functional, functional
from mms_sdk.compute.sharding.mesh import batch_sharding, make_mesh
from mms_sdk.compute.sharding.rules import PartitionRules, placements
from mms_sdk.errors import InvalidRequest

PICTURE = (32, 32, 3)
CLIP = (3, 32, 32, 3)
TINY = {
    "convnet": (models.ConvNet(num_classes=8, widths=(8, 16)), PICTURE),
    "convnext": (models.ConvNeXt(num_classes=8, depths=(1, 2), widths=(8, 16)), PICTURE),
    "efficientnet-lite": (models.EfficientNetLite(num_classes=8), PICTURE),
    "factorised-vit": (models.FactorisedViT(num_classes=8, width=16, depth=1, time_depth=1, heads=2), CLIP),
    "resnet": (models.ResNet(num_classes=8, depth=18, width=8, stem="small"), PICTURE),
    "resnet of bottlenecks": (models.ResNet(num_classes=8, depth=50, width=8), PICTURE),
    "vgg": (models.VGG(num_classes=8, depth=11, width=8, hidden=(16,)), PICTURE),
    "vgg with batch norm": (models.VGG(num_classes=8, depth=11, width=8, hidden=(16,), batch_norm=True), PICTURE),
    "vit": (models.ViT(num_classes=8, width=16, depth=2, heads=2), PICTURE),
}


@cache
def taken_apart(family: Any, shape: tuple[int, ...]) -> Functional:
    return functional(family, shape)


@cache
def shapes_of(family: Any, shape: tuple[int, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Shapes of the parameters and of the other state; tracing a deep network takes seconds."""
    params, rest = jax.eval_shape(taken_apart(family, shape).init, jax.random.key(0))
    return params, rest


@pytest.mark.parametrize(("family", "shape"), TINY.values(), ids=TINY)
def test_a_family_gives_one_score_a_class_and_lies_under_features_and_head(family: Any, shape: tuple[int, ...]) -> None:
    taken = taken_apart(family, shape)
    params, rest = shapes_of(family, shape)
    rows = jax.ShapeDtypeStruct((2, *shape), np.float32)

    scores, after = jax.eval_shape(lambda p, r, x: taken.apply(p, r, x, jax.random.key(0)), params, rest, rows)

    assert scores.shape == (2, 8)
    assert {path.split("/")[0] for path in params} == {"features", "head"}
    assert {path: value.shape for path, value in after.items()} == {path: value.shape for path, value in rest.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "millions"),
    [
        # As the papers' tables and torchvision's documentation have them.
        (models.VGG(num_classes=1000, depth=11), 132.863336),
        (models.VGG(num_classes=1000, depth=13), 133.047848),
        (models.VGG(num_classes=1000, depth=16), 138.357544),
        (models.VGG(num_classes=1000, depth=19, batch_norm=True), 143.678248),
        (models.ResNet(num_classes=1000, depth=18), 11.689512),
        (models.ResNet(num_classes=1000, depth=34), 21.797672),
        (models.ResNet(num_classes=1000, depth=50), 25.557032),
        (models.ResNet(num_classes=1000, depth=101), 44.549160),
        (models.ConvNeXt(num_classes=1000, variant="tiny"), 28.589128),
        (models.ConvNeXt(num_classes=1000, variant="small"), 50.223688),
        (models.ConvNeXt(num_classes=1000, variant="base"), 88.591464),
        (models.ViT(num_classes=1000, variant="base"), 86.567656),
        (models.ViT(num_classes=1000, variant="small"), 22.050664),
        (models.ViT(num_classes=1000, variant="tiny"), 5.717416),
        (models.EfficientNetLite(num_classes=1000, variant="lite0"), 4.652008),
    ],
    ids=repr,
)
def test_a_published_architecture_has_as_many_parameters_as_published(family: Any, millions: float) -> None:
    params, _ = shapes_of(family, (224, 224, 3))

    assert sum(int(np.prod(value.shape)) for value in params.values()) == round(millions * 1e6)


def test_only_networks_with_batch_normalisation_have_state_that_is_not_trained() -> None:
    def leaves(name: str) -> set[str]:
        return {path.rpartition("/")[2] for path in shapes_of(*TINY[name])[1]}

    assert leaves("resnet") == leaves("vgg with batch norm") == {"mean", "var"}
    assert leaves("vgg") == leaves("vit") == leaves("convnext") == leaves("convnet") == set()


def test_running_averages_are_moved_in_training_and_used_and_left_alone_outside() -> None:
    taken = functional(lambda rngs: ConvNorm(3, 4, 3, bias=True, rngs=rngs), PICTURE)
    params, rest = jax.jit(taken.init)(jax.random.key(0))
    rows = np.random.default_rng(0).normal(1, 2, size=(4, 9, 7, 3)).astype(np.float32)

    _, trained = taken.apply(params, rest, rows, jax.random.key(1))
    beside, untouched = taken.apply(params, trained, rows, None)
    alone, _ = taken.apply(params, trained, rows[:1], None)

    padded = np.pad(rows, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    kernel, bias = np.asarray(params["conv/kernel"]), np.asarray(params["conv/bias"])
    convolved = np.einsum("bhwcij,ijco->bhwo", windows, kernel) + bias
    mean, var = 0.1 * convolved.mean((0, 1, 2)), 0.9 + 0.1 * convolved.var((0, 1, 2))
    np.testing.assert_allclose(trained["norm/mean"], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(trained["norm/var"], var, rtol=1e-4)
    np.testing.assert_allclose(beside, (convolved - mean) / np.sqrt(var + 1e-5), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(alone, beside[:1], rtol=1e-4, atol=1e-5)
    assert all(np.array_equal(untouched[path], trained[path]) for path in trained)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "shape"), [*TINY.values(), (models.Autoencoder(widths=(8,)), PICTURE)], ids=[*TINY, "autoencoder"]
)
def test_a_family_is_exported_for_any_batch_and_every_platform(family: Any, shape: tuple[int, ...]) -> None:
    taken = taken_apart(family, shape)
    params, rest = shapes_of(family, shape)
    (rows,) = jax.export.symbolic_shape("batch")

    exported = jax.export.export(
        jax.jit(lambda p, r, x: taken.apply(p, r, x, None)[0]), platforms=("cpu", "cuda", "tpu")
    )(params, rest, jax.ShapeDtypeStruct((rows, *shape), np.float32))

    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert str(exported.out_avals[0].shape[0]) == "batch"


def test_an_autoencoder_gives_back_the_shape_of_its_input_through_a_smaller_code() -> None:
    family = models.Autoencoder(widths=(8, 16), code=2)

    def both(rows: Any) -> tuple[Any, Any]:
        module: Any = family.build((16, 12, 3), rngs=nnx.Rngs(0))
        return module.encode(rows), module(rows)

    code, output = nnx.eval_shape(both, np.zeros((2, 16, 12, 3), np.float32))

    assert code.shape == (2, 4, 3, 2)
    assert output.shape == (2, 16, 12, 3)
    assert {path.split("/")[0] for path in shapes_of(family, (16, 12, 3))[0]} == {"features", "head"}


@pytest.mark.parametrize("mesh", [{"data": -1}, {"data": 2, "fsdp": 4}, {"fsdp": 4, "tensor": 2}])
@pytest.mark.parametrize(("family", "shape"), [*TINY.values(), (models.Autoencoder(widths=(8,)), PICTURE)])
def test_the_default_rules_divide_every_family_over_any_mesh(
    family: Any, shape: tuple[int, ...], mesh: dict[str, int]
) -> None:
    made: Mesh = make_mesh(mesh)
    params, _ = shapes_of(family, shape)

    placed = placements(params, PartitionRules(), made, family=family.rules.rules)

    whole = sum(int(np.prod(value.shape)) * 4 for value in params.values())
    per_device = sum(placement.bytes_per_device for placement in placed)
    ways = mesh.get("fsdp", 1) * mesh.get("tensor", 1)
    assert whole / ways <= per_device <= (whole if ways == 1 else 0.75 * whole)


def test_a_transformer_divides_its_heads_and_hidden_units_over_the_tensor_axis() -> None:
    family, shape = TINY["vit"]
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    params, _ = shapes_of(family, shape)

    specs = {
        place.path: place.spec
        for place in placements(params, PartitionRules(), make_mesh(mesh), family=family.rules.rules)
    }

    assert specs["features/blocks/0/attention/query/kernel"] == ("fsdp", "tensor")
    assert specs["features/blocks/1/attention/out/kernel"] == ("tensor", "fsdp")
    assert specs["features/blocks/1/expand/bias"] == ("tensor",)
    assert specs["features/blocks/1/project/kernel"] == ("tensor", "fsdp")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnext", "vgg", "vit"])
def test_a_family_says_the_same_divided_over_a_mesh_by_its_rules(name: str) -> None:
    family, shape = TINY[name]
    axes = {"data": 2, "fsdp": 2, "tensor": 2}
    mesh = make_mesh(axes)
    taken = taken_apart(family, shape)
    params, rest = jax.jit(taken.init)(jax.random.key(0))
    rows = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)
    apply = jax.jit(lambda p, x: taken.apply(p, rest, x, None)[0])

    placed = {
        place.path: jax.device_put(params[place.path], NamedSharding(mesh, PartitionSpec(*place.spec)))
        for place in placements(params, PartitionRules(), mesh, family=taken.rules)
    }
    divided = apply(placed, jax.device_put(rows, batch_sharding(mesh)))

    np.testing.assert_allclose(divided, apply(params, rows), rtol=1e-4, atol=1e-5)


def test_a_name_gives_a_family_with_its_options_and_what_stands_in_front_of_it() -> None:
    resnet = models.by_name("resnet", depth=50, num_classes=10)

    assert resnet == models.ResNet(num_classes=10, depth=50)
    resize, normalize = models.preprocess(resnet)
    assert resize.size == (224, 224)
    assert normalize.mean == (0.485, 0.456, 0.406)
    assert models.preprocess(models.by_name("efficientnet-lite", num_classes=2, variant="lite3"))[0].size == (280, 280)
    for small in ("convnet", "mlp"):
        (alone,) = models.preprocess(models.by_name(small, num_classes=2))
        assert alone.mean is None


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("resnets", {}, "got 'resnets'"),
        ("resnet", {"num_classes": 3, "deep": 50}, "got ['deep']"),
        ("resnet", {}, "num_classes"),
        ("resnet", {"num_classes": 0}, "from 1; got num_classes=0"),
        ("resnet", {"num_classes": 3, "depth": 20}, "one of 18, 34, 50, 101; got depth=20"),
        ("resnet", {"num_classes": 3, "stem": "tiny"}, "one of imagenet, small; got stem='tiny'"),
        ("vgg", {"num_classes": 3, "depth": 12}, "one of 11, 13, 16, 19; got depth=12"),
        ("vgg", {"num_classes": 3, "hidden": (16, 0)}, "whole numbers from 1; got hidden=(16, 0)"),
        ("vgg", {"num_classes": 3, "dropout": 1.0}, "a share in [0, 1); got dropout=1.0"),
        ("efficientnet-lite", {"num_classes": 3, "variant": "b0"}, "lite4; got variant='b0'"),
        ("mlp", {"num_classes": 3, "widths": (16, 2.5)}, "widths are whole numbers from 1; got widths=(16, 2.5)"),
        ("convnet", {"num_classes": 3, "dropout": -0.1}, "got dropout=-0.1"),
        ("convnext", {"num_classes": 3, "variant": "huge"}, "got variant='huge'"),
        ("convnext", {"num_classes": 3, "depths": (1, 1)}, "as many depths as widths; got depths=(1, 1)"),
        ("convnext", {"num_classes": 3, "depths": (), "widths": ()}, "one or more whole numbers from 1; got depths=()"),
        ("convnext", {"num_classes": 3, "depths": (1,), "widths": (0,)}, "got widths=(0,)"),
        ("vit", {"num_classes": 3, "width": 10, "heads": 3}, "divides evenly over its heads; got width=10, heads=3"),
        ("vit", {"num_classes": 3, "pooling": "max"}, "one of cls, mean; got pooling='max'"),
        ("vit", {"num_classes": 3, "patch": True}, "got patch=True"),
        ("factorised-vit", {"num_classes": 3, "time_depth": 0}, "got time_depth=0"),
        ("factorised-vit", {"num_classes": 3, "heads": 5}, "got width=768, heads=5"),
        ("autoencoder", {"widths": (12,)}, "multiples of 8; got widths=(12,)"),
        ("autoencoder", {"code": 0}, "got code=0"),
        ("autoencoder", {"num_classes": 3}, "got ['num_classes']"),
    ],
)
def test_options_that_make_no_network_are_refused_with_the_rule(name: str, options: Any, told: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(told)):
        models.by_name(name, **options)


@pytest.mark.parametrize(
    ("family", "shape", "told"),
    [
        (TINY["vgg"][0], (31, 40, 3), "sides from 32 pixels; got (31, 40, 3); begin preprocess with mms.image.Resize"),
        (TINY["resnet"][0], (32, 32), "(height, width, channels); got rows of shape (32, 32)"),
        (TINY["convnet"][0], (32, 32), "(height, width, channels); got rows of shape (32, 32)"),
        (TINY["convnext"][0], (4, 32, 3), "sides from 8 pixels"),
        (TINY["vit"][0], (40, 32, 3), "multiples of 16; got (40, 32, 3); begin preprocess with mms.image.Resize(32)"),
        (TINY["factorised-vit"][0], PICTURE, "(frames, height, width, channels); got rows of shape (32, 32, 3)"),
        (TINY["factorised-vit"][0], (2, 20, 32, 3), "multiples of 16"),
        (models.Autoencoder(widths=(8, 8)), (6, 8, 3), "multiples of 4; got (6, 8, 3)"),
    ],
)
def test_rows_that_a_network_cannot_take_are_refused_with_the_size_that_it_can(
    family: Any, shape: tuple[int, ...], told: str
) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(told)):
        functional(family, shape)
