"""What an evaluation measures of a registered version is what the training's own evaluation measures of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import mms_sdk as mms
import small_kinds


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
