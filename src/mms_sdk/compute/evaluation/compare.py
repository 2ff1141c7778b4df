"""Two versions on the same rows: the paired bootstrap of what they differ by, and McNemar's exact test."""

from __future__ import annotations

import math

import numpy as np

from mms_sdk.compute.evaluation.intervals import Tell, bootstrapped, resampled
from mms_sdk.compute.evaluation.sample import RIGHT, Sample
from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.evaluation import Comparison, McNemar
from mms_sdk.schema.job import Progress
from mms_sdk.types import Array, Rows


def refuse_other_rows(first: Rows, second: Rows, *, names: tuple[str, str]) -> None:
    """Refuses to compare what was measured on other rows.

    Raises:
        InvalidRequest: The row numbers differ.
    """
    if np.array_equal(first, second):
        return
    odd = np.setxor1d(first, second)
    told = f"e.g. row {int(odd[0])} by one of them only" if odd.size else "in another order"
    raise InvalidRequest(
        f"versions are compared on the same rows; {names[0]} answered {len(first):,}, {names[1]} {len(second):,}, "
        f"{told}; leave rows that one of them cannot answer out of the dataset"
    )


def compare(
    first: Sample,
    second: Sample,
    *,
    model: str,
    confidence: float,
    resamples: int,
    seed: int,
    tell: Tell = lambda _: None,
) -> Comparison:
    """What the first sample's metrics differ by from the second's.

    The same rows are drawn for both, so that what makes a row hard for either does not widen the interval (Efron and
    Tibshirani 1993, §8; Koehn 2004).

    Args:
        first: Of the version that is evaluated.
        second: Of the other one, with the same rows in the same order.
        model: The other one.
        confidence: Of each interval by itself.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
        tell: Called with the progress.

    Raises:
        InvalidRequest: They have other numbers of rows.
    """
    if first.rows != second.rows:
        raise InvalidRequest(
            f"versions are compared on the same rows; there are {first.rows:,} and {second.rows:,}; evaluate both on "
            f"one split"
        )
    ones = np.ones(first.rows, np.int64)
    other = second.measure(ones)
    values = _differences(first.measure(ones), other)
    drawn: dict[str, list[float]] = {name: [] for name in values}
    for done, counts in enumerate(resampled(first.rows, resamples, seed), 1):
        for name, value in _differences(first.measure(counts), second.measure(counts)).items():
            drawn[name].append(value)
        if done % 50 == 0 or done == resamples:
            tell(Progress(done=done, total=resamples, what="resamples of both"))
    return Comparison(
        model=model,
        metrics={name: None if math.isnan(value) else value for name, value in other.items()},
        differences={name: bootstrapped(value, drawn[name], confidence) for name, value in values.items()},
        mcnemar=mcnemar(first.shares[RIGHT], second.shares[RIGHT]) if RIGHT in first.shares else None,
    )


def _differences(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    return {name: value - second[name] for name, value in first.items() if name in second}


def mcnemar(first: Array, second: Array) -> McNemar:
    """The exact test of McNemar (1947): of rows that only one version has right, each has as many.

    Args:
        first: Which answers of one version are right, bool, shape (rows,).
        second: Likewise of the other one.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    return McNemar(
        only_first=only_first,
        only_second=only_second,
        p_value=min(1.0, 2 * _at_most(min(only_first, only_second), only_first + only_second)),
    )


def _at_most(count: int, trials: int) -> float:
    # The chance of at most so many heads; logarithms, since binomial coefficients leave the range of floats.
    tosses = np.arange(1, count + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log((trials - tosses + 1) / tosses))])
    highest = float(logs.max())
    return math.exp(highest + math.log(float(np.exp(logs - highest).sum())) - trials * math.log(2))
