"""What Optuna is asked: the same by the same seed, unbroken or not, and its pruners by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

import mms_sdk as mms
from mms_sdk.compute.tuning.asking import Asker, Past, grid_points
from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.tuning import Code, Params, StudySpec

SPACE: dict[str, Any] = {
    "x": mms.Uniform(-2, 2),
    "lr": mms.LogUniform(1e-5, 1e-1),
    "layers": mms.Integer(1, 6),
    "kind": mms.Choice(["a", "b", None]),
}


def spec(**fields: Any) -> StudySpec:
    asked: dict[str, Any] = {
        "metric": "loss",
        "direction": "minimize",
        "space": SPACE,
        "trials": 30,
        "sampler": "tpe",
        "pruner": None,
        "parallel": 1,
        "seed": 0,
        "max_failures": 3,
        "code": Code(name="train.py", sha256="", origin="train.py"),
        "working_folder": ".",
    }
    return StudySpec(**{**asked, **fields})


def worth(params: Params) -> float:
    """Least, 0, at x=1 and kind a."""
    assert isinstance(params["x"], float)
    return (params["x"] - 1) ** 2 + (params["kind"] != "a")


def trials(asker: Asker, count: int) -> list[Params]:
    asked = []
    for _ in range(count):
        number, params = asker.ask()
        asker.tell(number, "complete", worth(params))
        asked.append(params)
    return asked


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_same_seed_asks_for_the_same_values_and_another_for_others(sampler: str) -> None:
    first = trials(Asker(spec(sampler=sampler)), 30)
    assert trials(Asker(spec(sampler=sampler)), 30) == first
    assert trials(Asker(spec(sampler=sampler, seed=1)), 30) != first


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_a_study_that_goes_on_asks_what_an_unbroken_one_would(sampler: str) -> None:
    space = {"x": mms.Choice([-1.0, 0.5, 1.0]), "kind": mms.Choice(["a", "b"]), "layers": mms.Integer(1, 4)}
    asked = spec(sampler=sampler, space=space if sampler == "grid" else SPACE)
    whole = trials(Asker(asked), 24)
    for at in (1, 11, 23):
        past = [Past(params=params, ended="complete", value=worth(params)) for params in whole[:at]]
        assert trials(Asker(asked, past), 24 - at) == whole[at:]


def test_every_value_lies_in_its_range_and_has_its_type() -> None:
    for params in trials(Asker(spec()), 30):
        assert list(params) == list(SPACE)
        assert isinstance(params["x"], float)
        assert -2 <= params["x"] <= 2
        assert isinstance(params["lr"], float)
        assert 1e-5 <= params["lr"] <= 1e-1
        assert isinstance(params["layers"], int)
        assert 1 <= params["layers"] <= 6
        assert params["kind"] in ("a", "b", None)


def test_tpe_comes_nearer_than_chance() -> None:
    by_chance = sorted(worth(params) for params in trials(Asker(spec(sampler="random")), 30)[10:])
    learned = sorted(worth(params) for params in trials(Asker(spec()), 30)[10:])
    assert learned[len(learned) // 2] < by_chance[len(by_chance) // 2] / 2


def test_a_grid_is_gone_through_once() -> None:
    space = {"a": mms.Choice(["x", "y", "z"]), "b": mms.Integer(0, 3), "c": mms.Choice([True, False])}
    asker = Asker(spec(sampler="grid", space=space))
    asked = []
    for _ in range(24):  # as trials at once, none of which has ended
        asked.append(tuple(asker.ask()[1].values()))
    assert asked == list(itertools.product("xyz", range(4), (True, False)))


@pytest.mark.parametrize("each", [mms.Uniform(0, 1), mms.LogUniform(1, 2), mms.Integer(1, 8, log=True)])
def test_a_range_without_steps_has_no_grid(each: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"a grid goes through values one by one, and lr=.* has none; give Choice"):
        grid_points({"lr": each})


def test_a_grid_without_end_is_refused_before_it_is_made() -> None:
    with pytest.raises(InvalidRequest, match=r"at most 100,000; this one has 1,000,000,000,000; give fewer values"):
        grid_points({name: mms.Integer(1, 10**6) for name in ("a", "b")})


def test_a_trial_that_was_lost_runs_again_with_its_number_and_values() -> None:
    whole = trials(Asker(spec()), 5)
    past = [Past(params=params, ended="complete", value=worth(params)) for params in whole[:4]]
    past[1] = Past(params=whole[1], ended=None)
    asker = Asker(spec(), past)
    assert asker.waiting
    assert asker.ask() == (1, whole[1])
    assert not asker.waiting
    asker.tell(1, "complete", worth(whole[1]))
    assert asker.ask() == (4, whole[4])


def promoted(value: float, rung: list[float], reduction: int) -> bool:
    """Li et al. (2020), Algorithm 2, get_job: whether a value is among the top 1/η of its rung, itself included.

    Where fewer than η are there, the best goes on.
    """
    competing = sorted([*rung, value])
    return value <= competing[max(1, len(competing) // reduction) - 1]


def test_asha_lets_go_on_whom_the_paper_does() -> None:
    losses = [[0.9, 0.5, 0.3, 0.2], [0.8, 0.7, 0.6, 0.5], [0.95] * 4, [0.1, 0.9, 0.9, 0.9], [0.4, 0.3, 0.2, 0.1]]
    losses += [[0.5, 0.1, 0.1, 0.1], [0.05, 0.04, 0.03, 0.02], [0.3, 0.2, 0.1, 0.05]]
    asker = Asker(spec(pruner=mms.ASHA(min_epochs=1, reduction=2)))
    rungs: dict[int, list[float]] = {1: [], 2: [], 4: []}
    ends = []
    for row in losses:
        number, _ = asker.ask()
        for epoch, value in enumerate(row, 1):
            prunes = asker.prunes(number, epoch, value)
            if epoch in rungs:
                assert prunes is not promoted(value, rungs[epoch], 2), (number, epoch)
                rungs[epoch].append(value)
            else:
                assert not prunes
            if prunes:
                break
        ends.append(epoch)
        asker.tell(number, "pruned" if prunes else "complete", None if prunes else value)
    assert 1 in ends
    assert 4 in ends


def test_asha_that_goes_on_remembers_its_rungs() -> None:
    asked = spec(pruner=mms.ASHA(reduction=2))
    asker = Asker(asked)
    past = []
    for value in (0.1, 0.2, 0.3):
        number, params = asker.ask()
        prunes = asker.prunes(number, 1, value)
        rungs = asker.rungs(number)
        assert list(rungs.values()) == [value]
        end: Any = "pruned" if prunes else "complete"
        asker.tell(number, end, None if prunes else value)
        past.append(Past(params=params, ended=end, value=value, reports={1: value}, rungs=rungs))
    gone_on = Asker(asked, past)
    for each in (asker, gone_on):
        number, _ = each.ask()
        assert each.prunes(number, 1, 0.25)
    number, _ = gone_on.ask()
    assert not gone_on.prunes(number, 1, 0.05)


def test_hyperband_ends_some_trials_early_and_the_same_ones_each_time() -> None:
    def pruned() -> list[int]:
        asker = Asker(spec(pruner=mms.Hyperband(9, reduction=3), sampler="random"))
        found = []
        for _ in range(20):
            number, params = asker.ask()
            if any(asker.prunes(number, epoch, worth(params) + 1 / epoch) for epoch in range(1, 10)):
                asker.tell(number, "pruned")
                found.append(number)
            else:
                asker.tell(number, "complete", worth(params))
        return found

    assert 0 < len(pruned()) < 20
    assert pruned() == pruned()


def test_importance_finds_what_matters() -> None:
    asker = Asker(spec(sampler="random"))
    for _ in range(60):
        number, params = asker.ask()
        assert isinstance(params["x"], float)
        asker.tell(number, "complete", params["x"] ** 2)
    shares = asker.importance()
    assert next(iter(shares)) == "x"
    assert set(shares) == set(SPACE)
    assert sum(shares.values()) == pytest.approx(1)


def test_importance_of_too_little_says_so() -> None:
    asker = Asker(spec())
    with pytest.raises(InvalidRequest, match="there are 0 complete ones so far; run more"):
        asker.importance()


def test_reports_that_are_no_number_are_taken_up_as_they_were_told() -> None:
    asked = spec(pruner=mms.ASHA(), sampler="random")
    asker = Asker(asked)
    number, params = asker.ask()
    assert asker.prunes(number, 1, math.nan)
    asker.tell(number, "pruned")
    gone_on = Asker(asked, [Past(params=params, ended="pruned", reports={1: math.nan})])
    assert gone_on.ask() == asker.ask()
    assert gone_on.best() is None


def test_of_two_reports_of_one_step_the_first_stays() -> None:
    asker = Asker(spec(pruner=mms.ASHA(min_epochs=2)))
    for value, prunes in ((1.0, False), (2.0, True)):
        number, _ = asker.ask()
        assert asker.prunes(number, 2, value) is prunes
        assert not asker.prunes(number, 2, 0.0)
        asker.tell(number, "complete", value)
