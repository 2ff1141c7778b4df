"""The model families: shapes, the maximum over windows, and their names."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from mms_sdk.compute.models import MLP, ConvNet, by_name
from mms_sdk.compute.models.convnet import halve
from mms_sdk.compute.models.registry import FAMILIES
from mms_sdk.errors import InvalidRequest


@pytest.mark.parametrize("size", [(2, 2), (8, 6), (7, 9)])
def test_halving_equals_max_pooling_and_so_does_its_gradient(size: tuple[int, int]) -> None:
    x = jax.random.normal(jax.random.key(0), (3, *size, 5))

    def pooled(x: jax.Array) -> jax.Array:
        return nnx.max_pool(x, (2, 2), (2, 2))

    np.testing.assert_array_equal(halve(x), pooled(x))
    ours, theirs = (jax.jit(jax.grad(lambda x, f=f: (f(x) ** 2).sum()))(x) for f in (halve, pooled))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 1)])
def test_a_picture_of_one_pixel_a_side_is_not_halved(size: tuple[int, int]) -> None:
    x = np.ones((2, *size, 3), np.float32)

    assert halve(x) is x


@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 8, 1), (15, 10, 3)])
@pytest.mark.parametrize("family", [MLP(num_classes=7), ConvNet(num_classes=7, widths=(8, 16))])
def test_a_family_gives_one_score_a_class_for_pictures_of_any_size(
    family: MLP | ConvNet, shape: tuple[int, ...]
) -> None:
    scores = nnx.eval_shape(lambda: family.build(shape, rngs=nnx.Rngs(0))(np.ones((2, *shape), np.float32)))

    assert scores.shape == (2, 7)


def test_a_convnet_gives_a_row_the_same_scores_whatever_stands_beside_it() -> None:
    module = nnx.jit(lambda: ConvNet(num_classes=3, widths=(8,)).build((6, 6, 1), rngs=nnx.Rngs(0)))()
    module.eval()
    scores = nnx.jit(module)
    rows = np.random.default_rng(0).normal(size=(4, 6, 6, 1)).astype(np.float32)

    alone = np.concatenate([scores(row[None]) for row in rows])

    np.testing.assert_allclose(scores(rows), alone, atol=1e-5)


def test_an_mlp_equals_its_matrix_products_written_out() -> None:
    module = MLP(num_classes=3, widths=(4, 5)).build((2, 3, 1), rngs=nnx.Rngs(0))
    rows = np.random.default_rng(0).normal(size=(6, 2, 3, 1)).astype(np.float32)

    hidden = rows.reshape(6, 6)
    for layer in module.layers:
        hidden = np.maximum(hidden @ np.asarray(layer.kernel) + np.asarray(layer.bias), 0)
    expected = hidden @ np.asarray(module.head.kernel) + np.asarray(module.head.bias)

    np.testing.assert_allclose(module(rows), expected, rtol=1e-5, atol=1e-6)


def test_a_family_is_found_by_its_name_and_others_are_listed() -> None:
    assert by_name("convnet", num_classes=3, widths=(8,)) == ConvNet(num_classes=3, widths=(8,))
    assert by_name("mlp", num_classes=2) == MLP(num_classes=2)
    with pytest.raises(InvalidRequest, match=r"'convnet', .*'mlp', .*; got 'resnets'"):
        by_name("resnets")


@pytest.mark.parametrize("name", FAMILIES)
def test_the_page_of_families_has_a_row_with_every_option(name: str) -> None:
    family = FAMILIES[name]
    page = (Path(__file__).parents[3] / "docs" / "model-families.md").read_text()
    (row,) = (line for line in page.splitlines() if line.startswith(f"| `{name}`, `{family.__name__}`"))
    told = set(re.findall(r"`(\w+)", row))

    options = {field.name for field in fields(family)} - {"init_from"}

    assert options <= told
