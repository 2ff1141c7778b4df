"""Showing how far training is: a live bar, or a line an epoch where nobody watches, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from mms_sdk import html
from mms_sdk.compute.training.loop import Step

_REDRAW_S = 0.25
_COMPILING = "compiling the first step …"


class ProgressView(Protocol):
    """Shown steps; entered before the first and left after the last."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def update(self, step: Step) -> None:
        """Called after every step; must cost next to nothing."""


def make_progress(
    how: Literal["auto", "none"], epochs: int, *, done: float = 0.0, history: Sequence[Mapping[str, float]] = ()
) -> ProgressView:
    """The view that suits where the output goes.

    Args:
        how: `none` for nothing.
        epochs: That are done at the end.
        done: That are done already, where a run is continued.
        history: Their metrics.
    """
    if how == "none":
        return _Silent()
    if html.in_notebook():
        return _Notebook(epochs, done, history)
    return _Bar(epochs, done, history) if sys.stderr.isatty() else _Lines(epochs)


class _Silent:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, step: Step) -> None: ...


class _Lines(_Silent):
    """One line for each epoch, or where there are many for every tenth part of them."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._every = max(1, epochs // 10)
        self._began = time.monotonic()

    def update(self, step: Step) -> None:
        if step.metrics and (step.epoch - 1) % self._every == 0:
            seconds = time.monotonic() - self._began
            print(f"  epoch {step.epoch:>3}/{self._epochs}  {_told(step.metrics)}  {seconds:6.1f} s", file=sys.stderr)


class _Bar(_Silent):
    """A live bar in 80 columns: epoch, time, and what the newest epoch says about the rows it judges by."""

    def __init__(self, epochs: int, done: float, history: Sequence[Mapping[str, float]]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("  epoch"),
            MofNCompleteColumn(),
            BarColumn(bar_width=12),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
        )
        self._progress = Progress(*columns, console=Console(stderr=True), refresh_per_second=8)
        self._told = _judged(history[-1]) if history else ""
        self._task = self._progress.add_task(_COMPILING, total=epochs, completed=int(done))
        self._shown = 0  # step

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.update(self._task, description=self._told)
        self._progress.stop()

    def update(self, step: Step) -> None:
        if step.metrics:
            self._told = _judged(step.metrics)
        if step.metrics or not self._shown or step.number - self._shown >= 8:
            self._shown = step.number
            done = step.epoch - 1 + step.batch / step.batches
            self._progress.update(self._task, completed=done, description=self._told)


class _Notebook(_Silent):
    """A bar and the losses so far, drawn anew a few times a second in the cell that trains.

    Afterwards the bar and the last metrics stay; the drawing belongs to the result.
    """

    def __init__(self, epochs: int, done: float, history: Sequence[Mapping[str, float]]) -> None:
        import IPython.display

        display: Any = IPython.display.display
        self._html: Any = IPython.display.HTML
        self._epochs = epochs
        self._history = list(history)
        self._drawn = 0.0
        self._bar = ""
        self._shown: Any = display(self._html(self._drawing(done, _COMPILING)), display_id=True)  # type: ignore[no-untyped-call]

    def __exit__(self, *_: object) -> None:
        self._shown.update(self._html(f"<div>{self._bar}</div><div>{self._newest()}</div>"))

    def update(self, step: Step) -> None:
        if step.metrics:
            self._history.append(step.metrics)
        if step.metrics or time.monotonic() - self._drawn > _REDRAW_S:
            self._drawn = time.monotonic()
            done = step.epoch - 1 + step.batch / step.batches
            self._shown.update(self._html(self._drawing(done, f"epoch {step.epoch} of {self._epochs}")))

    def _drawing(self, done: float, told: str) -> str:
        self._bar = f'<progress value="{done:.3f}" max="{self._epochs}"></progress> {told}'
        if not self._history:
            return f"<div>{self._bar}</div>"
        names = [name for name in self._history[0] if name.endswith("loss")]
        losses = {name: [epoch[name] for epoch in self._history] for name in names}
        return f"<div>{self._bar}</div><div>{self._newest()}</div>{html.curves('loss by epoch', losses)}"

    def _newest(self) -> str:
        return _told(self._history[-1]) if self._history else ""


def _judged(metrics: Mapping[str, float]) -> str:
    # What the rows say that it is judged by; all of it where there are none.
    return _told({name: value for name, value in metrics.items() if name.startswith("val/")} or metrics)


def _told(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
