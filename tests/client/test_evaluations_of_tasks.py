"""What an evaluation measures of a registered version is what the training's own evaluation measures of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mms_sdk as mms
import small_kinds
from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.dataset import Column
from mms_sdk.storage.workspace import Workspace

FORECAST: dict[str, Any] = {
    "task": mms.Forecasting(horizon=2, quantiles=(0.1, 0.5, 0.9)),
    "model": mms.models.PatchTST(horizon=2, quantiles=3, patch=2, stride=1, width=8, layers=1, heads=2, norm="layer"),
    "preprocess": [mms.series.Window(8), mms.series.Standardize()],
}
# One batch holds all rows that are compared with one another.
EMBEDDING: dict[str, Any] = {
    "task": mms.Embedding(),
    "model": mms.models.MLP(num_classes=4, widths=(8,)),
    "batch_size": 32,
}
LANGUAGE: dict[str, Any] = {
    "task": mms.LanguageModelling(),
    "model": mms.models.Decoder(vocab_size=259, width=16, layers=1, heads=2),
}
COPY: dict[str, Any] = {"task": mms.Reconstruction(), "model": mms.models.MLP(num_classes=6, widths=(8,))}


@pytest.mark.parametrize(
    ("kind", "options", "names"),
    [
        pytest.param("series", FORECAST, {"mae": "mae", "rmse": "rmse", "loss": "pinball"}, marks=pytest.mark.slow),
        ("embedding", EMBEDDING, {"recall": "recall_at_1"}),
        pytest.param(
            "text",
            LANGUAGE,
            {"loss": "loss", "accuracy": "token_accuracy", "perplexity": "perplexity"},
            marks=pytest.mark.slow,
        ),
        ("embedding", COPY, {"mae": "mae"}),
        ("text", {}, {"accuracy": "accuracy", "loss": "log_loss"}),
        (
            "table",
            {"task": mms.Regression(target="legs"), "model": mms.models.MLP(num_classes=1, widths=(16,))},
            {"mae": "mae", "rmse": "rmse"},
        ),
    ],
)
def test_an_evaluation_agrees_with_the_trainers(
    tmp_path: Path, kind: str, options: dict[str, Any], names: dict[str, str]
) -> None:
    small_kinds.make(tmp_path / "ws", kind).workspace.close()
    with mms.connect(workspace=tmp_path / "ws") as ws:
        result = small_kinds.trainer(kind, epochs=2, **options).fit(ws.datasets.get(kind), progress="none")
        version = ws.models.register("model", result.best)

        told = ws.evaluate(version, data=f"{kind}/test", resamples=100, progress=False)

        wanted = result.evaluate("test")
        assert told.rows == small_kinds.ROWS["test"]
        for name, ours in names.items():
            assert told.metrics[ours].value == pytest.approx(wanted[f"test/{name}"], rel=1e-4), name
        assert told.record == version.evaluations[0].record
        assert f"evaluation of {version.ref}" in told._repr_html_()
        assert next(iter(names.values())) in str(told)
        assert told.save(tmp_path / "report.json").stat().st_size


@pytest.mark.slow
def test_two_forecasts_are_compared_if_they_are_of_as_many_steps(tmp_path: Path) -> None:
    small_kinds.make(tmp_path / "ws", "series").workspace.close()
    with mms.connect(workspace=tmp_path / "ws") as ws:
        data = ws.datasets.get("series")
        for horizon in (2, 2, 3):
            options = {
                "task": mms.Forecasting(horizon=horizon),
                "model": mms.models.PatchTST(horizon=horizon, patch=2, stride=1, width=8, layers=1, heads=2),
            }
            trained = small_kinds.trainer("series", epochs=1, **options).fit(data, progress="none")
            ws.models.register("series", trained)

        told = ws.evaluate("series@1", data="series/test", against="series@2", slices="label", resamples=100)

        assert told.comparison is not None
        assert {each.value for each in told.comparison.differences.values()} == {0.0}
        assert [each.step for each in told.record.steps] == [1, 2]
        assert sum(each.rows for each in told.slices) == told.rows == 30
        assert "series.standardize" in told.notes[0]
        assert "val/loss" in repr(ws.models.list())
        assert "<model series@1: forecasting; " in repr(ws.models.get("series@1"))
        with pytest.raises(InvalidRequest, match="series@1 and series@3 do not"):
            ws.evaluate("series@1", data="series/test", against="series@3", resamples=100, progress=False)


def test_several_labels_are_said_from_the_threshold_of_the_training(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(sum(small_kinds.ROWS.values()), 3)).astype(np.float32)
    columns = (
        Column(name="vector", kind="embedding", dtype="float32", shape=(3,)),
        Column(name="tags", kind="embedding", dtype="float32", shape=(3,), labels=("ant", "bee", "cat")),
    )
    values = {"vector": vectors, "tags": (vectors > 0).astype(np.float32)}
    small_kinds.write(Workspace(tmp_path / "ws"), "tagged", columns, values).workspace.close()
    task = mms.MultiLabel(target="tags", threshold=0.4)
    with mms.connect(workspace=tmp_path / "ws") as ws:
        trainer = small_kinds.trainer("embedding", task=task, inputs=("vector",), epochs=1)
        result = trainer.fit(ws.datasets.get("tagged"), progress="none")
        version = ws.models.register("model", result.best)

        told = ws.evaluate(version, data="tagged/test", resamples=100, progress=False)

        assert version.record.card.options["threshold"] == 0.4
        wanted = result.evaluate("test")
        assert told.metrics["accuracy"].value == pytest.approx(wanted["test/accuracy"])
        assert "a class counts as said from a probability of 0.4" in told.notes
