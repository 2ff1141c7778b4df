"""Learning-rate schedules against their formula."""

from __future__ import annotations

import numpy as np
import pytest

from mms_sdk.compute.training.schedules import warmup_cosine


@pytest.mark.parametrize(("steps", "warmup", "end"), [(100, 0.1, 0.0), (1000, 0.05, 1e-5), (40, 0.5, 0.0)])
def test_the_rate_rises_linearly_and_falls_along_half_a_cosine(steps: int, warmup: float, end: float) -> None:
    schedule = warmup_cosine(3e-3, steps=steps, warmup=warmup, end=end)
    rising = round(warmup * steps)
    at = np.arange(steps + 20)

    part = np.clip((at - rising) / (steps - rising), 0, 1)
    falling = end + (3e-3 - end) * (1 + np.cos(np.pi * part)) / 2
    expected = np.where(at < rising, 3e-3 * at / rising, falling)

    np.testing.assert_allclose([float(schedule(step)) for step in at], expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_of_very_few_steps_has_a_schedule_too(steps: int) -> None:
    assert np.isfinite([float(warmup_cosine(1e-3, steps=steps)(step)) for step in range(5)]).all()
