"""What is to be planned: a model with its task, its data as numbers, and a target; traced from shapes, never run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mms_sdk.compute.data.kinds.rows import RowKind, input_columns, kind_of
from mms_sdk.compute.data.load import Targets, host_form, opened
from mms_sdk.compute.data.preprocess.pipeline import Pipeline, device_dtype
from mms_sdk.compute.data.preprocess.table import Encode
from mms_sdk.compute.models import functional as models
from mms_sdk.compute.models.functional import Arrays
from mms_sdk.compute.planning.devices import DEVICES, Target
from mms_sdk.compute.planning.operations import Operations, operations
from mms_sdk.compute.planning.plan import Options
from mms_sdk.compute.sharding.mesh import mesh_sizes
from mms_sdk.compute.training.precision import Precision
from mms_sdk.compute.training.program import Program
from mms_sdk.compute.training.step_options import StepOptions
from mms_sdk.errors import InvalidRequest, MmsError, SplitNotFound
from mms_sdk.schema.dataset import Column
from mms_sdk.storage.snapshots import OpenSnapshot

if TYPE_CHECKING:
    from mms_sdk.compute.training.trainer import Trainer


_FEW = 256


class Traced(NamedTuple):
    """Loss and gradient of the rows of one device.

    Attributes:
        operations: In order.
        params: Numbers of the values that are parameters, by path.
    """

    operations: Operations
    params: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run to plan.

    Attributes:
        trainer: Its options.
        snapshot: Of which only the description is read.
        target: What it is to run on.
        prices: Currency per device and hour, by device.
        compile: Whether to compile for a TPU rather than to estimate its memory.
    """

    trainer: Trainer
    snapshot: OpenSnapshot
    target: Target
    prices: Mapping[str, float]
    compile: bool
    _traces: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        known = ("local", *DEVICES)
        for name, price in self.prices.items():
            if name not in known:
                raise InvalidRequest(f"prices are for {', '.join(known)}, per device and hour; got {name!r}")
            if isinstance(price, bool) or not isinstance(price, int | float) or not 0 <= price < math.inf:
                raise InvalidRequest(f"a price is a number from 0, per device and hour; got {name}={price!r}")

    @property
    def rows(self) -> int:
        """Training rows, by the snapshot's description."""
        splits = dict(self.snapshot.record.splits)
        if not splits.get("train"):
            raise SplitNotFound(
                f"a plan is for rows of split 'train'; {self.snapshot.ref} has none, its splits are {splits}; "
                f"add rows, or split it anew"
            )
        return splits["train"]

    @cached_property
    def program(self) -> Program:
        """The program, on no device at all."""
        import optax

        from mms_sdk.compute.training.trainer import clipped

        trainer, task = self.trainer, self.trainer.task
        labels = task.check(self.snapshot)
        columns = input_columns(self.snapshot.record.columns, trainer.inputs, target=task.target)
        kind = kind_of(columns)
        pipeline = Pipeline.of(trainer.preprocess)
        if kind.name == "table" and not pipeline.host:
            pipeline = replace(pipeline, host=(Encode(),))
        pipeline = pipeline.fit_host(lambda: self._few(kind, columns))
        shape, dtype = host_form(pipeline, kind)
        pipeline = _fitted_on_noise(pipeline, shape, dtype)
        row = task.model_shape(pipeline.device_shape(shape))
        optimizer = trainer.optimizer or optax.adamw(1e-3)
        return Program(
            model=models.functional(trainer.model, row, dtype=device_dtype(dtype)),
            task=task,
            optimizer=optimizer if trainer.clip_norm is None else clipped(optimizer, trainer.clip_norm),
            pipeline=pipeline,
            rules=trainer.rules,
            mesh=abstract_mesh(mesh_sizes(axes_of(trainer.mesh), self.target.count)),
            seed=trainer.seed,
            input_shape=shape,
            input_dtype=dtype.name,
            inputs=tuple(column.name for column in columns),
            labels=labels,
            options=trainer._step_options(),
        )

    def _few(self, kind: RowKind, columns: Sequence[Column]) -> Iterator[Any]:
        # For steps whose shape is what they learn, such as a table's: a few rows say it. Others never ask.
        rows = self.snapshot.split_rows("train")[:_FEW]
        yield opened(kind, [self.snapshot.gather(column.name, rows) for column in columns])

    def on(self, mesh: Any) -> Program:
        """The program on another mesh; shapes are not traced again."""
        made = replace(self.program, mesh=mesh)
        vars(made)["abstract"] = self.program.abstract
        return made

    def trace(self, options: Options, rows: int) -> Traced:
        """Loss and gradient for so many rows at once, with the precision and remat of the options.

        Raises:
            InvalidRequest: The model cannot be traced.
        """
        key = rows, options.precision, options.remat
        if key not in self._traces:
            try:
                self._traces[key] = self._trace(options, rows)
            except MmsError:
                raise
            except Exception as error:  # whatever a model of somebody else's raises while it is traced
                told = str(error).strip().partition("\n")[0]
                raise InvalidRequest(
                    f"a model that is planned can be traced by JAX with a batch of {rows} rows on each device; this "
                    f"one raises {type(error).__name__}: {told}; run it once with jax.eval_shape to see where"
                ) from error
        traced: Traced = self._traces[key]
        return traced

    def _trace(self, options: Options, rows: int) -> Traced:
        import jax

        program = replace(self.program, options=self.step_options(options, accumulate=1))
        forward, state = program.options.rematerialised(program._forward), self.program.abstract
        learnt = {path: state.params[path] for path in program.options.learnt(state.params)}
        fixed = {path: value for path, value in state.params.items() if path not in learnt}

        def loss(learnt: Arrays, fixed: Arrays, rest: Arrays, batch: Any, key: Any) -> tuple[Any, Any]:
            inputs, labels, weight = batch
            outputs, rest, targets = forward({**fixed, **learnt}, rest, inputs, labels, key)
            sums = program.task.sums(outputs, targets, weight)
            return sums["loss"] / sums["weight"], (rest, sums)

        key = jax.eval_shape(lambda: jax.random.key(0))
        gradient = jax.value_and_grad(loss, has_aux=True)
        traced = operations(jax.make_jaxpr(gradient)(learnt, fixed, state.rest, self.batch(rows), key))
        return Traced(traced, dict(zip([*sorted(learnt), *sorted(fixed)], traced.arguments, strict=False)))

    def step_options(self, options: Options, *, accumulate: int) -> StepOptions:
        """The trainer's options of a step, with those of the plan."""
        precision = Precision(options.precision)
        return replace(self.program.options, precision=precision, accumulate=accumulate, remat=options.remat)

    def batch(self, rows: int, sharding: Any = None) -> tuple[Any, Any, Any]:
        """Shapes of inputs, labels and weights of a batch."""
        import jax

        targets = Targets(self.snapshot, np.empty(0, np.int64), self.trainer.task.target)
        return (
            jax.ShapeDtypeStruct((rows, *self.program.input_shape), self.program.input_dtype, sharding=sharding),
            jax.ShapeDtypeStruct((rows, *targets.shape), targets.dtype, sharding=sharding),
            jax.ShapeDtypeStruct((rows,), np.float32, sharding=sharding),
        )


def axes_of(mesh: Any) -> Mapping[str, int]:
    """Devices along each axis of what a trainer takes as its mesh."""
    if isinstance(mesh, Mapping):
        return mesh
    return {"data": -1} if isinstance(mesh, str) else dict(mesh.shape)


def abstract_mesh(sizes: Mapping[str, int]) -> Any:
    """A mesh without devices, which does where arrays are only described."""
    from jax.sharding import AbstractMesh, AxisType

    return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def _fitted_on_noise(pipeline: Pipeline, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Pipeline:
    # What a step measures is a number in the program, and takes as much whatever it is; the data is not read for it.
    noise = np.random.default_rng(0).integers(0, 256, (2, *shape)).astype(dtype)
    return pipeline.fit([noise])
