"""What is to be planned: a model with its task, its data as numbers, and a target; traced from shapes, never run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mms_sdk.compute.data.load import Pictures
from mms_sdk.compute.data.preprocess.pipeline import Pipeline
from mms_sdk.compute.models import functional as models
from mms_sdk.compute.models.functional import Arrays, Functional
from mms_sdk.compute.planning.devices import DEVICES, Target
from mms_sdk.compute.planning.operations import Operations, operations
from mms_sdk.compute.planning.plan import Options
from mms_sdk.compute.sharding.mesh import mesh_sizes
from mms_sdk.compute.training.program import Program
from mms_sdk.errors import InvalidRequest, MmsError, SplitNotFound
from mms_sdk.storage.snapshots import OpenSnapshot

if TYPE_CHECKING:
    from mms_sdk.compute.training.trainer import Trainer


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
            raise SplitNotFound(f"{self.snapshot.ref} has no rows in split 'train'; its splits are {splits}")
        return splits["train"]

    @cached_property
    def program(self) -> Program:
        """The program, on no device at all."""
        import optax

        pipeline = Pipeline.of(self.trainer.preprocess)
        shape = Pictures(self.snapshot, np.empty(0, np.int64), pipeline).shape
        labels = self.trainer.task.check(self.snapshot)
        pipeline = _fitted_on_noise(pipeline, shape)
        return Program(
            model=models.functional(self.trainer.model, pipeline.device_shape(shape)),
            task=self.trainer.task,
            optimizer=self.trainer.optimizer or optax.adamw(1e-3),
            pipeline=pipeline,
            rules=self.trainer.rules,
            mesh=abstract_mesh(mesh_sizes(self.trainer.mesh, self.target.count)),
            seed=self.trainer.seed,
            input_shape=shape,
            num_classes=len(labels),
        )

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

        program = replace(self.program, model=self.model(options))
        state = self.program.abstract

        def loss(params: Arrays, rest: Arrays, batch: Any, key: Any) -> tuple[Any, Any]:
            inputs, labels, weight = batch
            outputs, rest = program._forward(params, rest, inputs, key)
            sums = program.task.sums(outputs, labels, weight)
            return sums["loss"] / sums["weight"], (rest, sums)

        key = jax.eval_shape(lambda: jax.random.key(0))
        gradient = jax.value_and_grad(loss, has_aux=True)
        traced = operations(jax.make_jaxpr(gradient)(state.params, state.rest, self.batch(rows), key))
        return Traced(traced, dict(zip(sorted(state.params), traced.arguments, strict=False)))

    def batch(self, rows: int, sharding: Any = None) -> tuple[Any, Any, Any]:
        """Shapes of inputs, labels and weights of a batch."""
        import jax

        return (
            jax.ShapeDtypeStruct((rows, *self.program.input_shape), np.uint8, sharding=sharding),
            jax.ShapeDtypeStruct((rows,), np.int32, sharding=sharding),
            jax.ShapeDtypeStruct((rows,), np.float32, sharding=sharding),
        )

    def model(self, options: Options) -> Functional:
        """The model with another precision, and with remat: its own, if the family has that option."""
        made = self.program.model
        if options.remat:
            made = self._with_remat(made)
        return made if options.precision == "float32" else _in_half(made)

    def _with_remat(self, made: Functional) -> Functional:
        import jax

        own: Any = self.trainer.model
        if is_dataclass(own) and not isinstance(own, type) and any(each.name == "remat" for each in fields(own)):
            return models.functional(
                replace(own, remat=True), self.program.pipeline.device_shape(self.program.input_shape)
            )
        saved = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        return Functional(init=made.init, apply=jax.checkpoint(made.apply, policy=saved))


def abstract_mesh(sizes: Mapping[str, int]) -> Any:
    """A mesh without devices, which does where arrays are only described."""
    from jax.sharding import AbstractMesh, AxisType

    return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def _fitted_on_noise(pipeline: Pipeline, shape: tuple[int, ...]) -> Pipeline:
    # What a step measures is a number in the program, and takes as much whatever it is; the data is not read for it.
    noise = np.random.default_rng(0).integers(0, 256, (2, *shape), dtype=np.uint8)
    return pipeline.fit([noise])


def _in_half(made: Functional) -> Functional:
    import jax.numpy as jnp

    def half(value: Any) -> Any:
        return value.astype(jnp.bfloat16) if value.dtype == jnp.float32 else value

    def apply(params: Arrays, rest: Arrays, batch: Any, key: Any) -> tuple[Any, Arrays]:
        outputs, changed = made.apply({path: half(value) for path, value in params.items()}, rest, half(batch), key)
        return outputs.astype(jnp.float32), changed

    return Functional(init=made.init, apply=apply)
