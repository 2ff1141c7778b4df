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
    steps: Generator[Step], profile: Profile | None, folder: Path, *, wait: Callable[[], object]
) -> Generator[Step]:
    """The same steps, of which some are recorded.

    Args:
        steps: Of the loop.
        profile: Which; None for none.
        folder: Where to; made when the recording begins.
        wait: Returns once the devices have done what they were given.
    """
    import jax

    if profile is None:
        yield from steps
        return
    recording = False
    try:
        for number, step in enumerate(steps, 1):
            if recording and number == profile.after + profile.steps:
                wait()  # what was only handed over is recorded too
                recording = False
                jax.profiler.stop_trace()
            yield step
            if number == max(1, profile.after):
                wait()
                jax.profiler.start_trace(str(folder))
                recording = True
    finally:
        if recording:
            jax.profiler.stop_trace()
