"""`mms demo`: the main job on real pictures, through the public SDK only, told as a short story."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mms_sdk as mms
from mms_sdk.client.workspace import WorkspaceClient
from mms_sdk.compute.training.trainer import suited_batch_size
from mms_sdk.errors import MissingExtra
from mms_sdk.schema.names import suggest_name
from mms_sdk.settings import HOME_WORKSPACE
from mms_sdk.storage import files


def write_digits(folder: Path) -> None:
    """Writes scikit-learn's 1,797 handwritten digits (8×8, UCI) as PNG files by class, and eight files to be found.

    Two files do not decode, five are copies, one has another size than all others.

    Args:
        folder: Made, whole or not at all; if it is there, it stays as it is.

    Raises:
        MissingExtra: scikit-learn is not installed.
        StorageFull, NotWritable: It cannot be written.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra("scikit-learn", extra="demo") from error
    if folder.is_dir():
        return
    with files.writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            _write_digits(draft, load_digits())
            if not folder.is_dir():  # another process may have written them meanwhile
                draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _write_digits(draft: Path, digits: Any) -> None:
    import numpy as np
    from PIL import Image

    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = draft / str(label) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(pixels * 255 / 16).astype(np.uint8)).save(path)
    (draft / "3" / "notes.png").write_text("this is no picture")
    (draft / "4" / "half.png").write_bytes((draft / "4" / "0004.png").read_bytes()[:60])
    for label in range(5):
        first = min((draft / str(label)).glob("0*.png"))
        shutil.copy(first, first.with_name(f"copy-of-{first.name}"))
    Image.new("L", (24, 16), 128).save(draft / "5" / "scan.png")


def run_demo(workspace: WorkspaceClient, *, data: Path | None, epochs: int, quiet: bool) -> dict[str, Any]:
    """Runs the main job.

    Args:
        workspace: An embedded workspace.
        data: A folder with one sub-folder of pictures for each class; handwritten digits if left out.
        epochs: Passes over the training pictures, at most.
        quiet: Print nothing.

    Returns:
        What happened, as JSON: references, counts, accuracies, seconds and places.
    """
    import optax

    story = _Story(quiet)
    name = "digits" if data is None else suggest_name(data.expanduser().resolve().name)
    folder = data.expanduser() if data is not None else workspace.folder / "examples" / "digits"
    if data is None:
        write_digits(folder)
    seen = {dataset.name: dataset for dataset in workspace.datasets.list()}
    if name in seen:
        story.tell("found", f"{seen[name].ref} from an earlier run; what is new in the folder is added to it")

    dataset = workspace.datasets.ingest(
        name,
        folder,
        clean=[mms.drop_unreadable(), mms.drop_duplicates(), mms.drop_odd_sizes()],
        split=mms.Split(seed=0),
    )
    report = dataset.cleaning
    assert report is not None
    story.tell("collect", f"{report.found:,} files in {folder}; {report.already_present:,} of them known already")
    for step in report.steps:
        first = f", e.g. {step.examples[0].source}: {step.examples[0].reason}" if step.examples else ""
        story.tell("clean", f"{step.step} dropped {step.dropped}{first}")
    for note in report.notes:
        story.tell("", note)
    splits = ", ".join(f"{rows:,} to {split}" for split, rows in dataset.splits.items())
    story.tell("split", f"{dataset.ref}: {dataset.rows:,} pictures of {dataset.num_classes} classes; {splits}")

    trainer = _trainer(dataset, optax, epochs)
    augmentation = " and ".join(type(step).__name__ for step in trainer.preprocess if "random" in step.name)
    story.tell("", f"{trainer.model} on {dataset.splits['train']:,} pictures, varied by {augmentation}")
    result = trainer.fit(dataset, progress="none" if quiet else "auto")
    story.tell("train", f"{result.mesh}; {result.parameters:,} parameters, {result.steps:,} steps; {result.stopped}")

    metrics = result.evaluate("test")
    story.tell("evaluate", f"test accuracy {metrics['test/accuracy']:.4f} on {dataset.splits['test']:,} pictures")
    frequent = max(dataset.classes, key=lambda label: dataset.classes[label])
    chance = dataset.classes[frequent] / dataset.rows
    if metrics["test/accuracy"] < chance + (1 - chance) / 4:
        story.tell("", f"which is poor: always answering {frequent!r} would be right in {chance:.0%} of the cases;")
        story.tell("", "more pictures of each class help most")
    version = workspace.models.register(name, result.best, metrics=metrics)
    story.tell("register", f"{version.ref}: weights, StableHLO, preprocessing and labels; no code")

    deployment = workspace.deployments.create(name, model=version.ref, max_batch=8)
    picture = _a_test_picture(dataset, folder)
    began = time.perf_counter()
    prediction = deployment.predict(picture, top=3)
    seconds = time.perf_counter() - began
    story.tell(
        "serve", f"POST {deployment.path} with {picture.relative_to(folder)} answers in {seconds * 1000:.1f} ms:"
    )
    ranked = [{"label": label, "score": round(score, 4)} for label, score in prediction.top(3)]
    story.tell("", json.dumps({"ranked": ranked}))

    to = result.folder / "predictions.parquet"
    bulk = workspace.predict(version.ref, data=f"{dataset.ref}/test", to=to)
    told = f", accuracy {bulk.accuracy:.4f}" if bulk.accuracy is not None else ""
    story.tell("predict", f"{bulk.rows:,} rows with ranked classes into {bulk.path}{told}")
    story.end(workspace, version.ref, picture)
    return {
        "dataset": dataset.ref,
        "rows": dataset.rows,
        "cleaning": {step.step: step.dropped for step in report.steps},
        "splits": dataset.splits,
        "model": version.ref,
        "metrics": version.metrics,
        "prediction": ranked,
        "predictions": str(bulk.path),
        "predicted_rows": bulk.rows,
        "pictures": str(folder),
        "checkpoint": str(result.best.path),
        "artifact": str(version.location),
        "seconds": story.seconds,
    }


