"""The compiled side of a training run: state, step and evaluation as pure functions over flat arrays.

`(state, totals, batch) → (state, totals)`: the state is donated and flat, because JAX takes a tree apart and puts one
together in every call, which is a fifth of what a call costs; the totals are one small vector that the loop may look at
later. Everything random in step n comes from a key made of the seed and n.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from mms_sdk.compute.data.preprocess.pipeline import Pipeline
from mms_sdk.compute.models.functional import Arrays, Functional
from mms_sdk.compute.sharding.mesh import batch_sharding
from mms_sdk.compute.sharding.rules import PartitionRules
from mms_sdk.compute.training.tasks import Sums, Task
from mms_sdk.errors import InvalidRequest, MmsError

if TYPE_CHECKING:
    from jax.sharding import Mesh


Totals: TypeAlias = Any
"""Metric sums and the sum of weights over the rows seen so far: float32, shape (metrics + 1,)."""

Leaves: TypeAlias = tuple[Any, ...]
"""The arrays of a `State` in order, as the loop carries them."""


class State(NamedTuple):
    """Everything a step changes.

    Attributes:
        params: What is trained, by path.
        rest: Other state of the model, by path.
        opt: State of the optimiser.
        step: int32 scalar: steps taken.
    """

    params: Arrays
    rest: Arrays
    opt: Any
    step: Any


@dataclass(frozen=True, kw_only=True)
class Program:
    """A model, a task, an optimiser and preprocessing on a mesh.

    Attributes:
        model: As two pure functions.
        task: Loss and metrics.
        optimizer: An optax transformation.
        pipeline: Fitted preprocessing; its device part runs inside the step.
        rules: How parameters are divided.
        mesh: The devices.
        seed: Of initial values and of everything random.
        input_shape: Of one row as it reaches the device.
        input_dtype: Likewise.
        inputs: Names of the columns that a row is made of.
        num_classes: Scores that must come out.
    """

    model: Functional
    task: Task
    optimizer: Any
    pipeline: Pipeline
    rules: PartitionRules
    mesh: Mesh
    seed: int
    input_shape: tuple[int, ...]
    num_classes: int
    input_dtype: str = "uint8"
    inputs: tuple[str, ...] = ("image",)

    @property
    def target_column(self) -> str | None:
        """Name of the column that is to be answered; None for a task without."""
        return getattr(self.task, "target", "label")

    def init(self) -> State:
        """The state before the first step, made where it will lie."""
        import jax

        state: State = jax.jit(self._init, out_shardings=self.shardings)()
        return state

    def flat(self, state: State) -> Leaves:
        """A state as the step takes it."""
        import jax

        return tuple(jax.tree.leaves(state))

    def tree(self, leaves: Leaves) -> State:
        """A state as people and checkpoints take it."""
        import jax

        state: State = jax.tree.unflatten(jax.tree.structure(self.abstract), leaves)
        return state

    def zero_totals(self) -> Totals:
        """Sums over no rows."""
        import jax

        return jax.device_put(np.zeros(len(self._totals), np.float32), self._whole)

    def averages(self, totals: Totals, prefix: str) -> dict[str, float]:
        """Weighted means from sums, read from the devices; e.g. `{"val/loss": …, "val/accuracy": …}`."""
        told = dict(zip(self._totals, np.asarray(totals).tolist(), strict=True))
        weight = told.pop("weight") or 1.0
        return {f"{prefix}/{name}": value / weight for name, value in told.items()}

    @cached_property
    def step(self) -> Callable[[Leaves, Totals, Any, Any, Any], tuple[Leaves, Totals]]:
        """The compiled training step: state, totals, inputs, labels, weight → state, totals."""
        import jax

        return jax.jit(self._step, donate_argnums=0, out_shardings=(self.flat(self.shardings), self._whole))

    @cached_property
    def evaluate(self) -> Callable[[Arrays, Arrays, Totals, Any, Any, Any], Totals]:
        """The compiled evaluation: parameters, other state, totals, inputs, labels, weight → totals."""
        import jax

        return jax.jit(self._evaluate, out_shardings=self._whole)

    @cached_property
    def abstract(self) -> State:
        """Shapes and dtypes of the state.

        Raises:
            InvalidRequest: The model does not give one score a class.
        """
        import jax

        state: State = jax.eval_shape(self._init)
        row = jax.ShapeDtypeStruct((2, *self.input_shape), self.input_dtype)
        forward = partial(self._forward, key=None)
        try:
            output, _ = jax.eval_shape(forward, state.params, state.rest, row)
        except MmsError:
            raise
        except (TypeError, ValueError, IndexError) as error:  # what JAX, Flax and NumPy say of shapes that do not fit
            raise InvalidRequest(
                f"the model takes batches of shape (batch, {', '.join(map(str, self.input_shape))}) here and fails on "
                f"them: {error}; change the model, or begin preprocess with e.g. mms.image.Resize(64)"
            ) from error
        if output.shape != (2, self.num_classes):
            raise InvalidRequest(
                f"the model gives one score a class, shape (batch, {self.num_classes}); got {output.shape} for a batch "
                f"of 2; set its num_classes to {self.num_classes}"
            )
        return state

    @cached_property
    def shardings(self) -> State:
        """Where each array of the state lies."""
        import jax
        import optax
        from jax.sharding import NamedSharding, PartitionSpec

        abstract = self.abstract
        params = {
            path: NamedSharding(self.mesh, PartitionSpec(*self.rules.spec(path, value.shape, self.mesh)))
            for path, value in abstract.params.items()
        }
        whole = self._whole
        opt = optax.tree.map_params(
            self.optimizer, lambda _, sharding: sharding, abstract.opt, params, transform_non_params=lambda _: whole
        )
        return State(params, jax.tree.map(lambda _: whole, abstract.rest), opt, whole)

    @cached_property
    def batch_sharding(self) -> Any:
        """Where a batch lies."""
        return batch_sharding(self.mesh)

    def to_arrays(self, state: State, totals: Totals) -> dict[str, Any]:
        """The state as a tree of named arrays that any Orbax reads."""
        return {
            "params": state.params,
            "rest": state.rest,
            "opt": _named(state.opt),
            "step": state.step,
            "totals": totals,
        }

    def target(self) -> dict[str, Any]:
        """What `to_arrays` gives, as shapes with shardings: the target to restore onto."""
        import jax

        with_shardings = jax.tree.map(
            lambda value, sharding: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding),
            self.abstract,
            self.shardings,
        )
        totals = jax.ShapeDtypeStruct((len(self._totals),), np.float32, sharding=self._whole)
        return self.to_arrays(with_shardings, totals)

    def from_arrays(self, arrays: Mapping[str, Any]) -> tuple[State, Totals]:
        """State and totals from named arrays."""
        import jax

        leaves, tree = jax.tree_util.tree_flatten_with_path(self.abstract.opt)
        opt = jax.tree.unflatten(tree, [arrays["opt"][_key(path)] for path, _ in leaves])
        return State(dict(arrays["params"]), dict(arrays["rest"]), opt, arrays["step"]), arrays["totals"]

    def parameters(self) -> int:
        """Number of trained values."""
        return sum(int(np.prod(value.shape)) for value in self.abstract.params.values())

    @cached_property
    def _whole(self) -> Any:
        from jax.sharding import NamedSharding, PartitionSpec

        return NamedSharding(self.mesh, PartitionSpec())

    def _init(self) -> State:
        import jax
        import jax.numpy as jnp

        params, rest = self.model.init(jax.random.key(self.seed))
        return State(params, rest, self.optimizer.init(params), jnp.zeros((), jnp.int32))

    def _forward(self, params: Arrays, rest: Arrays, inputs: Any, key: Any) -> tuple[Any, Arrays]:
        import jax

        ours, theirs = (None, None) if key is None else jax.random.split(key)
        return self.model.apply(params, rest, self.pipeline.on_batch(inputs, ours), theirs)

    @property
    def _totals(self) -> tuple[str, ...]:
        return (*self.task.metrics, "weight")

    def _added(self, totals: Totals, sums: Sums) -> Totals:
        # One vector, not a dictionary of scalars: each array in and out of a step costs as much as a small kernel.
        import jax.numpy as jnp

        return totals + jnp.stack([sums[name] for name in self._totals])

    def _step(self, leaves: Leaves, totals: Totals, inputs: Any, labels: Any, weight: Any) -> tuple[Leaves, Totals]:
        import jax
        import jax.numpy as jnp
        import optax

        state = self.tree(leaves)
        key = jax.random.fold_in(jax.random.key(self.seed), state.step)

        def loss(params: Arrays) -> tuple[Any, tuple[Arrays, Sums]]:
            outputs, rest = self._forward(params, state.rest, inputs, key)
            sums = self.task.sums(outputs, labels, weight)
            return sums["loss"] / jnp.maximum(sums["weight"], 1), (rest, sums)

        grads, (rest, sums) = jax.grad(loss, has_aux=True)(state.params)
        updates, opt = self.optimizer.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        return self.flat(State(params, rest, opt, state.step + 1)), self._added(totals, sums)

    def _evaluate(self, params: Arrays, rest: Arrays, totals: Totals, inputs: Any, labels: Any, weight: Any) -> Totals:
        outputs, _ = self._forward(params, rest, inputs, None)
        return self._added(totals, self.task.sums(outputs, labels, weight))


def _named(tree: Any) -> dict[str, Any]:
    import jax

    return {_key(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _key(path: tuple[Any, ...]) -> str:
    import jax

    return str(jax.tree_util.keystr(path, simple=True, separator="/"))
