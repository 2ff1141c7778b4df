"""A window of steps that JAX's profiler records."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

from mms_sdk.compute.training.loop import Step
from mms_sdk.errors import InvalidRequest


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Which steps of a run are recorded, into `profile/` of its job's folder; TensorBoard and Perfetto show it.

    Where a call takes several steps, the recording begins and ends with the next call.

    Attributes:
        after: Steps before those that are recorded, from where the run begins or is continued; the very first one
            compiles.
        steps: How many are recorded.
    """

    after: int = 10
    steps: int = 5

    def __post_init__(self) -> None:
        if self.after < 0 or self.steps < 1:
            raise InvalidRequest(
                f"a profile is of at least one step, after none or more; got after={self.after}, steps={self.steps}"
            )


def profiled(
    steps: Generator[Step], profile: Profile | None, folder: Path, *, before: int, wait: Callable[[], object]
) -> Generator[Step]:
    """The same steps, of which some are recorded.

    Args:
        steps: Of the loop.
        profile: Which; None for none.
        folder: Where to; made when the recording begins.
        before: Number of the step before the first of them.
        wait: Returns once the devices have done what they were given.
    """
    import jax

    if profile is None:
        yield from steps
        return
    due, begun, recording = before + max(1, profile.after), 0, False
    try:
        for step in steps:
            if recording and step.number >= begun + profile.steps:
                wait()  # what was only handed over is recorded too
                recording = False
                jax.profiler.stop_trace()
            yield step
            if not begun and step.number >= due:
                wait()
                jax.profiler.start_trace(str(folder))
                begun, recording = step.number, True
    finally:
        if recording:
            jax.profiler.stop_trace()