def _trainer(dataset: mms.Dataset, optax: Any, epochs: int) -> mms.Trainer:
    shape = dataset.picture_shape
    batch_size = suited_batch_size(dataset.splits["train"])
    steps = epochs * -(-dataset.splits["train"] // batch_size)
    preprocess: list[Any]
    if shape is not None and max(shape) <= 32:
        preprocess = [mms.image.Normalize(), mms.image.RandomShift(1), mms.image.RandomRotate(10)]
        widths: tuple[int, ...] = (32, 64)
    else:
        preprocess = [mms.image.Resize(64), mms.image.Normalize(), mms.image.RandomShift(4), mms.image.RandomFlip()]
        widths = (16, 32, 64, 128)
    return mms.Trainer(
        model=mms.models.ConvNet(num_classes=dataset.num_classes, widths=widths),
        optimizer=optax.adamw(mms.warmup_cosine(5e-3, steps=steps)),
        preprocess=preprocess,
        mesh={"data": -1},
        batch_size=batch_size,
        epochs=epochs,
        stop=mms.EarlyStopping("val/loss", patience=10),
        checkpoint=mms.Checkpoints(best="val/loss", keep=1),
    )


def _a_test_picture(dataset: mms.Dataset, folder: Path) -> Path:
    rows = dataset.open()
    row = rows.split_rows("test")[:1]
    source: bytes = rows.gather("source", row)[0]
    return folder / source.decode()


def _short(path: Path) -> str:
    return min(str(path), os.path.relpath(path), key=len)


class _Story:
    """Prints one line for each thing that happened, with the seconds since the one before."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._began = self._last = time.monotonic()
        self.seconds: dict[str, float] = {}
        self._print("MMS demo: from a folder of pictures to a model that answers\n")

    def tell(self, what: str, text: str) -> None:
        now = time.monotonic()
        if what:
            self.seconds[what] = round(self.seconds.get(what, 0) + now - self._last, 3)
        self._last = now
        self._print(f"{now - self._began:6.1f} s  {what:<9} {text}")

    def end(self, workspace: WorkspaceClient, model: str, picture: Path) -> None:
        self.seconds["all"] = round(time.monotonic() - self._began, 3)
        name = model.partition("@")[0]
        mms_command = self._command(workspace)
        where = shlex.quote(_short(picture))
        self._print(f"\nDone in {self.seconds['all']:.0f} s. Everything lies in {workspace.where}.\nNext:")
        self._print(f"  {mms_command} predict {name} {where}")
        self._print(f"  {mms_command} serve {name}")
        self._print(f"  {mms_command} demo --data FOLDER      (your own pictures, one sub-folder for each class)")

    def _command(self, workspace: WorkspaceClient) -> str:
        own = Path(sys.executable).with_name("mms")
        command = "mms" if shutil.which("mms") or not own.exists() else shlex.quote(_short(own))
        # Said even where the variable is set: it may have been set for this process only.
        where = workspace.folder
        return command if where == HOME_WORKSPACE else f"MMS_WORKSPACE={shlex.quote(_short(where))} {command}"

    def _print(self, text: str) -> None:
        if not self._quiet:
            print(text, flush=True)
