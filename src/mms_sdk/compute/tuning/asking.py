"""Asking Optuna: which values next, and which trials end early.

Optuna's study is made anew in memory from what the catalog and the metric logs hold, whenever one begins or goes on.
Its own storages are left out: `RDBStorage` in the catalog's database would share the table `alembic_version` with the
catalog's migrations, and a file of its own, SQLite or journal, would be a second truth that differs from the catalog
after a kill between two writes. So a trial is finished when its row says so, in SQLite and PostgreSQL alike, and
backups hold all of it.
"""

from __future__ import annotations

import itertools
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mms_sdk.errors import InvalidRequest, MissingExtra
from mms_sdk.schema.tuning import ASHA, Choice, Hyperband, Integer, LogUniform, Params, Pruner, Sampler, Space
from mms_sdk.schema.tuning import StudySpec as Spec

if TYPE_CHECKING:
    import optuna

Ended = Literal["complete", "pruned", "failed"]
_MOST_POINTS = 100_000  # a trial takes a second at the very least
_RUNG = "completed_rung_"  # what Optuna's successive halving notes at a trial


@dataclass(frozen=True, kw_only=True)
class Past:
    """What is known of a trial.

    Attributes:
        params: Its values.
        ended: How; None if it is to run, again or for the first time.
        value: The metric, of a complete one.
        reports: The metric by step.
        rungs: What successive halving noted at it.
    """

    params: Params
    ended: Ended | None
    value: float | None = None
    reports: Mapping[int, float] = field(default_factory=dict)
    rungs: Mapping[str, float] = field(default_factory=dict)


class Asker:
    """An Optuna study in memory.

    The values of a trial follow from the seed, its number and what the trials before it gave, and from nothing else: a
    study that goes on asks what an unbroken one would.

    Args:
        spec: What was asked for.
        past: All trials so far, by number.
    """

    def __init__(self, spec: Spec, past: Sequence[Past] = ()) -> None:
        self._spec = spec
        self._ranges = {name: _distribution(each) for name, each in spec.space.items()}
        self._points = grid_points(spec.space) if spec.sampler == "grid" else []
        self._study = _study(spec)
        self._asked: dict[int, optuna.Trial] = {}
        self._told: dict[int, set[int]] = {}
        for each in past:
            self._remember(each)

    def ask(self) -> tuple[int, Params]:
        """The next trial that is to run: its number and values."""
        import optuna

        waiting = self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,))
        number = waiting[0].number if waiting else self.count
        if self._points and not waiting:
            self._study.enqueue_trial(self._points[number])
        self._study.sampler = _sampler(self._spec.sampler, self._spec.seed, number)
        trial = self._study.ask(self._ranges)
        self._asked[trial.number] = trial
        self._told[trial.number] = set()
        return trial.number, {name: trial.params[name] for name in self._ranges}

    @property
    def count(self) -> int:
        """How many trials there are, those that wait included."""
        return len(self._study.get_trials(deepcopy=False))

    @property
    def waiting(self) -> bool:
        """Whether a trial of before is to run again."""
        import optuna

        return bool(self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,)))

    def prunes(self, number: int, step: int, value: float) -> bool:
        """Tells how a running trial stands; returns whether it is to end here."""
        if step in self._told[number]:  # by the attempt before, and it stays
            return False
        self._told[number].add(step)
        self._asked[number].report(value, step)
        return self._asked[number].should_prune()

    def rungs(self, number: int) -> dict[str, float]:
        """What successive halving noted at a trial."""
        noted = self._study.get_trials(deepcopy=False)[number].system_attrs
        return {name: value for name, value in noted.items() if name.startswith(_RUNG)}

    def tell(self, number: int, ended: Ended, value: float | None = None) -> None:
        """Tells how a trial ended; a pruned one counts with the last that it reported."""
        self._study.tell(self._asked.pop(number), value, state=_state(ended))

    def best(self) -> int | None:
        """The number of the best complete trial; None if there is none."""
        import optuna

        if not self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)):
            return None
        return int(self._study.best_trial.number)

    def importance(self) -> dict[str, float]:
        """How much of what makes a trial a good one each name has to do with; shares that add up to 1.

        PED-ANOVA, Watanabe et al. (2023), which needs no library beside Optuna.

        Raises:
            InvalidRequest: Fewer than two trials with different values are complete.
        """
        import optuna

        done = self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        if len({trial.value for trial in done}) < 2:
            raise InvalidRequest(
                f"importance compares complete trials of different {self._spec.metric}; there are {len(done)} complete "
                f"ones so far; run more"
            )
        found = optuna.importance.get_param_importances(self._study)
        shares = {name: float(found.get(name, 0.0)) for name in self._ranges}
        return dict(sorted(shares.items(), key=lambda each: -each[1]))

    def _remember(self, past: Past) -> None:
        import optuna

        if past.ended is None:
            self._study.enqueue_trial(past.params)
            return
        made = optuna.create_trial(
            state=_state(past.ended),
            value=past.value if past.ended == "complete" else _last(past) if past.ended == "pruned" else None,
            params=dict(past.params),
            distributions=self._ranges,
            intermediate_values=dict(past.reports),
            system_attrs=dict(past.rungs),
        )
        self._study.add_trial(made)


