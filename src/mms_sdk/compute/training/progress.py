"""Showing how far training is: a live bar, or a line an epoch where nobody watches, or nothing."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Literal, Protocol

from mms_sdk.compute.training.loop import Step


class ProgressView(Protocol):
    """Shown steps; entered before the first and left after the last."""

    def __enter__(self) -> ProgressView: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def update(self, step: Step) -> None:
        """Called after every step; must cost next to nothing."""


def make_progress(how: Literal["auto", "none"], epochs: int) -> ProgressView:
    """The view that suits where the output goes."""
    if how == "none":
        return _Silent()
    return _Bar(epochs) if sys.stderr.isatty() or _in_notebook() else _Lines(epochs)


class _Silent:
    def __enter__(self) -> ProgressView:
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, step: Step) -> None: ...


class _Lines(_Silent):
    """One line for each epoch."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._began = time.monotonic()

    def update(self, step: Step) -> None:
        if step.metrics:
            seconds = time.monotonic() - self._began
            print(f"  epoch {step.epoch:>3}/{self._epochs}  {_told(step.metrics)}  {seconds:6.1f} s", file=sys.stderr)


class _Bar(_Silent):
    """A live bar: epoch, speed, time left, and the newest metrics."""

    def __init__(self, epochs: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("  epoch"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
        )
        console = Console() if _in_notebook() else Console(stderr=True)
        self._progress = Progress(*columns, console=console, refresh_per_second=8)
        self._task = self._progress.add_task("", total=epochs)

    def __enter__(self) -> ProgressView:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, step: Step) -> None:
        done = step.epoch - 1 + step.batch / step.batches
        if step.metrics:
            self._progress.update(self._task, completed=done, description=_told(step.metrics))
        elif step.batch % 8 == 0:
            self._progress.update(self._task, completed=done)


def _told(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    return bool(shell and shell.get_ipython() and "ZMQ" in type(shell.get_ipython()).__name__)
