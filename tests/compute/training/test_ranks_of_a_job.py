"""A training that an engine starts as several processes: the same as one, whatever happens to any of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_pictures import make_data
from test_trainer import assert_equal_to_the_bit

from mms_sdk.compute.engines.base import Engine
from mms_sdk.compute.engines.local import LocalEngine
from mms_sdk.schema.job import Job
from mms_sdk.service.ranks import looked_at
from mms_sdk.settings import COMPILE_CACHE_VARIABLE
from mms_sdk.storage.bundles import pack
from mms_sdk.storage.workspace import Workspace
from mms_sdk.testing.engines import Jobs

OnEngine = Callable[[Workspace], Engine]
HERE = Path(__file__).parent
FILES = ("trains_as_ranks.py", "trains_in_a_job.py", "small_pictures.py")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@dataclass(frozen=True)
class Run:
    """What a job left."""

    history: list[dict[str, float]]
    states: list[list[Any]]  # of each rank
    attempts: int
    parts: list[Job]


def run(
    root: Path, *kills: int, devices: int, on: Callable[[Workspace], Engine] = LocalEngine, **resources: int
) -> Run:
    """Trains from the beginning, in a workspace of its own, on so many devices of each process."""
    data, said = make_data(root / "workspace"), root / "said"
    said.mkdir()
    jobs = Jobs(data.workspace, on(data.workspace))
    files = {f"code/{name}": (HERE / name).read_bytes() for name in FILES}
    packed = pack(files | {"code/run.py": files[f"code/{FILES[0]}"]})
    variables = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "PYTHONPATH": ""}
    bundle = data.workspace.bundles.keep(packed)
    asked = {"bundle": bundle, "environment": variables, "wait_s": 0, "times": len(kills), **resources}
    try:
        job = jobs.submit("", said, *kills, **asked)
        assert jobs.ended(job, within_s=200).state == "succeeded", jobs.attempts(job)
        history = json.loads((said / "history.json").read_text())
        ranks = resources.get("nodes", 1) * resources.get("processes", 1)
        states = [list(np.load(said / f"state-{rank}.npz").values()) for rank in range(ranks)]
        return Run(history, states, len(jobs.attempts(job)), data.workspace.catalog.jobs.parts(job))
    finally:
        jobs.end_all()
        data.workspace.close()


@pytest.fixture(scope="module", autouse=True)
def compile_once(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(COMPILE_CACHE_VARIABLE, str(tmp_path_factory.mktemp("compiled")))
        yield


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two processes of a device each, which nobody disturbs."""
    return run(tmp_path_factory.mktemp("two"), processes=2, devices=1)


def test_two_processes_train_as_one_of_two_devices(two: Run, tmp_path: Path) -> None:
    one = run(tmp_path, processes=1, devices=2)

    for mine, theirs in zip(one.history, two.history, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("step", [2, 7, 17])
def test_a_process_that_is_killed_changes_nothing_to_the_bit(two: Run, tmp_path: Path, step: int) -> None:
    broken = run(tmp_path, step, processes=2, devices=1)

    assert (two.attempts, broken.attempts) == (1, 2)
    assert broken.history == two.history
    assert_equal_to_the_bit(broken.states, two.states)
    assert any(part.spec["resumed_from"] for part in broken.parts) or step <= 8  # of two checkpoints, one is whole


LATE = """
import sys, time
from dataclasses import replace
import jax
from small_pictures import SmallData
from trains_in_a_job import trainer
from mms_sdk.compute.data.load import Loader
from mms_sdk.compute.training.policies import Checkpoints
from mms_sdk.compute.training.trainer import Fitting
from mms_sdk.settings import default_workspace
from mms_sdk.storage.workspace import Workspace

slow = sys.argv[1] if jax.process_index() == 1 else ""
epoch = Loader.epoch

def slowly(*given):
    for batch in epoch(*given):
        time.sleep(0.25)
        yield batch

if slow == "data":
    Loader.epoch = slowly
rarely = replace(trainer(0), epochs=4, checkpoint=Checkpoints(every="100steps"))
for _ in Fitting(rarely, SmallData(Workspace(default_workspace())), resume=None).steps():
    if slow == "host":
        time.sleep(0.25)
"""


@pytest.mark.parametrize("slow", ["data", "host"])
def test_it_is_told_which_process_the_others_wait_for_and_why(tmp_path: Path, slow: str) -> None:
    data = make_data(tmp_path / "workspace")
    jobs = Jobs(data.workspace, LocalEngine(data.workspace))
    files = {f"code/{name}": (HERE / name).read_bytes() for name in FILES}
    bundle = data.workspace.bundles.keep(pack(files | {"code/run.py": LATE.encode()}))
    try:
        job = jobs.submit("", slow, bundle=bundle, processes=2, environment={"XLA_FLAGS": ""})
        assert jobs.ended(job, within_s=200).state == "succeeded", jobs.log(job, rank=1).decode()
        found = looked_at(data.workspace, jobs.get(job)).ranks
        assert [each.holds_up for each in found] == [None, slow], found
        assert found[0].ratio == pytest.approx(1, abs=0.3)  # by which nothing is told
    finally:
        jobs.end_all()
        data.workspace.close()
