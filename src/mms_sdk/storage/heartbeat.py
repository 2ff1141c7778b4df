"""What each process of a training says of itself, in a file of its own: the step it is at, and what it does.

It costs a comparison a step, and a small write a second. Whoever looks judges by it whether the training still moves.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from pydantic import ValidationError

from mms_sdk.schema.rank import Beat, Phase
from mms_sdk.storage import files

EVERY_S = 1.0
_BYTES = 320
_OF = 15  # stretches of steps, whose median is what a step usually takes
_MOST = 10_000
_STEM = "heartbeat."


class Heart:
    """Writes the heartbeat of this process. A disk that is full or away is no reason to stop training.

    Args:
        folder: Of the job.
        rank: Which process this is.
        step: Steps taken before.
    """

    def __init__(self, folder: Path, *, rank: int, step: int) -> None:
        self._file: int | None = None
        with contextlib.suppress(OSError):
            self._file = os.open(folder / f"{_STEM}{rank}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, files.FILE_MODE)
        self._rank = rank
        self._step = self._from = step
        self._phase: Phase = "starting"
        self._waited = self._waited_from = (0.0, 0.0)  # for data, for steps
        self._seconds: deque[float] = deque(maxlen=_OF)
        self._waits: deque[tuple[float, float]] = deque(maxlen=_OF)
        self._beat(time.monotonic())

    def step(self, number: int, *, waited_s: float = 0.0, awaited_s: float = 0.0) -> None:
        """Says that a step was taken.

        Args:
            number: Steps taken so far.
            waited_s: Seconds waited for data so far.
            awaited_s: Seconds waited for steps so far that devices were given.
        """
        self._step, self._waited = number, (waited_s, awaited_s)
        now = time.monotonic()
        if now - self._beaten >= EVERY_S or self._phase == "starting":
            if self._phase == "training" and number > self._from and now > self._beaten:
                self._seconds.append((now - self._beaten) / (number - self._from))
                passed, (data_s, steps_s) = now - self._beaten, self._waited_from
                self._waits.append(((waited_s - data_s) / passed, (awaited_s - steps_s) / passed))
            self._phase = "training"
            self._beat(now)

    @contextlib.contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Says what is done within, in which no step is taken."""
        before, self._phase = self._phase, phase
        self._beat(time.monotonic())
        try:
            yield
        finally:
            self._phase = before
            self._beat(time.monotonic())

    def close(self) -> None:
        """Closes the file, which stays."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _beat(self, now: float) -> None:
        self._beaten, self._from, self._waited_from = now, self._step, self._waited
        if self._file is None:
            return
        waits = list(zip(*self._waits, strict=True)) or [(0.0,), (0.0,)]
        beat = Beat(
            rank=self._rank,
            step=self._step,
            phase=self._phase,
            at=time.time(),
            step_s=median(self._seconds or [0.0]),
            input_wait=median(waits[0]),
            step_wait=median(waits[1]),
        )
        with contextlib.suppress(OSError):
            # Of one length, over what was there: one write within a page, of which nobody sees half.
            os.pwrite(self._file, beat.model_dump_json().encode().ljust(_BYTES), 0)


def beats(folder: Path) -> list[Beat]:
    """What the processes of a job said last, by rank; what cannot be read is left out."""
    found = []
    for path in list(folder.glob(f"{_STEM}*"))[:_MOST]:
        with contextlib.suppress(OSError, ValidationError):
            found.append(Beat.model_validate_json(path.read_bytes()))
    return sorted(found, key=lambda each: each.rank)
