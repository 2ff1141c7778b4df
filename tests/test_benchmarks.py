"""What the measurements rest on: real pictures read right, and peers that train the same model."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from benchmarks import mfu
from benchmarks.data import Labelled, Pictures, random_dataset, read_idx
from benchmarks.loops import BATCH, ByHand, Ours, as_shares, first_params, own_scores
from benchmarks.table import Row, not_measured, plain

from mms_sdk.compute.models import MLP, ConvNet, Decoder

ROOT = Path(__file__).parents[1]
MODELS = {"mlp": MLP(num_classes=10, widths=(16, 8)), "cnn": ConvNet(num_classes=10, widths=(8, 16))}

KERAS = r"""
import sys
import numpy as np
from benchmarks.peer_loops import KerasLoop, refuse_other
from test_benchmarks import MODELS, small, told
model, data = MODELS[sys.argv[1]], small(None)
params, scores = told(model, data)
loop = KerasLoop(model, params, data, 0)
refuse_other("Keras", loop, params, scores, data.test.pictures)
assert loop.steps(1) > 0 and loop.steps(1) > 0
assert np.abs(loop.scores(data.test.pictures) - scores).max() > 1e-3
"""


def idx(path: Path, array: np.ndarray[Any, Any], *, kind: int = 8, short: int = 0) -> Path:
    header = bytes([0, 0, kind, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes()[: array.size - short]))
    return path


def small(workspace: Any) -> Pictures:
    rng = np.random.default_rng(3)

    def some(rows: int) -> Labelled:
        return Labelled(rng.integers(0, 256, (rows, 9, 12, 1), np.uint8), rng.integers(0, 10, rows, np.int32))

    return Pictures(workspace, "small", some(2 * BATCH), some(5))


def told(model: Any, data: Pictures) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    shape = data.train.pictures.shape[1:]
    params = first_params(model, shape, seed=0)
    return params, np.asarray(own_scores(model, shape)(params, as_shares(data.test.pictures), None))


def test_an_idx_file_is_read_as_the_array_that_was_written(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (3, 4, 5), np.uint8)

    np.testing.assert_array_equal(read_idx(idx(tmp_path / "pictures.gz", pictures)), pictures)


def test_an_idx_file_of_other_values_or_cut_short_is_refused(tmp_path: Path) -> None:
    pictures = np.zeros((3, 4), np.uint8)

    with pytest.raises(ValueError, match="begins with 0, 0, 8"):
        read_idx(idx(tmp_path / "floats.gz", pictures, kind=13))
    with pytest.raises(ValueError, match="holds 11 values"):
        read_idx(idx(tmp_path / "short.gz", pictures, short=1))


def test_what_was_not_measured_says_what_it_needs_and_misses_no_target() -> None:
    row = not_measured("a loop", "pip install torch")

    assert "pip install torch" in plain([row, Row(what="b", mms="1", beside="2", ratio=0.5, target=">= 1.0")])
    assert row.met == ""
    assert json.loads(json.dumps(row.told(), allow_nan=False))["ratio"] is None


@pytest.mark.parametrize("name", MODELS)
def test_the_torch_loop_trains_the_same_model(name: str) -> None:
    pytest.importorskip("torch", reason="needs torch: pip install torch")
    from benchmarks.peer_loops import TorchLoop, refuse_other

    model, data = MODELS[name], small(None)
    params, scores = told(model, data)
    loop = TorchLoop(model, params, data, 0)

    refuse_other("torch", loop, params, scores, data.test.pictures)  # trying formats has changed nothing
    assert loop.steps(3) > 0
    assert np.abs(loop.scores(data.test.pictures) - scores).max() > 1e-3
    with pytest.raises(ValueError, match="its scores are"):
        refuse_other("torch", loop, params, scores, data.test.pictures)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_keras_loop_trains_the_same_model(name: str) -> None:
    if importlib.util.find_spec("keras") is None:  # importing it here would choose another backend than JAX
        pytest.skip("needs keras: pip install keras")
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "src")))
    environment = {**os.environ, "PYTHONPATH": paths, "JAX_NUMPY_RANK_PROMOTION": "allow"}

    done = subprocess.run(
        [sys.executable, "-c", KERAS, name], env=environment, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr


def test_the_loop_by_hand_and_fit_begin_with_the_same_values_and_take_turns(tmp_path: Path) -> None:
    model, data = MODELS["mlp"], random_dataset(tmp_path, rows=3 * BATCH, shape=(4, 4, 1))
    params = first_params(model, (4, 4, 1), seed=7)
    ours = Ours(model, data, epochs=1, seed=7)
    by_hand = ByHand(params, own_scores(model, (4, 4, 1)), data, seed=7)

    begun = ours.fit.program.init().params
    jax.tree.map(np.testing.assert_array_equal, dict(begun), params)
    assert ours.steps(2) > 0
    assert by_hand.steps(5) > 0
    ours.close()
    by_hand.close()


@pytest.mark.slow
def test_what_is_measured_on_a_gpu_runs_tiny_here(tmp_path: Path) -> None:
    model = Decoder(vocab_size=300, width=32, layers=1, heads=2)

    steps, share = mfu.rows(tmp_path, quick=True, model=model, length=16, batch=8, turn=1)

    assert "tokens/s" in steps.mms
    assert share.ratio > 0
    assert share.target == ""
