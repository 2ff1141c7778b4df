"""Forecasts from a dataset of series: learnt, kept as a version, and asked of a history of any length."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

from mms_sdk.compute.data.preprocess.series import Window
from mms_sdk.compute.inference.predictor import Predictor
from mms_sdk.compute.models import TCN, PatchTST
from mms_sdk.compute.sharding.mesh import make_mesh
from mms_sdk.compute.training.tasks import Forecasting
from mms_sdk.compute.training.trainer import Trainer
from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.dataset import SPLITS, Column
from mms_sdk.storage.changes import Addition
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.workspace import Workspace

LENGTH, HORIZON, ROWS = 32, 4, {"train": 120, "val": 40}


@dataclass(frozen=True)
class Waves:
    """Sines of a common period, at other phases and heights, with a little noise."""

    workspace: Workspace
    rows: list[Any]

    def open(self) -> OpenSnapshot:
        return self.workspace.dataset("waves").snapshot()


@pytest.fixture(scope="module")
def waves(tmp_path_factory: pytest.TempPathFactory) -> Waves:
    rng = np.random.default_rng(0)
    count = sum(ROWS.values())
    at = np.arange(LENGTH)[None] + rng.uniform(0, 8, count)[:, None]
    values = 3 + np.sin(at * 2 * np.pi / 8) + 0.02 * rng.normal(size=at.shape)
    rows = [row[rng.integers(0, 3) :].astype(np.float32)[:, None] for row in values]  # not all of one length
    columns = (
        Column(name="wave", kind="series", dtype="float32", shape=(None, 1)),
        Column(name="split", kind="split", dtype="uint8", labels=SPLITS),
    )
    workspace = Workspace(tmp_path_factory.mktemp("waves") / "workspace")
    dataset = workspace.open_or_create_dataset("waves")
    with dataset.writer(columns) as writer:
        writer.write({"wave": rows, "split": np.repeat([0, 1], list(ROWS.values())).astype(np.uint8)})
        part = writer.close()
    dataset.commit(Addition(parts=(part,), columns=columns, splits=ROWS), base=None, rebase=False)
    return Waves(workspace, rows)


def trainer(model: Any, **options: Any) -> Trainer:
    given = {"task": Forecasting(horizon=HORIZON), "preprocess": [Window(24)], "epochs": 12, "batch_size": 16}
    mesh: Any = make_mesh({"data": 1}, devices=jax.devices()[:1])
    return Trainer(model=model, optimizer=optax.adam(1e-2), mesh=mesh, **{**given, **options})


@pytest.mark.slow
def test_a_forecast_beats_the_last_value_and_is_the_same_from_a_version(waves: Waves, tmp_path: Path) -> None:
    result = trainer(TCN(horizon=HORIZON, widths=(16, 16, 16), dropout=0.0)).fit(waves, progress="none")

    after = np.stack([row[-HORIZON:, 0] for row in waves.rows[ROWS["train"] :]])
    last = np.stack([row[-HORIZON - 1, 0] for row in waves.rows[ROWS["train"] :]])
    assert result.history[-1]["val/mae"] < 0.5 * abs(after - last[:, None]).mean()

    folder = tmp_path / "model"
    folder.mkdir()
    result.last.export(folder)
    predictor = Predictor(folder, buckets=(1, 4))
    histories = [row[:-HORIZON] for row in waves.rows[ROWS["train"] :]]
    scores = predictor.scores(np.stack([predictor.prepare(history) for history in histories]))
    assert predictor.card.task == "forecasting"
    error = scores.reshape(after.shape) - after
    assert abs(error).mean() == pytest.approx(result.history[-1]["val/mae"], rel=1e-4)


@pytest.mark.slow
def test_quantiles_are_forecast_in_order_and_hold_about_their_share(waves: Waves) -> None:
    levels = (0.1, 0.5, 0.9)
    model = PatchTST(horizon=HORIZON, width=16, layers=1, heads=2, patch=4, stride=4, inner=32, quantiles=len(levels))
    result = trainer(model, task=Forecasting(horizon=HORIZON, quantiles=levels), epochs=20).fit(waves, progress="none")

    assert result.history[-1]["val/loss"] < result.history[0]["val/loss"]
    assert result.history[-1]["val/mae"] < 0.6


def test_a_model_of_another_horizon_is_refused(waves: Waves) -> None:
    with pytest.raises(InvalidRequest, match=r"gives \(4, 1, 1\) a row \(horizon, channels, quantiles\); got \(3, 1\)"):
        trainer(TCN(horizon=3, widths=(8,))).fit(waves, progress="none")
