"""Model artefacts: what a version is made of, and none of it is code of its author.

```
model.json            card: signature, labels, host preprocessing, metrics, lineage
forward.stablehlo     `jax.export`: weights, batch → scores, with the device half of preprocessing inside
weights/              Orbax: arrays by path
MANIFEST.json         digest of every file; written last
```
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from mms_sdk.compute.data.kinds.rows import kind_of
from mms_sdk.compute.data.preprocess.pipeline import HostStep, to_json
from mms_sdk.compute.packages import installed
from mms_sdk.errors import Damaged, InvalidRequest
from mms_sdk.schema.dataset import Column
from mms_sdk.schema.model import ARTIFACT_VERSION, Lineage, ModelCard, Signature, TensorSpec
from mms_sdk.storage import files, manifest
from mms_sdk.storage.ids import now
from mms_sdk.storage.stores.local import LocalStore

if TYPE_CHECKING:
    from mms_sdk.compute.training.program import Program
    from mms_sdk.compute.training.tasks.base import Task
    from mms_sdk.compute.training.trainer import TrainedCheckpoint

PLATFORMS = ("cpu", "cuda", "tpu")
OUTPUT = "scores"
_PACKAGES = ("mms-sdk", "jax", "flax", "optax", "orbax-checkpoint", "zarr", "numpy")


def export_model(folder: Path, trained: TrainedCheckpoint, *, metrics: Mapping[str, float]) -> ModelCard:
    """Writes a checkpoint's model as a sealed artefact.

    Args:
        folder: An empty folder.
        trained: The checkpoint with its program.
        metrics: Kept in the card.

    Raises:
        StorageFull, NotWritable: It cannot be written; the folder then has no manifest and is no artefact.
    """
    import jax
    from orbax.checkpoint import v1 as ocp

    program, state = trained.program, trained.state
    params, rest = jax.device_get((program.served(state), state.rest))
    weights = {f"params/{path}": value for path, value in params.items()}
    weights |= {f"rest/{path}": value for path, value in rest.items()}

    def forward(weights: dict[str, Any], batch: Any) -> Any:
        own = {kind: _below(kind, weights) for kind in ("params", "rest")}
        return program.answers(own["params"], own["rest"], batch)

    shapes = {path: jax.ShapeDtypeStruct(value.shape, value.dtype) for path, value in weights.items()}
    (rows,) = jax.export.symbolic_shape("batch")
    batch = jax.ShapeDtypeStruct((rows, *program.served_shape), program.input_dtype)
    exported = jax.export.export(jax.jit(forward), platforms=PLATFORMS)(shapes, batch)
    (scores,) = exported.out_avals
    card = _card(trained, metrics, tuple(scores.shape[1:]))
    with files.writing(folder):
        ocp.save(folder / "weights", jax.tree.map(jax.numpy.asarray, weights))
        files.write_durable(folder / "forward.stablehlo", bytes(exported.serialize()))
        files.write_durable(
            folder / "model.json", orjson.dumps(card.model_dump(mode="json"), option=orjson.OPT_INDENT_2)
        )
    manifest.seal(folder)
    return card


def copy_model(source: Path, folder: Path, *, metrics: Mapping[str, float]) -> ModelCard:
    """Writes a copy of a sealed artefact, with further metrics in its card.

    Args:
        source: The artefact; it is verified as a whole.
        folder: An empty folder.
        metrics: Beside those that it has, and in place of those of the same names.

    Raises:
        InvalidRequest: A metric is no finite number.
        Damaged: The artefact is not what its manifest says.
        StorageFull, NotWritable: The copy cannot be written.
    """
    for name, value in metrics.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise InvalidRequest(f"the metrics of a version are finite numbers; got {name}={value!r}; leave it out")
    manifest.check(LocalStore(source), what=f"the model in {source}", content=True)
    card = read_card(source)
    card = card.model_copy(update={"metrics": {**card.metrics, **metrics}})
    for path in (each for each in sorted(source.rglob("*")) if each.is_file() and each.name != manifest.NAME):
        files.make_folder((folder / path.relative_to(source)).parent)
        files.copy(path, folder / path.relative_to(source))
    body = orjson.dumps(card.model_dump(mode="json"), option=orjson.OPT_INDENT_2)
    files.replace(folder / "model.json", body)
    manifest.seal(folder)
    return card


def read_card(folder: Path) -> ModelCard:
    """Reads an artefact's card.

    Raises:
        Damaged: It is not one, or of a newer format.
    """
    try:
        told = orjson.loads((folder / "model.json").read_bytes())
        version = told["artifact_version"]
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise Damaged(f"{folder} holds no readable model.json ({error}); export the model again") from error
    if version != ARTIFACT_VERSION:
        raise Damaged(f"{folder} has artefact version {version}; this MMS reads {ARTIFACT_VERSION}; upgrade mms-sdk")
    try:
        return ModelCard.model_validate(told)
    except ValueError as error:
        raise Damaged(f"{folder / 'model.json'} is not a model card: {error}") from error


def _card(trained: TrainedCheckpoint, metrics: Mapping[str, float], output: tuple[int, ...]) -> ModelCard:
    program = trained.program
    labels = program.task.check(trained.snapshot)
    columns, host = _as_served(program, tuple(trained.snapshot.column(name) for name in program.inputs))
    packages = installed()
    kind: Any = kind_of(columns).name  # one of those that the card allows
    return ModelCard(
        task=program.task.name,
        kind=kind,
        columns=tuple(column.model_copy(update={"labels": None}) for column in columns),
        target=program.task.target,
        options=_options(program.task),
        signature=Signature(
            inputs=(TensorSpec(name=kind, dtype=program.input_dtype, shape=program.served_shape),),
            outputs=(TensorSpec(name=OUTPUT, dtype="float32", shape=output),),
        ),
        host=tuple(to_json(step) for step in host),
        device=tuple(to_json(step) for step in program.pipeline.device),
        labels=labels,
        metrics=dict(metrics),
        chosen_by=trained.checkpoint.meta["chosen_by"],
        lineage=Lineage(
            dataset=trained.snapshot.ref,
            job=trained.job,
            step=trained.step,
            packages={name: packages[name] for name in _PACKAGES},
            trainer=trained.checkpoint.meta["options"],
        ),
        platforms=PLATFORMS,
        parameters=program.parameters(),
        created_at=now(),
    )


def _options(task: Task) -> dict[str, Any]:
    names: list[str] = [each.name for each in fields(task)] if is_dataclass(task) else []
    return {name: getattr(task, name) for name in names if _is_plain(getattr(task, name))}


def _is_plain(value: Any) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, tuple) else isinstance(value, str | int | float | None)


def _as_served(program: Program, columns: tuple[Column, ...]) -> tuple[tuple[Column, ...], tuple[HostStep, ...]]:
    # Who asks for a forecast has the steps before, and not those it is to say.
    host = tuple(program.task.at_serving(step) for step in program.pipeline.host)
    if host or program.served_shape == program.input_shape:
        return columns, host
    return tuple(column.model_copy(update={"shape": program.served_shape}) for column in columns), host


def _below(kind: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {path.removeprefix(f"{kind}/"): value for path, value in arrays.items() if path.startswith(f"{kind}/")}
