"""Models for the loop: two pure functions over flat dictionaries of arrays.

People write modules; a loop that carries modules pays for taking them apart and together in every step. Here they are
taken apart once.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from mms_sdk.compute.sharding.rules import Names, PartitionRules, Spec
from mms_sdk.errors import InvalidRequest

if TYPE_CHECKING:
    import jax

Arrays: TypeAlias = dict[str, Any]
"""Arrays by path, e.g. `features/stages/0/conv1/kernel`."""
Apply: TypeAlias = "Callable[[Arrays, Arrays, jax.Array, jax.Array | None], tuple[jax.Array, Arrays]]"
Stays: TypeAlias = Callable[[str], bool]
"""Whether what lies at a path stays as it is."""


@dataclass(frozen=True)
class Functional:
    """A model as two pure functions.

    Attributes:
        init: Key → (parameters, other state such as running averages).
        apply: Parameters, other state, batch, key (None outside training) → (output, other state).
        names: Of the dimensions of parameters, where the model names them for partitioning.
        rules: How the model's family divides its parameters where nothing else is asked for.
        given: NumPy arrays by path that stand for what `init` makes there, because weights are there already.
        known: Shapes and dtypes of what `init` gives, where making the model has told them already.
        applied: Which paths stay as they are → `apply`, where the layers of a model can be told apart.
    """

    init: Callable[[jax.Array], tuple[Arrays, Arrays]]
    apply: Apply
    names: Names = field(default_factory=dict)
    rules: tuple[tuple[str, Spec], ...] = ()
    given: Mapping[str, Any] = field(default_factory=dict)
    known: tuple[Arrays, Arrays] | None = None
    applied: Callable[[Stays], Apply] | None = None

    def frozen(self, stays: Stays) -> Functional:
        """The same model, in which batch normalisations that stay as they are use their running averages in training.

        By those of a batch the rest would learn from features that evaluation and serving never show it.
        """
        return self if self.applied is None else replace(self, apply=self.applied(stays))

    @property
    def shapes(self) -> tuple[Arrays, Arrays]:
        """Shapes and dtypes of what `init` gives; a large model's constructor is not traced a second time for them."""
        import jax

        return self.known or jax.eval_shape(self.init, jax.random.key(0))


def functional(model: Any, input_shape: tuple[int, ...], *, dtype: Any = "float32") -> Functional:
    """Any model a person may hand in.

    Args:
        model: A family with `build(input_shape, rngs=…)`, an NNX module, a class or function that makes one of
            `nnx.Rngs`, a Linen module, or a pair of functions `init(key, input_shape) -> params` and
            `apply(params, batch) -> output`. A Linen module whose call takes `train` or `deterministic` is told. A
            family may have `rules`: pairs as in `PartitionRules`.
        input_shape: Shape of one row as the model takes it.
        dtype: Of its values: float32, or int32 where they are ids.

    Raises:
        InvalidRequest: It is none of these.
    """
    from flax import linen, nnx

    if isinstance(model, nnx.Module):
        return _of_instance(model)
    if isinstance(model, linen.Module):
        return _of_linen(model, input_shape, dtype)
    if isinstance(model, type) and hasattr(model, "build"):
        raise InvalidRequest(
            f"a model family is made first; write {model.__name__}(num_classes=…) instead of its class"
        )
    if hasattr(model, "build"):
        return _of_family(model, input_shape)
    if isinstance(model, tuple) and len(model) == 2 and all(callable(part) for part in model):
        init, apply = model
        return Functional(
            init=lambda key: (dict(init(key, input_shape)), {}),
            apply=lambda params, state, batch, key: (apply(params, batch), state),
        )
    if callable(model) and not (isinstance(model, type) and issubclass(model, linen.Module)):
        maker: Any = model
        takes = inspect.signature(maker.__init__ if isinstance(model, type) else model)
        named = "rngs" in takes.parameters  # as Flax's own modules have it
        return _of_factory(lambda rngs: model(rngs=rngs) if named else model(rngs))
    raise InvalidRequest(
        f"a model is a family such as mms.models.ConvNet(num_classes=10), an nnx.Module, a function of nnx.Rngs that "
        f"makes one, a Linen module, or a pair (init, apply); got {type(model).__name__}"
    )


