"""How much memory a traced function needs while it runs, and how much it moves: estimates.

XLA does not write down every value. Cheap work element by element is done where its result is read, so such a value
takes no room of its own, and what it is computed from is kept instead, as long as it is read. The rules here are those
of XLA's instruction fusion in short: what is cheap and read once, or made of no more bytes than it has, is not kept;
products, convolutions, sums, and expensive functions that are read more than once are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

from mms_sdk.compute.planning.operations import Operation, Operations

_RENAMED = frozenset(
    {"reshape", "squeeze", "expand_dims", "transpose", "copy", "stop_gradient", "broadcast_in_dim", "iota"}
)
_CHEAP = _RENAMED | frozenset(
    {
        "add",
        "add_any",
        "sub",
        "mul",
        "neg",
        "max",
        "min",
        "abs",
        "sign",
        "select_n",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "and",
        "or",
        "not",
        "xor",
        "integer_pow",
        "square",
        "convert_element_type",
        "clamp",
        "floor",
        "ceil",
        "round",
        "is_finite",
        "slice",
        "rev",
        "pad",
        "shift_left",
        "shift_right_logical",
        "shift_right_arithmetic",
        "real",
        "imag",
        "stop_gradient",
        "pvary",
        "split",
    }
)
_DEAR = frozenset(
    {
        "exp",
        "exp2",
        "log",
        "log1p",
        "expm1",
        "tanh",
        "logistic",
        "erf",
        "erf_inv",
        "erfc",
        "rsqrt",
        "sqrt",
        "cbrt",
        "pow",
        "div",
        "rem",
        "sin",
        "cos",
        "tan",
    }
)
_HEAVY = frozenset(
    {
        "dot_general",
        "conv_general_dilated",
        "scan",
        "while",
        "cond",
        "shard_map",
        "sort",
        "gather",
        "scatter-add",
        "scatter",
    }
)

SizeOf: TypeAlias = Callable[[Operations, int], int]
"""Bytes of a value on one device."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a function needs beside its arguments and results.

    Attributes:
        peak: Bytes alive at once, at most.
        moved: Bytes read from memory and written to it.
        kernels: Operations that write down what they make.
    """

    peak: int
    moved: int
    kernels: int = 0


def whole(traced: Operations, value: int) -> int:
    """Bytes of a value that is not divided."""
    return traced.bytes(value)


def memory(traced: Operations, size_of: SizeOf = whole) -> Memory:
    """The memory of a traced function, results and arguments apart.

    Args:
        traced: Its operations.
        size_of: Bytes of a value on one device.
    """
    return _Walk(traced, partial(size_of, traced), size_of).run()


@dataclass
class _Walk:
    traced: Operations
    size: Callable[[int], int]
    size_of: SizeOf
    readers: dict[int, list[Operation]] = field(default_factory=dict)
    sources: dict[int, frozenset[int]] = field(default_factory=dict)  # what is kept for a value that is not

    def run(self) -> Memory:
        for each in self.traced.list:
            for value in set(each.inputs):
                self.readers.setdefault(value, []).append(each)
        outputs = self._results()
        last_read = self._last_reads(outputs)
        outside = {*self.traced.inputs, *outputs}
        live: set[int] = set()
        alive = peak = moved = kernels = 0
        for at, each in enumerate(self.traced.list):
            made = [value for value in each.outputs if value not in self.sources]
            inside = self._inside(each)
            moved += inside.moved
            kernels += inside.kernels
            if made or each.bodies:
                kernels += 1
                moved += sum(map(self.size, self._read(each))) + sum(map(self.size, made))
            fresh = [value for value in made if value not in outside]
            dying = [value for value in self._read(each) if value in live and last_read[value] <= at]
            freed = sum(map(self.size, dying))
            alive += sum(map(self.size, fresh))
            # What works element by element writes over what it has read for the last time.
            peak = max(peak, alive + inside.peak - (0 if each.name in _HEAVY else freed))
            live.update(fresh)
            live.difference_update(dying)
            alive -= freed
            for value in fresh:
                if last_read.get(value, -1) <= at:  # nobody reads it
                    live.discard(value)
                    alive -= self.size(value)
        return Memory(peak=peak, moved=moved, kernels=kernels)

    def _results(self) -> set[int]:
        # What comes out, and what comes out turned round or in another dtype: a gradient is made as the transpose of
        # what a product gives, or in half the bytes, and is written once, as it is wanted.
        results = set(self.traced.outputs)
        for each in reversed(self.traced.list):
            renames = each.name in _RENAMED or each.name == "convert_element_type"
            if renames and each.outputs[0] in results and all(len(self.readers[one]) == 1 for one in each.inputs):
                results.update(each.inputs)
                self.sources[each.outputs[0]] = frozenset(each.inputs)
        return results

    def _last_reads(self, outputs: set[int]) -> dict[int, int]:
        last: dict[int, int] = {}
        for at, each in enumerate(self.traced.list):
            read = self._read(each)
            for value in each.outputs:
                if self._is_not_kept(each, value, read, outputs):
                    self.sources[value] = read
            for value in read:
                last[value] = at
        return last

    def _read(self, each: Operation) -> frozenset[int]:
        return frozenset().union(*(self.sources.get(value, frozenset((value,))) for value in each.inputs))

    def _is_not_kept(self, each: Operation, value: int, read: frozenset[int], outputs: set[int]) -> bool:
        readers = self.readers.get(value, [])
        if value in outputs or each.bodies or not (each.name in _CHEAP or each.name in _DEAR):
            return False
        if each.name in _RENAMED and len(read) <= 1:
            return True
        if any(reader.name in _HEAVY for reader in readers):
            return False
        if len(readers) <= 1:
            return True
        return each.name in _CHEAP and self._total(read) <= 1.25 * self._widest(value, read)

    def _total(self, values: Iterable[int]) -> int:
        return sum(map(self.size, values))

    def _widest(self, value: int, read: frozenset[int]) -> int:
        # A comparison has a byte where what it compares has four; it is made anew all the same.
        return max(self.size(value), *(self.size(each) for each in read), 0) if read else self.size(value)

    def _inside(self, each: Operation) -> Memory:
        if not each.bodies:
            return Memory(peak=0, moved=0)
        found = [(memory(body, self.size_of), times) for body, times in each.bodies]
        if each.name == "cond":
            return max((one for one, _ in found), key=lambda one: (one.peak, one.moved))
        # A round's own results are written beside those of the round before.
        carried = sum(sum(body.bytes(value) for value in body.outputs) for body, _ in each.bodies[-1:])
        return Memory(
            peak=max(one.peak for one, _ in found) + (carried if each.name in ("scan", "while") else 0),
            moved=int(sum(one.moved * times for one, times in found)),
            kernels=int(sum(one.kernels * times for one, times in found)),
        )
