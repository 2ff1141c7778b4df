"""FTTransformer and TableMLP: equal to layers of PyTorch, with categories and what is missing."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from torch_weights import compiled

from mms_sdk.compute.models.fttransformer import FTTransformer
from mms_sdk.compute.models.functional import functional
from mms_sdk.compute.models.tablemlp import TableMLP
from mms_sdk.errors import InvalidRequest

CATEGORIES = (3, 5)
TRANSFORMER = FTTransformer(
    num_classes=2, categories=CATEGORIES, width=8, layers=2, heads=2, attention_dropout=0.0, dropout=0.0
)
PERCEPTRON = TableMLP(num_classes=2, categories=CATEGORIES, widths=(7, 6), embedding=4, dropout=0.0)
FAMILIES = pytest.mark.parametrize("family", [TRANSFORMER, PERCEPTRON], ids=["transformer", "perceptron"])


def rows() -> np.ndarray:
    numbers = np.random.default_rng(0).normal(size=(4, 3))
    codes = np.array([[0, 0], [2, 4], [1, 3], [2, 0]])
    return np.concatenate([numbers, codes], axis=1).astype(np.float32)


def unlike_at_the_start(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters with no zeros or ones left that would hide a mistake."""
    rng = np.random.default_rng(3)
    return {path: value + rng.uniform(0.1, 0.4, value.shape).astype(np.float32) for path, value in params.items()}


@pytest.mark.slow
def test_an_ft_transformer_equals_layers_of_pytorch() -> None:
    import torch
    from torch.nn import functional as f

    model = compiled(TRANSFORMER, (5,))
    params, rest = model.init(jax.random.key(0))
    params = unlike_at_the_start(params)
    x = rows()

    def tensor(path: str) -> Any:
        return torch.from_numpy(np.array(params[path]))

    def linear(out: Any, path: str) -> Any:
        return out @ tensor(f"{path}/kernel") + tensor(f"{path}/bias")

    def norm(out: Any, path: str) -> Any:
        return f.layer_norm(out, (8,), tensor(f"{path}/scale"), tensor(f"{path}/bias"), eps=1e-5)

    table = torch.split(tensor("features/columns/table/embedding"), CATEGORIES)
    codes = torch.from_numpy(x[:, 3:]).long()
    embedded = torch.stack([f.embedding(codes[:, column], table[column]) for column in range(2)], 1)
    numbers = torch.from_numpy(x[:, :3, None]) * tensor("features/weight")
    out = torch.cat([numbers, embedded], 1) + tensor("features/bias")
    out = torch.cat([tensor("features/cls").expand(4, 1, 8), out], 1)
    for block in range(2):
        below = f"features/blocks/{block}"
        inner = norm(out, f"{below}/attention_norm") if block else out
        weights = torch.cat([tensor(f"{below}/attention/{name}/kernel").T for name in ("query", "key", "value")])
        biases = torch.cat([tensor(f"{below}/attention/{name}/bias") for name in ("query", "key", "value")])
        inner = inner.transpose(0, 1)
        attended, _ = f.multi_head_attention_forward(
            inner, inner, inner, 8, 2, weights, biases, None, None, False, 0.0,
            tensor(f"{below}/attention/out/kernel").T, tensor(f"{below}/attention/out/bias"), training=False,
        )  # fmt: skip
        out = out + attended.transpose(0, 1)
        inner = norm(out, f"{below}/feed_forward_norm")
        gated = linear(inner, f"{below}/feed_forward/up") * f.relu(linear(inner, f"{below}/feed_forward/gate"))
        out = out + linear(gated, f"{below}/feed_forward/down")
    expected = linear(f.relu(norm(out[:, 0], "head/norm")), "head/linear").numpy()

    ours, _ = model.apply(params, rest, x, None)
    print("FT-Transformer: largest difference", np.abs(ours - expected).max(), "of", np.abs(expected).max())
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_a_perceptron_over_tables_equals_its_matrix_products_written_out() -> None:
    model = compiled(PERCEPTRON, (5,))
    params, rest = model.init(jax.random.key(0))
    params = unlike_at_the_start(params)
    x = rows()

    table = np.asarray(params["features/columns/table/embedding"])
    codes = x[:, 3:].astype(int)
    hidden = np.concatenate([x[:, :3], table[:3][codes[:, 0]], table[3:][codes[:, 1]]], axis=1)
    for layer in ("features/layers/0", "features/layers/1"):
        hidden = np.maximum(hidden @ np.asarray(params[f"{layer}/kernel"]) + np.asarray(params[f"{layer}/bias"]), 0)
    expected = hidden @ np.asarray(params["head/kernel"]) + np.asarray(params["head/bias"])

    ours, _ = model.apply(params, rest, x, None)
    print("TableMLP: largest difference", np.abs(ours - expected).max(), "of", np.abs(expected).max())
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