def describe(model: Any) -> str:
    """The model in words, for lineage."""
    shown = repr(model)
    if hasattr(model, "build") and " object at 0x" not in shown:  # which says nothing in another process
        return shown
    return getattr(model, "__qualname__", type(model).__qualname__)


def module_of(factory: Callable[[Any], Any], arrays: Arrays, key: jax.Array) -> Any:
    """A module in evaluation mode that has the given arrays from the start; its own initial values are never computed.

    Args:
        factory: Makes the module of `nnx.Rngs`.
        arrays: Every parameter and all other state, by path.
        key: Of its random streams.
    """
    from flax import nnx

    from mms_sdk.compute.models.streams import random_streams

    graph, params, rngs, rest = _split(nnx.eval_shape(lambda: factory(random_streams(0))))
    module = nnx.merge(graph, _filled(params, arrays), _reseeded(rngs, key), _filled(rest, arrays))
    module.eval()
    return module


def _of_family(family: Any, input_shape: tuple[int, ...]) -> Functional:
    from mms_sdk.compute.models.weights import started_from

    made = _of_factory(lambda rngs: family.build(input_shape, rngs=rngs))
    given = getattr(family, "rules", ())
    rules = tuple(given.rules if isinstance(given, PartitionRules) else given)
    # Where a family has a rule for a layer of its own, the names that the layer gives to dimensions say less.
    names = {path: its for path, its in made.names.items() if not any(re.search(rule, path) for rule, _ in rules)}
    made = replace(made, rules=rules, names=names)
    source = getattr(family, "init_from", None)
    return made if source is None else started_from(made, family, source)


def _of_factory(factory: Callable[[Any], Any]) -> Functional:
    from flax import nnx

    from mms_sdk.compute.models.streams import random_streams

    def make(key: Any) -> Any:
        # Flax would lay out named parameters at once, on a mesh there is none of yet.
        eager: Any = nnx.use_eager_sharding
        with eager(False):
            return factory(random_streams(key))

    def init(key: jax.Array) -> tuple[Arrays, Arrays]:
        _, params, _, rest = _split(make(key))
        return _flat(params), _flat(rest)

    abstract = nnx.eval_shape(lambda: make(0))
    _, params, _, rest = _split(abstract)
    return _of_template(abstract, init, known=(_flat(params), _flat(rest)))


def _of_instance(module: Any) -> Functional:
    _, params, _, rest = _split(module)
    values = _flat(params), _flat(rest)
    return _of_template(module, lambda key: values)


def _of_template(template: Any, init: Callable[[jax.Array], tuple[Arrays, Arrays]], **more: Any) -> Functional:
    applied = partial(_apply, template)
    return Functional(init=init, apply=_apply(template), names=_names(template), applied=applied, **more)


