"""Intervals and tests, against SciPy, closed forms and simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from mms_sdk.compute.evaluation.classes import Classes
from mms_sdk.compute.evaluation.compare import compare, mcnemar, refuse_other_rows
from mms_sdk.compute.evaluation.intervals import estimates, percentiles, resampled, wilson
from mms_sdk.compute.evaluation.numbers import Numbers
from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.job import Progress

HOW: dict[str, Any] = {"confidence": 0.95, "resamples": 400, "seed": 3}


def numbers(rows: int, seed: int = 0, wide: int = 1) -> Numbers:
    rng = np.random.default_rng(seed)
    targets = rng.normal(size=(rows, wide)) * 3 + 10
    return Numbers(targets + rng.normal(size=(rows, wide)) + 0.2, targets)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize(("successes", "rows"), [(0, 1), (1, 1), (0, 30), (30, 30), (7, 30), (499, 1000)])
def test_wilsons_interval_is_scipys(successes: int, rows: int, confidence: float) -> None:
    wanted = stats.binomtest(successes, rows).proportion_ci(confidence, method="wilson")
    assert wilson(successes, rows, confidence) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (0, 6), (5, 9), (10, 10), (300, 350), (4000, 3700)])
def test_mcnemars_test_is_the_two_sided_binomial_one(first: int, second: int) -> None:
    one = np.repeat([True, False, True, False], [first, second, 20, 5])
    other = np.repeat([False, True, True, False], [first, second, 20, 5])

    found = mcnemar(one, other)

    assert (found.only_first, found.only_second) == (first, second)
    wanted = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert found.p_value == pytest.approx(wanted)


@pytest.mark.parametrize("seed", [None, 5])
def test_metrics_of_numbers_are_scikit_learns_with_the_counts_as_weights(seed: int | None) -> None:
    sample = numbers(90, wide=2)
    counts = np.ones(90, np.int64) if seed is None else next(resampled(90, 1, seed))

    found = sample.measure(counts)

    pair = (sample.targets, sample.values)
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(*pair, sample_weight=counts))
    assert found["rmse"] ** 2 == pytest.approx(metrics.mean_squared_error(*pair, sample_weight=counts))
    assert found["r2"] == pytest.approx(metrics.r2_score(*pair, sample_weight=counts))
    assert found["bias"] == pytest.approx(np.average(sample.residuals.mean(1), weights=counts))


def test_a_target_that_never_varies_has_no_share_of_variance() -> None:
    sample = Numbers(np.array([[1.0], [3.0]]), np.array([[2.0], [2.0]]))
    found = estimates(sample, **HOW)
    assert (found["r2"].value, found["r2"].low, found["r2"].interval) == (None, None, "none")
    assert found["mae"].value == 1.0


def test_large_numbers_keep_what_they_differ_by() -> None:
    small = numbers(50)
    large = Numbers(small.values + 2**30, small.targets + 2**30)
    ones = np.ones(50, np.int64)
    assert large.measure(ones)["r2"] == pytest.approx(small.measure(ones)["r2"], abs=1e-6)


def test_residuals_have_quantiles_and_the_rows_furthest_off() -> None:
    sample = Numbers(np.array([[0.0], [5.0], [-9.0], [1.0]]), np.zeros((4, 1)))
    assert [each.place for each in sample.worst(2)] == [2, 1]
    assert sample.quantiles()["50%"] == 0.5
    assert (sample.quantiles()["0%"], sample.quantiles()["100%"]) == (-9.0, 5.0)


def test_a_sample_is_drawn_with_replacement_and_as_large_as_before() -> None:
    drawn = np.stack(list(resampled(50, 2000, 0)))
    assert (drawn.sum(1) == 50).all()
    # The count of one row is binomial(50, 1/50).
    assert drawn.mean() == pytest.approx(1.0)
    assert drawn.var() == pytest.approx(49 / 50, rel=0.02)
    assert np.mean(drawn == 0) == pytest.approx((49 / 50) ** 50, rel=0.02)


def test_the_same_seed_gives_the_same_intervals_and_another_one_others() -> None:
    sample = numbers(40)
    assert estimates(sample, **HOW) == estimates(sample, **HOW)
    assert estimates(sample, **HOW) != estimates(sample, **{**HOW, "seed": 4})


def test_the_bootstrap_of_a_mean_is_the_normal_interval_where_there_are_many_rows() -> None:
    sample = numbers(2000)
    residuals = sample.residuals.ravel()
    half = stats.norm.ppf(0.975) * residuals.std() / np.sqrt(2000)

    bias = estimates(sample, **{**HOW, "resamples": 2000})["bias"]

    assert bias.interval == "bootstrap"
    assert (bias.low, bias.high) == pytest.approx((residuals.mean() - half, residuals.mean() + half), abs=0.1 * half)


def test_draws_without_a_value_are_left_out_and_half_of_them_are_too_many() -> None:
    assert percentiles([np.nan, 1.0, 1.0], 0.9) == (1.0, 1.0)
    assert percentiles([np.nan, np.nan, 1.0, 1.0], 0.9) is None


def test_progress_is_told_up_to_the_end() -> None:
    told: list[Progress] = []
    estimates(numbers(5), confidence=0.9, resamples=120, seed=0, tell=told.append)
    assert [(each.done, each.total) for each in told] == [(50, 120), (100, 120), (120, 120)]


def test_shares_have_wilsons_interval_and_everything_else_the_bootstraps() -> None:
    rng = np.random.default_rng(0)
    sample = Classes(rng.dirichlet(np.ones(4), 60), rng.integers(0, 4, 60))
    found = estimates(sample, **HOW)
    assert {name for name, each in found.items() if each.interval == "wilson"} == {"accuracy", "top_2_accuracy"}
    assert {each.interval for each in found.values()} == {"wilson", "bootstrap"}
    for name, of in (("accuracy", sample.right), ("top_2_accuracy", sample.shares["top_2_accuracy"])):
        assert (found[name].low, found[name].high) == wilson(int(of.sum()), 60, 0.95)


def test_a_version_does_not_differ_from_itself() -> None:
    told = compare(numbers(30), numbers(30), model="same@1", **HOW)
    assert {(each.value, each.low, each.high) for each in told.differences.values()} == {(0.0, 0.0, 0.0)}
    assert told.mcnemar is None


def test_the_difference_of_a_mean_has_the_interval_of_the_rows_differences() -> None:
    # What both share is large, what they differ by is small: only pairs tell.
    rng = np.random.default_rng(0)
    targets = np.zeros((1000, 1))
    shared = 10 * rng.normal(size=(1000, 1))
    first, second = (Numbers(shared + shift + rng.normal(size=(1000, 1)), targets) for shift in (0.3, 0.0))
    gaps = (first.residuals - second.residuals).ravel()
    half = stats.norm.ppf(0.975) * gaps.std() / np.sqrt(1000)

    bias = compare(first, second, model="b@1", **{**HOW, "resamples": 2000}).differences["bias"]

    assert bias.value == pytest.approx(gaps.mean())
    assert (bias.low, bias.high) == pytest.approx((gaps.mean() - half, gaps.mean() + half), abs=0.1 * half)
    assert bias.low is not None
    assert bias.low > 0


def test_other_rows_are_not_compared() -> None:
    rows = np.arange(5)
    refuse_other_rows(rows, rows.copy(), names=("a@1", "a@2"))
    with pytest.raises(InvalidRequest, match=r"a@1 answered 5, a@2 4, e\.g\. row 2 by one of them only; leave"):
        refuse_other_rows(rows, np.array([0, 1, 3, 4]), names=("a@1", "a@2"))
    with pytest.raises(InvalidRequest, match="in another order"):
        refuse_other_rows(rows, rows[::-1], names=("a@1", "a@2"))
    with pytest.raises(InvalidRequest, match="there are 30 and 31"):
        compare(numbers(30), numbers(31), model="b@1", **HOW)


@pytest.mark.slow
def test_intervals_hold_the_true_value_about_as_often_as_they_say() -> None:
    truth = {"bias": 0.2, "mae": _absolute_mean(0.2)}
    held = dict.fromkeys(truth, 0)
    rounds = 400
    for seed in range(rounds):
        found = estimates(numbers(80, seed=seed), confidence=0.9, resamples=300, seed=seed)
        for name, value in truth.items():
            low, high = found[name].low, found[name].high
            assert low is not None
            assert high is not None
            held[name] += low <= value <= high
    # Three standard errors of 400 rounds are 0.045; of 80 rows the percentile bootstrap holds a little less.
    assert all(0.84 <= count / rounds <= 0.945 for count in held.values()), held


@pytest.mark.slow
def test_wilsons_interval_holds_a_share_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    for share in (0.05, 0.5, 0.93):
        ends = np.array([wilson(count, 60, 0.95) for count in range(61)])
        # Exactly: the chance of the counts whose interval holds the share.
        inside = (ends[:, 0] <= share) & (share <= ends[:, 1])
        assert 0.91 <= stats.binom.pmf(np.arange(61), 60, share)[inside].sum() <= 0.99
        drawn = ends[rng.binomial(60, share, 2000)]
        assert 0.90 <= np.mean((drawn[:, 0] <= share) & (share <= drawn[:, 1])) <= 1.0


def _absolute_mean(mean: float) -> float:
    # Of a normal with deviation 1: the folded normal's mean (Leone et al. 1961).
    return float(2 * stats.norm.pdf(mean) + mean * (1 - 2 * stats.norm.cdf(-mean)))