@FAMILIES
def test_a_missing_number_counts_as_the_value_learnt_for_its_column(family: Any) -> None:
    model = compiled(family, (5,))
    params, rest = model.init(jax.random.key(0))
    params["features/columns/missing"] = np.array([0.5, -1.5, 2.5], np.float32)
    gaps, filled = rows(), rows()
    gaps[0, 1] = gaps[2, 0] = gaps[2, 2] = np.nan
    filled[0, 1], filled[2, 0], filled[2, 2] = -1.5, 0.5, 2.5

    np.testing.assert_array_equal(model.apply(params, rest, gaps, None)[0], model.apply(params, rest, filled, None)[0])


def test_the_value_of_what_is_missing_is_learnt_where_something_is_missing() -> None:
    model = functional(PERCEPTRON, (5,))
    x = rows()
    x[:, 1] = np.nan

    @jax.jit
    def gradients(key: jax.Array) -> Any:
        params, rest = model.init(key)
        return jax.grad(lambda params: (model.apply(params, rest, x, None)[0] ** 2).sum())(params)

    learnt = gradients(jax.random.key(0))
    slope = np.asarray(learnt["features/columns/missing"])

    assert slope[1] != 0 and slope[0] == slope[2] == 0
    assert all(np.isfinite(value).all() for value in learnt.values())


@FAMILIES
@pytest.mark.parametrize(("column", "code"), [(3, 3), (3, -1), (4, 5), (4, np.nan)])
def test_a_code_that_its_category_does_not_have_is_no_number_instead_of_another_code(
    family: Any, column: int, code: float
) -> None:
    model = compiled_once(family)
    x = rows()
    x[1, column] = code

    scores = np.asarray(model(x))

    assert np.isnan(scores[1]).all() and np.isfinite(np.delete(scores, 1, axis=0)).all()


_MODELS: dict[Any, Any] = {}


def compiled_once(family: Any) -> Any:
    if family not in _MODELS:
        model = compiled(family, (5,))
        params, rest = model.init(jax.random.key(0))
        _MODELS[family] = lambda x: model.apply(params, rest, x, None)[0]
    return _MODELS[family]


@pytest.mark.parametrize("categories", [(), (3, 5, 2)])
@pytest.mark.parametrize("family", [FTTransformer, TableMLP])
def test_a_table_may_have_numbers_only_or_categories_only(family: Any, categories: tuple[int, ...]) -> None:
    model = functional(family(num_classes=2, categories=categories), (3,))

    params, rest = jax.eval_shape(model.init, jax.random.key(0))
    x = np.ones((2, 3), np.float32)
    scores, _ = jax.eval_shape(lambda params, rest: model.apply(params, rest, x, None), params, rest)

    assert scores.shape == (2, 2)
    assert ("features/columns/missing" in params) == (not categories)
    assert all(0 not in value.shape for value in params.values())


@pytest.mark.parametrize("family", [FTTransformer, TableMLP])
@pytest.mark.parametrize(
    ("options", "shape", "says"),
    [
        ({"num_classes": 0}, (3,), "num_classes is a whole number from 1; got num_classes=0"),
        ({"categories": (3, 0)}, (3,), r"1 to 16,777,216 codes, .* got categories=\(3, 0\)"),
        ({"categories": (2**24 + 1,)}, (3,), r"got categories=\(16777217,\)"),
        ({"dropout": -0.1}, (3,), "dropout is a share in"),
        ({"categories": (3, 5)}, (1,), r"the 2 category codes last; got \(1,\)"),
        ({}, (4, 4, 3), r"got \(4, 4, 3\)"),
    ],
)
def test_options_and_rows_that_do_not_fit_a_family_for_tables_are_refused(
    family: Any, options: dict[str, Any], shape: tuple[int, ...], says: str
) -> None:
    with pytest.raises(InvalidRequest, match=says):
        family(**{"num_classes": 2} | options).build(shape, rngs=None)
