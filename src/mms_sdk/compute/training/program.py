"""The compiled side of a training run: state, step and evaluation as pure functions over flat arrays.

`(state, totals, batch) → (state, totals)`: the state is donated and flat, because JAX takes a tree apart and puts one
together in every call, which is a fifth of what a call costs; the totals are one small vector that the loop may look at
later. Everything random in step n comes from a key made of the seed and n.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from mms_sdk.compute.data.preprocess.pipeline import Pipeline
from mms_sdk.compute.models.functional import Arrays, Functional
from mms_sdk.compute.sharding.mesh import batch_sharding, using
from mms_sdk.compute.sharding.rules import PartitionRules, Placement, placements
from mms_sdk.compute.training.lora import PREFIX as LORA
from mms_sdk.compute.training.precision import GROW_EVERY_STEPS
from mms_sdk.compute.training.step_options import StepOptions
from mms_sdk.compute.training.tasks import Sums, Task
from mms_sdk.errors import InvalidRequest, MmsError

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from jax.stages import Lowered


Totals: TypeAlias = Any
"""What a task counts, the sum of weights, and steps left out, so far: float32, shape (counted + 2,)."""

Leaves: TypeAlias = tuple[Any, ...]
"""The arrays of a `State` in order, as the loop carries them."""


class Step(Protocol):
    """A compiled training step."""

    def __call__(
        self, state: Leaves, totals: Totals, inputs: Any, labels: Any, weight: Any, /
    ) -> tuple[Leaves, Totals]:
        """The state and totals after a batch; the state that is given is donated."""

    def lower(self, state: Leaves, totals: Totals, inputs: Any, labels: Any, weight: Any, /) -> Lowered:
        """The program for arrays, or shapes with shardings, such as these; `.compile()` compiles it."""


class State(NamedTuple):
    """Everything a step changes.

    Attributes:
        params: Parameters of the model, and of a low-rank adaptation, by path; float32.
        rest: Other state of the model, by path.
        opt: State of the optimiser, which knows the parameters that are learnt.
        step: int32 scalar: steps taken.
        extra: What options keep: `ema/…`, averaged parameters; `loss_scale` and `good_steps` of fp16.
    """

    params: Arrays
    rest: Arrays
    opt: Any
    step: Any
    extra: Arrays


_EMA = "ema/"
# What mixtures of experts say of their routers, and its weight in the loss: Fedus et al. 2022, section 2.2, and Zoph et
# al. 2022 ("ST-MoE"), section 3.2.
_ROUTERS = {"balance_loss": 0.01, "router_z_loss": 0.001}
_LEFT_OUT = "left_out"


@dataclass(frozen=True, kw_only=True, eq=False)
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
        labels: Names of the classes or values that come out.
        options: How a step is taken.
    """

    model: Functional
    task: Task
    optimizer: Any
    pipeline: Pipeline
    rules: PartitionRules
    mesh: Mesh
    seed: int
    input_shape: tuple[int, ...]
    labels: tuple[str, ...]
    options: StepOptions = field(default_factory=StepOptions)
    input_dtype: str = "uint8"
    inputs: tuple[str, ...] = ("image",)

    @property
    def served_shape(self) -> tuple[int, ...]:
        """Shape of one row as a served model takes it: without what the task is to say."""
        return self.task.model_shape(self.input_shape)

    def init(self) -> State:
        """The state before the first step, made where it will lie; of given values each device takes its own part."""
        import jax

        where = {**self.shardings.params, **self.shardings.rest}
        given = {
            path: jax.make_array_from_callback(value.shape, where[path], value.__getitem__)
            for path, value in self.model.given.items()
        }
        state: State = jax.jit(self._init, out_shardings=self.shardings)(given)
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
        """Metrics from sums, read from the devices; e.g. `{"val/loss": …, "val/accuracy": …}`."""
        sums = dict(zip(self._totals, np.asarray(totals).tolist(), strict=True))
        return {f"{prefix}/{name}": value for name, value in self.task.averages(sums).items()}

    def searches(self, leaves: Leaves) -> bool:
        """Whether fp16 is still on its way down to a scale of the loss that fits."""
        scale = self.tree(leaves).extra.get("loss_scale")
        return scale is not None and float(scale) > 1

    def left_out(self, totals: Totals) -> int:
        """Steps that left the state as it was, because their loss or gradient was not finite."""
        return int(np.asarray(totals)[-1])

    @cached_property
    def step(self) -> Step:
        """The compiled training step: state, totals, inputs, labels, weight → state, totals."""
        import jax

        step: Step = jax.jit(self._step, donate_argnums=0, out_shardings=(self.flat(self.shardings), self._whole))
        return step

    @cached_property
    def several(self) -> Any:
        """Several training steps in one call: state, totals, inputs, labels, weight, how many → state, totals.

        Each of the arrays holds batches along its first dimension, the first of which are taken, as many as are asked
        for. That is a number and not a shape, so that one compilation serves every number, with the same bits.
        """
        import jax

        return jax.jit(self._several, donate_argnums=0, out_shardings=(self.flat(self.shardings), self._whole))

    @cached_property
    def evaluate(self) -> Callable[[Arrays, Arrays, Totals, Any, Any, Any], Totals]:
        """The compiled evaluation: `served` parameters, other state, totals, inputs, labels, weight → totals."""
        import jax

        return jax.jit(self._evaluate, out_shardings=self._whole)

    @cached_property
    def is_sound(self) -> Callable[[Leaves], Any]:
        """Compiled: whether every value that is learnt or averaged is finite."""
        import jax
        import jax.numpy as jnp

        def sound(leaves: Leaves) -> Any:
            state = self.tree(leaves)
            kept = [value for name, value in state.extra.items() if name.startswith(_EMA)]
            return jnp.stack([jnp.isfinite(value).all() for value in (*state.params.values(), *kept)]).all()

        return jax.jit(sound, out_shardings=self._whole)

    @cached_property
    def abstract(self) -> State:
        """Shapes and dtypes of the state.

        Raises:
            InvalidRequest: The model does not give one score a class.
        """
        import jax

        state: State = jax.eval_shape(self._beginning, *self.model.shapes)
        row = jax.ShapeDtypeStruct((2, *self.input_shape), self.input_dtype)
        forward = partial(self._forward, key=None)
        try:
            output, _, _ = jax.eval_shape(forward, state.params, state.rest, row, row)
        except MmsError:
            raise
        except (TypeError, ValueError, IndexError) as error:  # what JAX, Flax and NumPy say of shapes that do not fit
            raise InvalidRequest(
                f"the model takes batches of shape (batch, {', '.join(map(str, self.input_shape))}) here and fails on "
                f"them: {error}; change the model, or begin preprocess with e.g. mms.image.Resize(64)"
            ) from error
        self._refuse_other_outputs(getattr(output, "shape", None))
        return state

    @cached_property
    def shardings(self) -> State:
        """Where each array of the state lies."""
        import jax
        from jax.sharding import NamedSharding, PartitionSpec

        abstract = self.abstract
        params = {each.path: NamedSharding(self.mesh, PartitionSpec(*each.spec)) for each in self.placements}
        whole = self._whole
        opt = jax.tree_util.tree_map_with_path(partial(self._beside, params), abstract.opt)
        extra = {name: params.get(name.removeprefix(_EMA), whole) for name in abstract.extra}
        return State(params, jax.tree.map(lambda _: whole, abstract.rest), opt, whole, extra)

    def _beside(self, params: Mapping[str, Any], path: tuple[Any, ...], value: Any) -> Any:
        # What an optimiser keeps of a parameter, in its shape, lies where that lies, whatever groups it makes of them.
        for key in reversed(path):
            name = getattr(key, "key", None)
            if name in self.abstract.params and self.abstract.params[name].shape == value.shape:
                return params[name]
        return self._whole

    @cached_property
    def placements(self) -> list[Placement]:
        """Where each parameter lies, and who decided it.

        Raises:
            InvalidRequest: A rule matches nothing or cannot be followed.
        """
        model, params = self.model, self.abstract.params
        own = {path: value for path, value in params.items() if not path.startswith(LORA)}
        added = {path: value for path, value in params.items() if path.startswith(LORA)}
        return [
            *placements(own, self.rules, self.mesh, names=model.names, family=model.rules),
            *placements(added, PartitionRules(), self.mesh),
        ]

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
            "extra": state.extra,
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
        state = State(dict(arrays["params"]), dict(arrays["rest"]), opt, arrays["step"], dict(arrays["extra"]))
        return state, arrays["totals"]

    def served(self, state: State) -> Arrays:
        """The parameters that evaluation and serving use: averages where there are some, with adaptations added."""
        averaged = {path: state.extra.get(f"{_EMA}{path}", value) for path, value in state.params.items()}
        return averaged if self.options.lora is None else self.options.lora.merged(averaged)

    def answers(self, params: Arrays, rest: Arrays, batch: Any) -> Any:
        """What a served model answers.

        Args:
            params: As `served` gives them.
            rest: Other state of the model.
            batch: Rows as they reach the device, shape (batch, *input_shape), without what the task is to say.
        """
        outputs, _ = self._applied(params, rest, self.pipeline.on_batch(batch), None)
        return self.task.scores(outputs)

    def parameters(self) -> int:
        """Number of values in the model's parameters."""
        own = {path: value for path, value in self.abstract.params.items() if not path.startswith(LORA)}
        return sum(int(np.prod(value.shape)) for value in own.values())

    def learnt(self) -> int:
        """Number of values that are learnt."""
        return sum(int(np.prod(self.abstract.params[path].shape)) for path in self._learnt)

    @cached_property
    def _whole(self) -> Any:
        from jax.sharding import NamedSharding, PartitionSpec

        return NamedSharding(self.mesh, PartitionSpec())

    def _init(self, given: Arrays) -> State:
        import jax

        # What is replaced is never computed: the compiler finds that nobody asks for it.
        params, rest = (
            {path: given.get(path, value) for path, value in arrays.items()}
            for arrays in self.model.init(jax.random.key(self.seed))
        )
        return self._beginning(params, rest)

    def _beginning(self, params: Arrays, rest: Arrays) -> State:
        # The state with what the options and the optimiser add to a model's initial values.
        import jax
        import jax.numpy as jnp

        options = self.options
        if options.lora is not None:
            params = {**params, **options.lora.init(params, jax.random.fold_in(jax.random.key(self.seed), 1))}
        learnt = {path: params[path] for path in options.learnt(params)}
        extra: Arrays = {}
        if options.ema is not None:
            extra |= {f"{_EMA}{path}": value for path, value in learnt.items()}
        if options.precision.first_scale != 1:
            extra |= {"loss_scale": jnp.float32(options.precision.first_scale), "good_steps": jnp.int32(0)}
        return State(params, rest, self.optimizer.init(learnt), jnp.zeros((), jnp.int32), extra)

    @cached_property
    def _model(self) -> Functional:
        return self.model.frozen(self.options.is_frozen)

    @cached_property
    def _learnt(self) -> tuple[str, ...]:
        return self.options.learnt(self.abstract.params)

    def _forward(
        self, params: Arrays, rest: Arrays, inputs: Any, targets: Any, key: Any = None
    ) -> tuple[Any, Arrays, Any]:
        # Outputs, other state, and what the outputs are compared with.
        import jax

        ours, theirs = (None, None) if key is None else jax.random.split(key)
        inputs, targets = self.task.pair(self.pipeline.on_batch(inputs, ours), targets)
        outputs, rest = self._applied(params, rest, inputs, theirs)
        return outputs, rest, targets

    def _applied(self, params: Arrays, rest: Arrays, inputs: Any, key: Any) -> tuple[Any, Arrays]:
        import jax
        import jax.numpy as jnp

        if self.options.lora is not None:
            params = self.options.lora.merged(params)
        cast = self.options.precision.cast
        # Codes of categories stand beside numbers in the rows of a table, and are exact in float32 alone.
        coded = any(step.name.startswith("table.") for step in self.pipeline.host)
        outputs, rest = self._model.apply(cast(params), rest, inputs if coded else cast(inputs), key)
        return jax.tree.map(lambda x: x.astype(jnp.float32), outputs), rest

    def _refuse_other_outputs(self, shape: tuple[int, ...] | None) -> None:
        row = self.task.model_shape(self.pipeline.device_shape(self.input_shape))
        wanted = self.task.output_shape(row, self.labels)
        if shape is None:
            raise InvalidRequest("a model gives one array; this one gives several; return the one that is learnt from")
        fits = wanted is None or (
            len(wanted) == len(shape) - 1
            and all(want in (None, got) for want, got in zip(wanted, shape[1:], strict=True))
        )
        if fits and shape[:1] == (2,):
            return
        told = ", ".join("any" if axis is None else str(axis) for axis in wanted or ("…",))
        if len(wanted or ()) == 1 and self.labels:
            raise InvalidRequest(
                f"the model gives one score a class, shape (batch, {told}); got {shape} for a batch of 2; set its "
                f"num_classes to {told}"
            )
        raise InvalidRequest(
            f"the model of {self.task.name} gives shape (batch, {told}) for rows of {row}; got {shape} for a batch of "
            f"2; change its last layer"
        )

    @property
    def _totals(self) -> tuple[str, ...]:
        return (*self.task.counted, "weight", _LEFT_OUT)

    def _added(self, totals: Totals, sums: Sums) -> Totals:
        # One vector, not a dictionary of scalars: each array in and out of a step costs as much as a small kernel.
        import jax.numpy as jnp

        return totals + jnp.stack([sums.get(name, jnp.float32(0)) for name in self._totals])

    def _step(self, leaves: Leaves, totals: Totals, inputs: Any, labels: Any, weight: Any) -> tuple[Leaves, Totals]:
        import jax
        import optax

        state = self.tree(leaves)
        learnt = {path: state.params[path] for path in self._learnt}
        key = jax.random.fold_in(jax.random.key(self.seed), state.step)
        with using(self.mesh):
            grads, rest, sums = self._gradients(state, learnt, (inputs, labels, weight), key)
        updates, opt = self.optimizer.update(grads, state.opt, learnt)
        updated = optax.apply_updates(learnt, updates)
        extra = {name: value for name, value in state.extra.items() if not name.startswith(_EMA)}
        after = State({**state.params, **updated}, rest, opt, state.step + 1, extra | self._averaged(state, updated))
        if self.options.guarded:
            after, sums = self._guarded(state, after, grads, sums)
        return self.flat(after), self._added(totals, sums)

    def _several(
        self, leaves: Leaves, totals: Totals, inputs: Any, labels: Any, weight: Any, count: Any
    ) -> tuple[Leaves, Totals]:
        import jax

        def one(number: Any, carried: tuple[Leaves, Totals]) -> tuple[Leaves, Totals]:
            return self._step(*carried, inputs[number], labels[number], weight[number])

        done: tuple[Leaves, Totals] = jax.lax.fori_loop(0, count, one, (leaves, totals))
        return done

    def _gradients(self, state: State, learnt: Arrays, batch: Any, key: Any) -> tuple[Arrays, Arrays, Sums]:
        # The gradient of the mean loss, whether the batch is taken at once or in parts.
        import jax
        import jax.numpy as jnp

        forward = self.options.rematerialised(self._forward)
        scale = state.extra.get("loss_scale", 1.0)

        def loss(learnt: Arrays, rest: Arrays, batch: Any, key: Any, part: bool = False) -> Any:
            inputs, labels, weight = batch
            outputs, after, targets = forward({**state.params, **learnt}, rest, inputs, labels, key)
            sums = self.task.sums(outputs, targets, weight)
            weight = jnp.where(sums["weight"] > 0, sums["weight"], 1)
            mean = sums["loss"] / weight + _of_routers(after)
            return mean * scale * (weight if part else 1), (self._kept(rest, after), sums)

        gradient = jax.grad(loss, has_aux=True)
        if self.options.accumulate == 1:
            grads, (rest, sums) = gradient(learnt, state.rest, batch, key)
        else:
            grads, rest, sums = self._accumulated(gradient, learnt, state.rest, batch, key)
        return (grads if isinstance(scale, float) else jax.tree.map(lambda x: x / scale, grads)), rest, sums

    def _accumulated(self, gradient: Any, learnt: Arrays, rest: Arrays, batch: Any, key: Any) -> Any:
        import jax
        import jax.numpy as jnp

        parts = self.options.accumulate

        def cut(array: Any) -> Any:  # each part takes a share of what every device holds, so that nothing moves
            return array.reshape(-1, parts, *array.shape[1:]).swapaxes(0, 1)

        def one(carried: Any, part: Any) -> Any:
            grads, rest, sums = carried
            number, *rows = part
            more, (rest, counted) = gradient(learnt, rest, tuple(rows), jax.random.fold_in(key, number), True)
            add = partial(jax.tree.map, jnp.add)
            return (add(grads, more), rest, add(sums, counted)), None

        zeros = {name: jnp.float32(0) for name in (*self.task.counted, "weight")}
        first = (jax.tree.map(jnp.zeros_like, learnt), rest, zeros)
        (grads, rest, sums), _ = jax.lax.scan(one, first, (jnp.arange(parts), *map(cut, batch)))
        rows = jnp.where(sums["weight"] > 0, sums["weight"], 1)
        return jax.tree.map(lambda x: x / rows, grads), rest, sums

    def _kept(self, before: Arrays, after: Arrays) -> Arrays:
        # Averages of layers that are not learnt stay with them; the others stay in the precision they are kept in.
        return {
            path: before[path] if self.options.is_frozen(path) else value.astype(before[path].dtype)
            for path, value in after.items()
        }

    def _averaged(self, state: State, updated: Arrays) -> Arrays:
        import jax.numpy as jnp

        if self.options.ema is None:
            return {}
        # Early on the average follows closely: what it began with is random.
        step = state.step.astype(jnp.float32)
        decay = jnp.minimum(self.options.ema, (1 + step) / (10 + step))
        return {
            f"{_EMA}{path}": decay * state.extra[f"{_EMA}{path}"] + (1 - decay) * value
            for path, value in updated.items()
        }

    def _guarded(self, before: State, after: State, grads: Arrays, sums: Sums) -> tuple[State, Sums]:
        # A step that is not finite changes nothing but its number, and its rows are not counted.
        import jax
        import jax.numpy as jnp
        import optax

        fine = jnp.isfinite(optax.tree.norm(grads)) & jnp.isfinite(sums["loss"])
        kept = jax.tree.map(partial(jnp.where, fine), after, before)
        counted = {name: jnp.where(fine, value, 0) for name, value in sums.items()}
        counted[_LEFT_OUT] = 1 - fine.astype(jnp.float32)
        return kept._replace(step=after.step, extra=self._scaled(kept.extra, fine)), counted

    def _scaled(self, extra: Arrays, fine: Any) -> Arrays:
        import jax.numpy as jnp

        if "loss_scale" not in extra:
            return extra
        good = jnp.where(fine, extra["good_steps"] + 1, 0)
        grown = good == GROW_EVERY_STEPS
        scale = jnp.where(fine, jnp.where(grown, extra["loss_scale"] * 2, extra["loss_scale"]), extra["loss_scale"] / 2)
        return {**extra, "loss_scale": jnp.maximum(scale, 1.0), "good_steps": jnp.where(grown, 0, good)}

    def _evaluate(self, params: Arrays, rest: Arrays, totals: Totals, inputs: Any, labels: Any, weight: Any) -> Totals:
        with using(self.mesh):
            outputs, _, targets = self._forward(params, rest, inputs, labels)
            sums = self.task.sums(outputs, targets, weight)
        return self._added(totals, sums)


def _of_routers(rest: Arrays) -> Any:
    # What routers add to the loss, where a model has some: the mean over its mixtures.
    import jax.numpy as jnp

    said = {name: [value.mean() for path, value in rest.items() if path.endswith(name)] for name in _ROUTERS}
    return sum(_ROUTERS[name] * jnp.stack(values).mean() for name, values in said.items() if values)


def _named(tree: Any) -> dict[str, Any]:
    import jax

    return {_key(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _key(path: tuple[Any, ...]) -> str:
    import jax

    return str(jax.tree_util.keystr(path, simple=True, separator="/"))
