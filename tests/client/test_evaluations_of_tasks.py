"""What an evaluation measures of a registered version is what the training's own evaluation measures of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mms_sdk as mms
import small_kinds
from mms_sdk.schema.dataset import Column
from mms_sdk.storage.workspace import Workspace


@pytest.mark.parametrize(
    ("kind", "options", "names"),
    [
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

        assert version.record.card.threshold == 0.4
        wanted = result.evaluate("test")
        assert told.metrics["accuracy"].value == pytest.approx(wanted["test/accuracy"])
        assert "a class counts as said from a probability of 0.4" in told.notes
