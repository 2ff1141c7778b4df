"""The same models trained by a PyTorch loop and by Keras with JAX, where they are installed.

Architecture, first values, optimiser, batches and shuffling are those of `loops`: each model is given MMS's first
values, and is refused unless it has as many parameters and tells the same scores of the same pictures.
"""

from __future__ import annotations

import copy
import importlib.util
import math
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.data import Labelled, Pictures
from benchmarks.loops import BATCH, LEARNING_RATE, WEIGHT_DECAY, Loop, share_told
from mms_sdk.compute.models import MLP, ConvNet
from mms_sdk.compute.models.functional import Arrays
from mms_sdk.types import Array

GROUPS, NORM_EPSILON, ADAM_EPSILON = 8, 1e-6, 1e-8
PIP = {"Keras fit": "pip install keras", "PyTorch loop": "pip install torch"}
_PACKAGES = {"Keras fit": "keras", "PyTorch loop": "torch"}
_TRIED_STEPS = 5
_IN_A_STAGE = ("conv1", "norm1", "conv2", "norm2")

Make = Callable[[Any, Arrays, Pictures, int], Loop]
"""Model family, first values, data, seed → its loop."""


def installed() -> dict[str, Make]:
    """The loops whose library is there."""
    made: dict[str, Make] = {"Keras fit": KerasLoop, "PyTorch loop": TorchLoop}
    return {name: make for name, make in made.items() if importlib.util.find_spec(_PACKAGES[name]) is not None}


def refuse_other(name: str, loop: TorchLoop | KerasLoop, params: Arrays, scores: Array, pictures: Array) -> None:
    """Refuses a peer that is not the same model.

    Args:
        name: Of the peer.
        loop: It, before its first step.
        params: MMS's first values.
        scores: What MMS says with them.
        pictures: Of what, uint8.

    Raises:
        ValueError: It has more or fewer parameters, or says something else.
    """
    ours = sum(math.prod(value.shape) for value in params.values())
    if loop.parameters() != ours:
        raise ValueError(f"{name} trains the same model; it has {loop.parameters():,} parameters, ours {ours:,}")
    apart = np.abs(loop.scores(pictures) - scores).max()
    if not apart < 1e-3:
        raise ValueError(f"{name} trains the same model; with the same values its scores are {apart:.2g} away")


class TorchLoop:
    """As PyTorch's tutorials write it, with batches indexed out of one tensor, which is faster than a DataLoader.

    The number of threads, one or one a core, and for convolutions `channels_last` are tried; the quickest is kept.
    """

    def __init__(self, model: Any, params: Arrays, data: Pictures, seed: int) -> None:
        import torch

        torch.manual_seed(seed)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._data = data
        self._net = _torch_net(model, params, data.train.pictures.shape[1:]).to(self._device)
        self._threads, self._format = self._quickest(seed)
        self._net = self._net.to(memory_format=self._format)
        self._steps = self._trained(self._net, seed, self._format)

    def steps(self, count: int) -> float:
        import torch

        torch.set_num_threads(self._threads)
        began = time.perf_counter()
        for _ in range(count):
            next(self._steps)
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def accuracy(self) -> float:
        return share_told(self.scores, self._data.test)

    def close(self) -> None:
        self._steps.close()

    def parameters(self) -> int:
        return sum(value.numel() for value in self._net.parameters())

    def scores(self, pictures: Array) -> Array:
        import torch

        self._net.eval()
        with torch.no_grad():
            told: Array = self._net(self._placed(pictures, self._format).float() / 255).cpu().numpy()
        self._net.train()
        return told

    def _placed(self, pictures: Array, memory_format: Any) -> Any:
        import torch

        channels_first = torch.from_numpy(np.array(pictures.transpose(0, 3, 1, 2)))
        return channels_first.to(self._device).contiguous(memory_format=memory_format)

    def _quickest(self, seed: int) -> tuple[int, Any]:
        import torch

        convolves = any(isinstance(part, torch.nn.Conv2d) for part in self._net.modules())
        formats = [torch.contiguous_format, *([torch.channels_last] if convolves else [])]
        found: dict[tuple[int, Any], float] = {}
        for threads in sorted({1, os.cpu_count() or 1}):
            for each in formats:
                torch.set_num_threads(threads)
                steps = self._trained(copy.deepcopy(self._net).to(memory_format=each), seed, each)
                next(steps)
                began = time.perf_counter()
                for _ in range(_TRIED_STEPS):
                    next(steps)
                    found[threads, each] = time.perf_counter() - began
                    if found[threads, each] > min(found.values()):
                        break  # already behind; more threads than free cores may take a hundred times as long
        return min(found, key=found.__getitem__)

    def _trained(self, net: Any, seed: int, memory_format: Any) -> Generator[Any]:
        import torch
        from torch.nn.functional import cross_entropy

        optimizer = torch.optim.AdamW(
            net.parameters(), lr=LEARNING_RATE, eps=ADAM_EPSILON, weight_decay=WEIGHT_DECAY, fused=True
        )
        pictures = self._placed(self._data.train.pictures, memory_format)
        labels = torch.from_numpy(self._data.train.labels.astype(np.int64)).to(self._device)
        drawn = torch.Generator().manual_seed(seed)
        while True:
            order = torch.randperm(len(labels), generator=drawn).to(self._device)
            for start in range(0, len(order) - BATCH + 1, BATCH):
                rows = order[start : start + BATCH]
                optimizer.zero_grad()
                loss = cross_entropy(net(pictures[rows].float() / 255), labels[rows])
                loss.backward()
                optimizer.step()
                yield loss


