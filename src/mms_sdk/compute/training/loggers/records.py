"""What a logger makes of a record and of a run's options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mms_sdk.compute.training.callbacks import Options, Record


def numbers(record: Record) -> dict[str, float]:
    """All of a record but its place: the epoch and the metrics, where the log spells out what is not finite."""
    told = {name: value for name, value in record.items() if name not in ("step", "time")}
    return {name: float(value) if isinstance(value, str) else value for name, value in told.items()}


def flat(options: Options) -> dict[str, Any]:
    """Options without nesting: `limits.steps`, `preprocess.0.name`."""
    return dict(_leaves("", options))


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, each in value.items():
            yield from _leaves(f"{path}.{name}" if path else str(name), each)
    elif isinstance(value, list | tuple) and value:
        yield from _leaves(path, {str(number): each for number, each in enumerate(value)})
    else:
        yield path, value
