"""Beginning with weights that are there already: every array accounted for, and told."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from mms_sdk.compute.models.layouts import OURS, SAME_NAMES, Layout, Tensors
from mms_sdk.errors import DataError, InvalidRequest

if TYPE_CHECKING:
    import jax
    from flax import nnx

    from mms_sdk.compute.models.functional import Arrays, Functional

_log = logging.getLogger("mms.models")
_SHOWN = 5


@dataclass(frozen=True)
class Weights:
    """Where weights come from, and what need not match.

    Attributes:
        path: `.safetensors`; a PyTorch state dict, `.pt`, `.pth` or `.bin`; Keras's `.weights.h5` or `.keras`; the
            folder of an MMS checkpoint or model version.
        match: Regular expression of our paths, matched whole, that have the file's values, e.g. `features/.*`; all
            others begin anew, and whatever else the file holds is left over. If left out, all of them.
        fresh: Regular expression of our paths, matched whole, that begin anew whatever the file holds, e.g.
            `head/.*`.
        unused: Regular expression of the file's names, matched whole, that may be left over, e.g. `pooler.*`.
    """

    path: str | os.PathLike[str]
    _: KW_ONLY
    match: str = ""
    fresh: str = ""
    unused: str = ""

    def __post_init__(self) -> None:
        for name in ("match", "fresh", "unused"):
            try:
                re.compile(getattr(self, name))
            except re.error as error:
                raise InvalidRequest(
                    f"{name} of Weights is a regular expression; got {getattr(self, name)!r}: {error}"
                ) from error

    def asks_for(self, path: str) -> bool:
        """Whether the array at one of our paths is to have the file's values."""
        return re.fullmatch(self.fresh, path) is None and re.fullmatch(self.match or ".*", path) is not None


Source: TypeAlias = "str | os.PathLike[str] | Weights"
"""What `init_from` takes."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Report:
    """What became of every array of the model and every tensor of the file.

    Attributes:
        path: The file or folder.
        layout: Whose names it has.
        loaded: Our paths that have the file's values.
        fresh: Our paths that begin anew: a classifier of another number of classes, and what was asked for.
        resized: Our paths whose values were interpolated to another shape; they are among the loaded.
        unused: Names in the file that were left over: the classifier's, and what was allowed.
    """

    path: str
    layout: str
    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    resized: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        whole = len(self.loaded) + len(self.fresh)
        told = [f"{len(self.loaded)} of {whole} arrays begin with {self.path} (named as by {self.layout})"]
        for what in ("fresh", "resized", "unused"):
            if names := getattr(self, what):
                told.append(f"{what}: {_shown(names)}")
        return "; ".join(told)

    __repr__ = __str__


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A module with imported weights.

    Attributes:
        module: In evaluation mode; a batch → logits. It can be the trainer's model.
        report: What was loaded and what was not.
    """

    module: nnx.Module
    report: Report


def load(family: Any, source: Source, *, input_shape: tuple[int, ...], seed: int = 0) -> Loaded:
    """A family's module with weights from a file.

    Args:
        family: e.g. `mms.models.ResNet(num_classes=1000)`.
        source: A file or folder, or `Weights`.
        input_shape: Of one row as the model takes it, e.g. (224, 224, 3).
        seed: Of what begins anew.

    Raises:
        NotFound: There is no such file.
        DataError: An array of the model is not in the file, has another shape there, or the file holds more.
        InvalidRequest, Damaged, MissingExtra: It cannot be read.
    """
    import jax
    from flax import nnx

    from mms_sdk.compute.models.functional import functional, module_of

    family = replace(family, init_from=None) if getattr(family, "init_from", None) is not None else family
    taken = functional(family, input_shape)
    values, report = _matched(taken, family, source)

    def fresh(key: jax.Array) -> Arrays:
        params, rest = taken.init(key)
        return {path: value for path, value in {**params, **rest}.items() if path not in values}

    made = jax.jit(fresh)(jax.random.key(seed)) if report.fresh else {}
    module = module_of(lambda rngs: family.build(input_shape, rngs=rngs), {**made, **values}, jax.random.key(seed))
    assert isinstance(module, nnx.Module)
    return Loaded(module=module, report=report)