def grid_points(space: Space) -> list[Params]:
    """All combinations of a space's values, the last name changing fastest.

    Raises:
        InvalidRequest: A range has no values that could be gone through, or there are too many combinations.
    """
    values: list[Sequence[Any]] = []
    for name, each in space.items():
        match each:
            case Choice():
                values.append(each.values)
            case Integer(log=False):
                values.append(range(each.low, each.high + 1))
            case _:
                raise InvalidRequest(
                    f"a grid goes through values one by one, and {name}={each!r} has none; give Choice([…]), or "
                    f"another sampler"
                )
    count = math.prod(map(len, values))
    if count > _MOST_POINTS:
        raise InvalidRequest(
            f"a grid goes through all combinations, at most {_MOST_POINTS:,}; this one has {count:,}; give fewer "
            f"values, or another sampler"
        )
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*values)]


def _study(spec: Spec) -> optuna.Study:
    library = loaded()
    # Optuna says on standard error that it made a study, which is nothing to a person who asked for one of MMS.
    before = library.logging.get_verbosity()
    library.logging.set_verbosity(logging.WARNING)
    try:
        # Hyperband gives a trial its bracket by the study's name; the same seed is to give the same ones.
        made = library.create_study(
            direction=spec.direction,
            pruner=_pruner(spec.pruner),
            sampler=_sampler(spec.sampler, spec.seed, 0),
            study_name=f"seed-{spec.seed}",
        )
    finally:
        library.logging.set_verbosity(before)
    study: optuna.Study = made
    return study


def loaded() -> Any:
    """Optuna.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        with warnings.catch_warnings():  # tqdm's, that a bar which nobody asked for would be plain in a notebook
            warnings.filterwarnings("ignore", "IProgress not found")
            import optuna
    except ImportError as error:
        raise MissingExtra("optuna", extra="tune") from error
    return optuna


def _sampler(sampler: Sampler, seed: int, number: int) -> optuna.samplers.BaseSampler:
    import numpy as np
    import optuna

    drawn = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    return optuna.samplers.TPESampler(seed=drawn) if sampler == "tpe" else optuna.samplers.RandomSampler(seed=drawn)


def _pruner(pruner: Pruner | None) -> optuna.pruners.BasePruner:
    import optuna

    match pruner:
        case ASHA():
            return optuna.pruners.SuccessiveHalvingPruner(
                min_resource=pruner.min_epochs, reduction_factor=pruner.reduction
            )
        case Hyperband():
            return optuna.pruners.HyperbandPruner(
                min_resource=pruner.min_epochs, max_resource=pruner.max_epochs, reduction_factor=pruner.reduction
            )
    return optuna.pruners.NopPruner()


def _distribution(asked: Any) -> optuna.distributions.BaseDistribution:
    distributions = loaded().distributions
    made: optuna.distributions.BaseDistribution
    match asked:
        case Choice():
            made = distributions.CategoricalDistribution(asked.values)
        case Integer():
            made = distributions.IntDistribution(asked.low, asked.high, log=asked.log)
        case _:
            made = distributions.FloatDistribution(asked.low, asked.high, log=isinstance(asked, LogUniform))
    return made


def _state(ended: Ended) -> optuna.trial.TrialState:
    import optuna

    states = optuna.trial.TrialState
    return {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[ended]


def _last(past: Past) -> float | None:
    # As Optuna has it when it is told: what is no number counts as none.
    last = past.reports[max(past.reports)] if past.reports else math.nan
    return None if math.isnan(last) else last
