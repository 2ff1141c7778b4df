"""Training within a job: it goes on where an attempt before was cut off, and only there."""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
from pathlib import Path

import pytest
from small_pictures import SmallData, make_data
from test_trainer import arrays_of, assert_equal_to_the_bit, plain_orbax
from trains_in_a_job import trainer

from mms_sdk.compute.engines.local import LocalEngine
from mms_sdk.compute.training import within as module
from mms_sdk.compute.training.trainer import Result
from mms_sdk.compute.training.within import Within, within
from mms_sdk.settings import COMPILE_CACHE_VARIABLE, JOB_VARIABLE, WORKER_VARIABLE
from mms_sdk.storage.bundles import pack
from mms_sdk.testing.engines import Jobs

HERE = Path(__file__).parent
STEPS, EVERY = 18, 4  # of each of the two runs, and how often they save


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """What comes out of the two runs if nobody kills them."""
    data = make_data(tmp_path_factory.mktemp("unbroken") / "workspace")
    results = [trainer(seed).fit(data, progress="none") for seed in (0, 1)]
    assert [result.steps for result in results] == [STEPS, STEPS]
    return results


@pytest.fixture
def data(tmp_path: Path) -> SmallData:
    return make_data(tmp_path / "workspace")


@pytest.fixture
def in_a_job(data: SmallData, monkeypatch: pytest.MonkeyPatch) -> str:
    """This process is the one that an engine started for a job, whose id this is."""
    job = data.workspace.catalog.jobs.start("script", "test", {}).id
    monkeypatch.setenv(JOB_VARIABLE, job)
    monkeypatch.setenv(WORKER_VARIABLE, str(os.getpid()))
    begin_an_attempt(monkeypatch)
    return job


def begin_an_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_runs", itertools.count(1))


def run_with_kills(data: SmallData, said: Path, kills: list[int], monkeypatch: pytest.MonkeyPatch) -> tuple[Jobs, str]:
    said.mkdir()
    monkeypatch.setenv(COMPILE_CACHE_VARIABLE, str(said / "compiled"))
    jobs = Jobs(data.workspace, LocalEngine(data.workspace))
    files = {"code/run.py": HERE / "trains_in_a_job.py", "code/small_pictures.py": HERE / "small_pictures.py"}
    bundle = data.workspace.bundles.keep(pack({path: source.read_bytes() for path, source in files.items()}))
    return jobs, jobs.submit("", said, *kills, bundle=bundle, wait_s=0, times=len(kills))


def drawn(seed: int) -> list[int]:
    # Some in the first run, some in the second, at its first step, at its last, and at those of a checkpoint.
    picked = random.Random(seed)
    return [picked.randint(1, STEPS + 4), picked.randint(1, STEPS)]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "kills",
    [[13, 12], *(pytest.param(drawn(seed), marks=pytest.mark.torture) for seed in range(4))],
    ids=lambda kills: "-".join(map(str, kills)),
)
def test_two_runs_of_a_job_that_is_killed_end_as_if_nobody_had_to_the_bit(
    data: SmallData, tmp_path: Path, unbroken: list[Result], kills: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, job = run_with_kills(data, tmp_path / "said", kills, monkeypatch)
    try:
        record = jobs.ended(job, within_s=200)
    finally:
        jobs.end_all()

    assert record.state == "succeeded", jobs.log(job, len(jobs.attempts(job))).decode()
    ended = [attempt.ended for attempt in jobs.attempts(job)]
    assert [each and each.signal for each in ended] == ["SIGKILL"] * len(kills) + [None]
    for told, result in zip(json.loads((tmp_path / "said" / "results.json").read_text()), unbroken, strict=True):
        assert tuple(told["history"]) == result.history
        assert_equal_to_the_bit(plain_orbax(Path(told["last"])), arrays_of(result.last))
    parts = data.workspace.catalog.jobs.parts(job)
    for part in parts:
        if before := part.spec["resumed_from"]:
            earlier = data.workspace.catalog.jobs.get(before)
            assert (earlier.parent, earlier.spec["place"]) == (job, part.spec["place"])
    # Of two checkpoints the first is whole when the second is begun; before, a kill may leave none.
    assert any(part.spec["resumed_from"] for part in parts) or max(kills) <= 2 * EVERY


def test_a_run_of_no_job_is_its_own(data: SmallData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(JOB_VARIABLE, raising=False)
    assert within(data.workspace) == Within(None, 0, None)


def test_runs_are_known_by_their_order(data: SmallData, in_a_job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = data.workspace.catalog
    assert [within(data.workspace) for _ in range(2)] == [Within(in_a_job, place, None) for place in (1, 2)]
    ids = [catalog.jobs.start("train", "pets", {"place": place}, parent=in_a_job).id for place in (1, 2, 1)]
    other = catalog.jobs.start("train", "pets", {"place": 1}).id  # of no job
    for job in (*ids[:2], other):  # the third did not get so far
        (data.workspace.job_folder(job) / "checkpoints" / "0000000004").mkdir(parents=True)

    begin_an_attempt(monkeypatch)

    assert [within(data.workspace).resume for _ in range(3)] == [ids[0], ids[1], None]


def test_what_the_process_of_a_job_starts_begins_by_itself(
    data: SmallData, in_a_job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that it starts, one after the other, would each be the first of their own."""
    before = data.workspace.catalog.jobs.start("train", "pets", {"place": 1}, parent=in_a_job).id
    (data.workspace.job_folder(before) / "checkpoints" / "0000000004").mkdir(parents=True)
    monkeypatch.setenv(WORKER_VARIABLE, str(os.getppid()))

    assert within(data.workspace) == Within(in_a_job, 0, None)


@pytest.mark.slow
def test_a_run_that_an_attempt_before_did_not_begin_so_is_begun_anew(
    data: SmallData, in_a_job: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as one of which another stood at its place."""
    other = trainer(1).fit(data, progress="none")
    begin_an_attempt(monkeypatch)

    with caplog.at_level(logging.WARNING, logger="mms.training"):
        run = trainer(0).fit(data, progress="none")

    assert "begun anew" in caplog.text
    spec = data.workspace.catalog.jobs.get(run.job).spec
    assert (spec["place"], spec["resumed_from"]) == (1, None)
    assert run.history != other.history
    monkeypatch.delenv(JOB_VARIABLE)
    alone = trainer(0).fit(data, progress="none")
    assert run.history == alone.history
    assert_equal_to_the_bit(arrays_of(run.last), arrays_of(alone.last))