def started_from(taken: Functional, model: Any, source: Source) -> Functional:
    """The same model, whose initial values are those of a file where the file has them.

    The report goes to the log `mms.models`: as a warning where something is resized, or begins anew
    though nobody asked for it.

    Args:
        taken: The model as functions.
        model: As the person gave it; a family knows names of other libraries.
        source: A file or folder, or `Weights`.

    Raises:
        NotFound, DataError, InvalidRequest, Damaged, MissingExtra: As `load`.
    """
    values, report = _matched(taken, model, source)
    anew = [path for path in report.fresh if _weights(source).asks_for(path)]
    _log.log(logging.WARNING if anew or report.resized else logging.INFO, "%s", report)
    return replace(taken, given={**taken.given, **values})


def describe(source: Source) -> dict[str, str]:
    """Which weights, as JSON: the file's name, its content's SHA-256, and what need not match.

    Raises:
        NotFound: There is no such file.
        InvalidRequest: It is a folder of something else.
    """
    from mms_sdk.compute.models.weight_files import digest

    weights = _weights(source)
    chosen = {name: getattr(weights, name) for name in ("match", "fresh", "unused") if getattr(weights, name)}
    return {"name": Path(weights.path).name, "sha256": digest(Path(weights.path)), **chosen}


def _weights(source: Source) -> Weights:
    weights = source if isinstance(source, Weights) else Weights(path=source)
    if not isinstance(weights.path, str | os.PathLike):
        raise InvalidRequest(f"weights come from a path, or mms.models.Weights(path=…); got {weights.path!r}")
    return weights


def _matched(taken: Functional, family: Any, source: Source) -> tuple[Tensors, Report]:
    from mms_sdk.compute.models.weight_files import read

    weights = _weights(source)
    params, rest = taken.shapes
    return match(family, {**params, **rest}, read(Path(weights.path)), weights)


def match(family: Any, shapes: Mapping[str, Any], tensors: Tensors, weights: Weights) -> tuple[Tensors, Report]:
    """The file's tensors at our paths, with our axes, shapes and dtypes.

    Args:
        family: Whose names and rules hold; any other model has our names only.
        shapes: Every array of the model by path: anything with `shape` and `dtype`.
        tensors: Of the file.
        weights: What need not match.

    Raises:
        DataError: An array is missing, has another shape, or is left over; the first are named, the rest counted.
        InvalidRequest: No array is to have the file's values.
    """
    if not any(map(weights.asks_for, shapes)):
        raise InvalidRequest(
            f"weights are for at least one array of the model; match={weights.match!r}, fresh={weights.fresh!r} leaves "
            f"none of {_shown(list(shapes))}; change them"
        )
    layout, tensors = _recognised(family, shapes, tensors, weights)
    values: Tensors = {}
    by_kind: dict[str, list[str]] = {"loaded": [], "fresh": [], "resized": []}
    faults = []
    for path, wanted in shapes.items():
        try:
            kind, value = _found(family, layout, path, wanted, tensors, weights)
        except _Fault as fault:
            faults.append(f"{path} {fault}")
            continue
        by_kind["fresh" if value is None else "loaded"].append(path)
        if kind == "resized":
            by_kind["resized"].append(path)
        if value is not None:
            values[path] = value
    taken = {layout.source(path) for path in values}
    unused = [name for name in tensors if name not in taken and not layout.is_bookkeeping(name)]
    replaced = {layout.source(path) for path in by_kind["fresh"]}
    allowed = ".*" if weights.match else weights.unused
    left = [name for name in unused if name not in replaced and not re.fullmatch(allowed, name)]
    if faults or left:
        raise DataError(_told(family, weights, layout, faults, left))
    told = {kind: tuple(paths) for kind, paths in by_kind.items()}
    return values, Report(path=os.fspath(weights.path), layout=layout.name, unused=tuple(unused), **told)


