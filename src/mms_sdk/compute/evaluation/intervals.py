"""Intervals: Wilson's of a share, and the percentile bootstrap of everything else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist

import numpy as np

from mms_sdk.compute.evaluation.sample import Sample
from mms_sdk.schema.evaluation import Estimate
from mms_sdk.schema.job import Progress
from mms_sdk.types import Array

Tell = Callable[[Progress], None]


def wilson(successes: int, rows: int, confidence: float) -> tuple[float, float]:
    """The score interval of a share (Wilson 1927; Brown, Cai and DasGupta 2001, eq. 4).

    Args:
        successes: From 0 to `rows`.
        rows: From 1.
        confidence: In (0, 1).
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / rows
    middle = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z / (1 + z**2 / rows) * math.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    # The ends are 0 and 1 there; rounding says almost.
    return 0.0 if successes == 0 else middle - half, 1.0 if successes == rows else middle + half


def resampled(rows: int, resamples: int, seed: int) -> Iterator[Array]:
    """How often each row is in a sample of as many rows, drawn with replacement.

    Yields:
        int64, shape (rows,), adding up to `rows`.
    """
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(rng.integers(0, rows, rows), minlength=rows)


def percentiles(draws: Sequence[float], confidence: float) -> tuple[float, float] | None:
    """The percentile interval (Efron and Tibshirani 1993, §13.3) of the draws in which the metric is defined.

    Returns:
        None where it is not defined in half of them, or more.
    """
    there = np.asarray([draw for draw in draws if not math.isnan(draw)])
    if 2 * len(there) <= len(draws):
        return None
    low, high = np.quantile(there, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def estimates(
    sample: Sample, *, confidence: float, resamples: int, seed: int, tell: Tell = lambda _: None
) -> dict[str, Estimate]:
    """Metrics of a sample, each with its interval.

    Args:
        sample: With one row or more.
        confidence: Of each interval by itself.
        resamples: Of the bootstrap.
        seed: Of the bootstrap; the same one gives the same intervals.
        tell: Called with the progress.
    """
    values = sample.measure(np.ones(sample.rows, np.int64))
    drawn: dict[str, list[float]] = {name: [] for name in values}
    for done, counts in enumerate(resampled(sample.rows, resamples, seed), 1):
        for name, value in sample.measure(counts).items():
            drawn[name].append(value)
        if done % 50 == 0 or done == resamples:
            tell(Progress(done=done, total=resamples, what="resamples"))
    found = {name: bootstrapped(value, drawn[name], confidence) for name, value in values.items()}
    for name, share in sample.shares.items():
        low, high = wilson(int(share.sum()), sample.rows, confidence)
        found[name] = Estimate(value=values[name], low=low, high=high, interval="wilson")
    return found


def bootstrapped(value: float, draws: Sequence[float], confidence: float) -> Estimate:
    """A value with the percentiles of its draws."""
    ends = None if math.isnan(value) else percentiles(draws, confidence)
    if ends is None:
        return Estimate(value=None if math.isnan(value) else value)
    return Estimate(value=value, low=ends[0], high=ends[1], interval="bootstrap")