def _of_linen(module: Any, input_shape: tuple[int, ...], dtype: Any) -> Functional:
    import jax
    import jax.numpy as jnp
    from flax import linen, traverse_util

    flat: Any = partial(traverse_util.flatten_dict, sep="/")
    nested: Any = partial(traverse_util.unflatten_dict, sep="/")
    takes = inspect.signature(type(module).__call__).parameters

    def mode(training: bool) -> dict[str, bool]:
        return {name: training == (name == "train") for name in ("train", "deterministic") if name in takes}

    def boxed(key: jax.Array) -> Any:
        return module.init(key, jnp.zeros((1, *input_shape), dtype), **mode(False))

    def init(key: jax.Array) -> tuple[Arrays, Arrays]:
        variables = dict(linen.meta.unbox(boxed(key)))
        return flat(variables.pop("params", {})), flat(variables)

    def apply(params: Arrays, rest: Arrays, batch: jax.Array, key: jax.Array | None) -> tuple[jax.Array, Arrays]:
        others = nested(rest)
        variables = {"params": nested(params), **others}
        if key is None:
            return module.apply(variables, batch, **mode(False)), rest
        output, changed = module.apply(variables, batch, rngs={"dropout": key}, mutable=list(others), **mode(True))
        return output, {**rest, **flat(changed)}

    def names() -> Names:
        boxes = flat(jax.eval_shape(boxed, jax.random.key(0)).get("params", {}))
        return {path: tuple(box.names) for path, box in boxes.items() if isinstance(box, linen.Partitioned)}

    return Functional(init=init, apply=apply, names=names())


def _apply(template: Any, stays: Stays = lambda path: False) -> Apply:
    import jax
    from flax import nnx

    graph, params_template, rng_template, rest_template = _split(template)

    def apply(params: Arrays, rest: Arrays, batch: jax.Array, key: jax.Array | None) -> tuple[jax.Array, Arrays]:
        rngs = _reseeded(rng_template, jax.random.key(0) if key is None else key)
        module = nnx.merge(graph, _filled(params_template, params), rngs, _filled(rest_template, rest))
        module.eval() if key is None else _train(module, stays)
        output = module(batch)
        return output, _flat(_split(module)[3])

    return apply


def _train(module: Any, stays: Stays) -> None:
    from flax import nnx

    module.train()
    for path, layer in nnx.iter_modules(module):
        if isinstance(layer, nnx.BatchNorm) and stays(_name((*path, "mean"))):
            layer.set_attributes(use_running_average=True)


def _names(module: Any) -> Names:
    # `nnx.with_partitioning` leaves them with the variable; its `sharding_rules` translate words of the module's own.
    from flax import nnx

    told = {_name(path): variable.get_metadata() for path, variable in nnx.to_flat_state(_split(module)[1])}
    found: dict[str, tuple[Mapping[str, Any], Any]] = {
        path: (dict(each.get("sharding_rules") or ()), each.get("out_sharding")) for path, each in told.items()
    }
    return {
        path: tuple(own.get(word, word) for word in getattr(names, "spec", names))
        for path, (own, names) in found.items()
        if names is not None
    }


def _split(module: Any) -> tuple[Any, Any, Any, Any]:
    from flax import nnx

    split: Any = nnx.split  # its own type says "two or more", whatever the number of filters
    graph, params, rngs, rest = split(module, nnx.Param, nnx.RngState, ...)
    return graph, params, rngs, rest


def _flat(state: Any) -> Arrays:
    from flax import nnx

    return {_name(path): variable.get_value() for path, variable in nnx.to_flat_state(state)}


def _filled(template: Any, arrays: Arrays) -> Any:
    from flax import nnx

    return nnx.from_flat_state(
        [(path, variable.replace(arrays[_name(path)])) for path, variable in nnx.to_flat_state(template)]
    )


def _reseeded(template: Any, key: jax.Array) -> Any:
    # Every random stream starts anew in every step from a key made of the seed and the step's number: nothing to carry,
    # nothing to save, the same numbers after a restart.
    import jax
    import jax.numpy as jnp
    from flax import nnx

    def anew(number: int, variable: Any) -> Any:
        shape = variable.get_value().shape  # () but for stacked blocks, which have a stream each
        if not isinstance(variable, nnx.RngKey):
            return jnp.zeros(shape, jnp.uint32)
        folded = jax.random.fold_in(key, number)
        return jax.random.split(folded, shape) if shape else folded

    flat = nnx.to_flat_state(template)
    fresh = [(path, variable.replace(anew(number, variable))) for number, (path, variable) in enumerate(flat)]
    return nnx.from_flat_state(fresh)


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(str(part) for part in path)