class _Fault(Exception):
    """Why an array of the model cannot have the file's values."""


def _recognised(family: Any, shapes: Mapping[str, Any], tensors: Tensors, weights: Weights) -> tuple[Layout, Tensors]:
    known: Sequence[Layout] = (OURS, *getattr(family, "layouts", ()), SAME_NAMES)
    prepared = [(layout, layout.prepare(tensors)) for layout in known]
    asked = [path for path in shapes if weights.asks_for(path)]
    counts = [sum(layout.source(path) in its for path in asked) for layout, its in prepared]
    best = int(np.argmax(counts))
    if not counts[best]:
        raise DataError(
            f"weights for {_called(family)} are named as by {', '.join(layout.name for layout in known)}; "
            f"{os.fspath(weights.path)} holds other names: {_shown(list(tensors))}; rename them as our paths are, e.g. "
            f"{asked[0]}"
        )
    return prepared[best]


def _found(family: Any, layout: Layout, path: str, wanted: Any, tensors: Tensors, weights: Weights) -> tuple[str, Any]:
    # ("loaded" or "resized", the value), or ("fresh", None).
    import jax.numpy as jnp

    if not weights.asks_for(path):
        return "fresh", None
    name = layout.source(path)
    if name not in tensors:
        raise _Fault(f"needs {name}, which is not there")
    value, kind = layout.converted(path, np.asarray(tensors[name])), "loaded"
    if value.shape != wanted.shape:
        if _is_other_classifier(family, path, value.shape, wanted.shape):
            return "fresh", None
        adapted = getattr(family, "adapted", _cannot_adapt)(path, value, wanted.shape)
        if adapted is None:
            raise _Fault(f"has shape {wanted.shape} here and {value.shape} in {name}")
        value, kind = adapted, "resized"
    # NumPy's own question would say that bfloat16 is no floating-point type.
    if not jnp.issubdtype(wanted.dtype, jnp.floating):  # a count that a layer keeps, say
        if value.dtype != wanted.dtype:
            raise _Fault(f"is {wanted.dtype} here and {value.dtype} in {name}")
    elif not jnp.issubdtype(value.dtype, jnp.floating) or not np.isfinite(value.astype(wanted.dtype)).all():
        raise _Fault(f"takes finite floating-point numbers; {name} is {value.dtype}, or holds others")
    return kind, value.astype(wanted.dtype)


def _cannot_adapt(path: str, value: Any, shape: tuple[int, ...]) -> None:
    return None


def _is_other_classifier(family: Any, path: str, there: tuple[int, ...], here: tuple[int, ...]) -> bool:
    # The last axis is the classes, and nothing else differs.
    of_classifier = path.startswith(f"{getattr(family, 'classifier', 'head')}/")
    classes = getattr(family, "num_classes", None)
    return of_classifier and len(there) == len(here) > 0 and there[:-1] == here[:-1] and here[-1] == classes


def _told(family: Any, weights: Weights, layout: Layout, faults: list[str], left: list[str]) -> str:
    file = f"{os.fspath(weights.path)}, read as {layout.name}"
    told = [f"weights fit {_called(family)} array by array; {file}, does not"]
    if faults:
        told.append(f"of the model, {_shown(faults)}")
    if left:
        told.append(f"of the file, unused: {_shown(left)}")
    told.append(
        "choose the options the weights were trained with, or say so with mms.models.Weights(fresh=…, unused=…), or "
        "match=… for a part"
    )
    return "; ".join(told)


def _called(model: Any) -> str:
    return str(getattr(model, "__name__", type(model).__name__))


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