class KerasLoop:
    """`Model.fit` with the JAX backend, timed between the hooks at the begin and the end of its epoch.

    Each call of `steps` fits the next rows of a permutation, which Keras shuffles once more; what `fit` does before
    the first batch is not counted. A hook in each step, to stop in the midst of an epoch, would make it wait for the
    device in each. Pictures go in as bytes, which is faster than float32, and no metric but the loss is asked for.
    """

    def __init__(self, model: Any, params: Arrays, data: Pictures, seed: int) -> None:
        keras = _keras()
        keras.utils.set_random_seed(seed)
        self._data, self._rng = data, np.random.default_rng(seed)
        self._order, self._at = self._rng.permutation(len(data.train)), 0
        self._model = _keras_model(model, params, data.train.pictures.shape[1:])
        self._model.compile(
            optimizer=keras.optimizers.AdamW(LEARNING_RATE, weight_decay=WEIGHT_DECAY, epsilon=ADAM_EPSILON),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        self._times: list[float] = []
        self._hooks = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: self._times.append(time.perf_counter()),
            on_epoch_end=lambda epoch, logs: self._times.append(time.perf_counter()),
        )

    def steps(self, count: int) -> float:
        some = self._next(count * BATCH)
        self._model.fit(
            some.pictures, some.labels, batch_size=BATCH, epochs=1, shuffle=True, verbose=0, callbacks=[self._hooks]
        )
        began, ended = self._times[-2:]
        return ended - began

    def accuracy(self) -> float:
        return share_told(self.scores, self._data.test)

    def close(self) -> None:
        pass

    def parameters(self) -> int:
        return int(self._model.count_params())

    def scores(self, pictures: Array) -> Array:
        return np.asarray(self._model.predict(pictures, batch_size=len(pictures), verbose=0))

    def _next(self, count: int) -> Labelled:
        if self._at + count > len(self._order):
            self._order, self._at = self._rng.permutation(len(self._order)), 0
        rows = self._order[self._at : self._at + count]
        self._at += count
        return Labelled(self._data.train.pictures[rows], self._data.train.labels[rows])


def _keras() -> Any:
    os.environ["KERAS_BACKEND"] = "jax"  # read when it is first imported
    import keras

    if keras.backend.backend() != "jax":
        raise RuntimeError(f"Keras is measured with JAX; it was imported with {keras.backend.backend()} before")
    return keras


def _layers(params: Arrays) -> Iterator[list[Array]]:
    """Of each layer in the order of the forward pass: kernel and bias, or scale and bias, as far as it has them."""
    names = sorted({path.rpartition("/")[0] for path in params}, key=_place)
    for name in names:
        found = (params.get(f"{name}/{part}") for part in ("kernel", "scale", "bias"))
        yield [np.asarray(value) for value in found if value is not None]


def _place(name: str) -> tuple[bool, Sequence[int]]:
    parts = [part for part in name.split("/") if part.isdigit() or part in _IN_A_STAGE]
    return name == "head", [int(part) if part.isdigit() else _IN_A_STAGE.index(part) for part in parts]


def _torch_net(model: MLP | ConvNet, params: Arrays, shape: tuple[int, ...]) -> Any:
    import torch
    from torch import nn

    sizes = (math.prod(shape) if isinstance(model, MLP) else shape[-1], *model.widths)
    parts: list[Any] = [nn.Flatten()] if isinstance(model, MLP) else []
    for inputs, outputs in pairwise(sizes):
        if isinstance(model, MLP):
            parts += [nn.Linear(inputs, outputs), nn.ReLU()]
            continue
        for channels in (inputs, outputs):
            parts += [
                nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
                nn.GroupNorm(GROUPS, outputs, eps=NORM_EPSILON),
                nn.ReLU(),
            ]
        parts.append(nn.MaxPool2d(2))
    if isinstance(model, ConvNet):
        parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(model.dropout)]
    net = nn.Sequential(*parts, nn.Linear(sizes[-1], model.num_classes))
    with_weights = [part for part in [*parts, net[-1]] if hasattr(part, "weight")]
    with torch.no_grad():
        for part, values in zip(with_weights, _layers(params), strict=True):
            # Kernels are (inputs, outputs) and (height, width, inputs, outputs) in Flax, outputs first in PyTorch.
            turned = {2: (1, 0), 4: (3, 2, 0, 1)}.get(values[0].ndim, (0,))
            part.weight.copy_(torch.from_numpy(np.array(values[0].transpose(turned))))
            if part.bias is not None:
                part.bias.copy_(torch.from_numpy(np.array(values[1])))
    return net


def _keras_model(model: MLP | ConvNet, params: Arrays, shape: tuple[int, ...]) -> Any:
    layers = _keras().layers
    inputs = layers.Input(shape, dtype="uint8")
    x = layers.Rescaling(1 / 255)(inputs)
    if isinstance(model, MLP):
        x = layers.Flatten()(x)
        for width in model.widths:
            x = layers.Dense(width, activation="relu")(x)
    else:
        for width in model.widths:
            for _ in range(2):
                x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
                x = layers.GroupNormalization(groups=GROUPS, epsilon=NORM_EPSILON)(x)
                x = layers.Activation("relu")(x)
            x = layers.MaxPooling2D(2)(x)
        x = layers.Dropout(model.dropout)(layers.GlobalAveragePooling2D()(x))
    made = _keras().Model(inputs, layers.Dense(model.num_classes)(x))
    for layer, values in zip([layer for layer in made.layers if layer.weights], _layers(params), strict=True):
        layer.set_weights(values)
    return made
