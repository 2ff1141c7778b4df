"""A study of real training: metrics come by themselves, poor trials are ended, the best one is registered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mms_sdk as mms

SCRIPT = """
import optax
import mms_sdk as mms

params = {"lr": 1e-2, "width": 8} | mms.trial.params
ws = mms.connect()
trainer = mms.Trainer(
    model=mms.models.MLP(num_classes=2, widths=(params["width"],)),
    optimizer=optax.adamw(params["lr"]),
    epochs=3,
    batch_size=8,
)
result = trainer.fit(ws.datasets.get("shades"), progress="none")
"""


@pytest.fixture
def ws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[mms.WorkspaceClient]:
    rng = np.random.default_rng(0)
    for label, low in (("dark", 0), ("light", 128)):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(30):
            pixels = rng.integers(low, low + 128, (6, 6, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    with mms.connect(workspace=tmp_path / "ws") as opened:
        opened.datasets.ingest("shades", mms.ImageFolder("photos"))
        yield opened


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_best_of_several_trainings_is_registered(ws: mms.WorkspaceClient) -> None:
    space = {"lr": mms.Choice([1e-6, 1e-2]), "width": mms.Choice([8])}
    study = ws.tune(SCRIPT, space=space, metric="val/loss", sampler="grid", progress="none")

    assert study.state == "succeeded"
    assert study.best.params == {"lr": 1e-2, "width": 8}
    for trial in study.trials:
        trained = trial.result
        logged = trained.metrics()
        epochs = dict(zip(logged["epoch"].value, logged["val/loss"].value, strict=True))
        assert trial.reports == epochs
        assert list(epochs) == [1, 2, 3]
        assert trial.value == trained.result["metrics"]["val/loss"] == min(epochs.values())
    kept = [(ws.folder / "jobs" / trial.job.id / "model").is_dir() for trial in study.trials]
    assert kept == [False, True]

    version = ws.models.register("shades", study.best, metrics={"test/mine": 0.5})
    assert version.record.card.lineage.job == study.best.result.id
    assert version.metrics["val/loss"] == study.best.value
    assert version.metrics["test/mine"] == 0.5
    deployment = ws.deployments.create("shades", model=version.ref)
    assert deployment.predict("photos/light/0.png").top(1)[0][0] == "light"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_metric_that_training_does_not_have_is_named_beside_those_it_has(ws: mms.WorkspaceClient) -> None:
    with pytest.raises(mms.errors.JobFailed, match="no trial of 1 gave a value"):
        ws.tune(SCRIPT, space={"lr": mms.Choice([1e-2])}, metric="val/acuracy", trials=1, progress="none")
    (trial,) = ws.studies.list()[0].trials
    assert "without val/acuracy; what came was train/accuracy, train/loss, val/accuracy, val/loss" in repr(trial)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_training_that_is_pruned_ends_in_order(ws: mms.WorkspaceClient) -> None:
    script = SCRIPT.replace("epochs=3", "epochs=3 if params['lr'] > 1e-3 else 100_000")
    space = {"lr": mms.Choice([1e-2, 1e-6])}
    study = ws.tune(
        script, space=space, metric="val/loss", sampler="grid", pruner=mms.ASHA(reduction=2), progress="none"
    )
    good, poor = study.trials
    assert (good.state, poor.state) == ("complete", "pruned")
    assert poor.result.state == "cancelled"
    assert study.best.number == good.number
