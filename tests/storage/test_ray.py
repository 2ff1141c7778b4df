"""Tasks and datasets of a real Ray, on two cores of this machine, in a network that is nothing but loopback.

Ray listens on every interface it finds; and whatever it started ends with the process that all of it descends from.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mms_sdk as mms
from mms_sdk.errors import DatasetNotFound, MissingExtra

HERE = Path(__file__).parent
APART = ("unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c")

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(300)]


@dataclass(frozen=True)
class Ran:
    """What `ray_jobs.py` did.

    Attributes:
        jobs: What came of each job, by its name.
        died: Attempts that were ended.
        ws: Where they wrote to.
    """

    jobs: dict[str, dict[str, str]]
    died: frozenset[str]
    ws: mms.WorkspaceClient


def apart(command: str, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a command of the shell where there are no processes but its own, and no network but loopback."""
    arguments = [*APART, f"ip link set lo up && {command}", "sh", *words]
    return subprocess.run(arguments, capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def ran() -> Iterator[Ran]:
    try:
        tried = apart("true")
    except FileNotFoundError:
        pytest.skip("needs the programs `unshare` and `sh`, so that Ray is not reached from outside")
    if tried.returncode:
        pytest.skip(f"needs the right to make a network of its own, for Ray to listen in ({tried.stderr.strip()})")
    # A socket's path may have about a hundred characters, fewer than pytest's folders.
    with tempfile.TemporaryDirectory(prefix="mms-ray-") as name:
        folder = Path(name)
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        done = apart('exec "$@"', sys.executable, str(HERE / "ray_jobs.py"), name, env=environment, timeout=240)
        told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        assert done.returncode == 0, done.stderr[-4000:]
        with mms.connect(workspace=folder / "workspace") as ws:
            died = frozenset(path.name for path in (folder / "died").iterdir())
            yield Ran(jobs={each["job"]: each for each in told}, died=died, ws=ws)


def test_shares_of_tasks_that_fail_or_are_killed_before_or_after_they_sealed_come_in_once_and_in_order(
    ran: Ran,
) -> None:
    assert ran.jobs["tasks"]["error"] == ""
    killed = {"task-0", "task-8", "sealed-2", "sealed-10"}
    assert killed | {"failed-1", "failed-5", "failed-9", "failed-13"} <= ran.died
    rows = ran.ws.datasets.get("tasks").open()
    np.testing.assert_array_equal(rows.values("number"), np.arange(80))
    assert [part.rows for part in rows.record.parts] == [5] * 16


def assert_rows_are_right(dataset: mms.Dataset, count: int) -> None:
    rows = dataset.open()
    numbers = rows.values("number")
    np.testing.assert_array_equal(np.sort(numbers), np.arange(count))
    np.testing.assert_array_equal(rows.values("label"), numbers % 2)
    everything = np.arange(count)
    images = rows.gather("image", everything)
    np.testing.assert_array_equal(images, np.broadcast_to((numbers % 256)[:, None, None, None], images.shape))
    assert [text.decode() for text in rows.gather("text", everything)] == [f"row {number} ü" for number in numbers]
    for number, steps in zip(numbers.tolist(), rows.gather("steps", everything), strict=True):
        np.testing.assert_array_equal(steps, np.arange(number % 4, dtype=np.float32))
    assert dataset.classes == {"even": count // 2, "odd": count // 2}


def test_blocks_of_a_ray_dataset_come_in_once_though_workers_die_while_and_after_they_write(ran: Ran) -> None:
    assert ran.jobs["data"]["error"] == ""
    assert {"written-0", "written-4"} <= ran.died
    assert len([name for name in ran.died if name.startswith("mapping-")]) == 2
    dataset = ran.ws.datasets.get("data@1")
    assert_rows_are_right(dataset, 200)
    assert dataset.info.message == "by Ray"
    # A worker that died once its part was sealed leaves it behind; the commit does not name it.
    parts = {part.id for part in dataset.open().record.parts}
    assert parts < {path.name for path in ran.ws.folder.glob("datasets/data/parts/*")}
    assert ran.ws.datasets.verify("data", progress=False).result["parts"] == len(
        ran.ws.datasets.get("data").open().record.parts
    )


def test_further_rows_take_the_columns_that_are_there_and_exceptions_that_ray_tries_again_after(ran: Ran) -> None:
    assert ran.jobs["more"]["error"] == ""
    assert "failed-more" in ran.died
    assert_rows_are_right(ran.ws.datasets.get("data@2"), 220)


@pytest.mark.parametrize(
    ("job", "error", "message"),
    [
        ("no such column", "InvalidRequest", r"\['number'\] are not among its \['other'\]; rename its columns"),
        ("no such label", "DataError", "labels of column 'label' are .* got 'neither'; add it"),
        ("too large", "DataError", "values of column 'x' are int8; .* 300 not in range"),
        ("another shape", "InvalidRequest", r"uint8 rows of shape \(4, 5, 3\); got uint8 rows of shape \(4, 6, 3\)"),
        ("another dtype", "InvalidRequest", "takes uint8 rows .* got float32 rows"),
        ("no value", "InvalidRequest", "every row of column 'number' has a value; 1 of 1 have none"),
        ("no rows", "InvalidRequest", "a commit brings rows"),
        ("no dataset", "InvalidRequest", r"takes a ray\.data\.Dataset; got list"),
        ("user's own", r"RayTaskError\(UserCodeException\)", "ValueError: never works"),
    ],
)
def test_what_cannot_be_written_is_said_as_anywhere_and_nothing_is_committed(
    ran: Ran, job: str, error: str, message: str
) -> None:
    told = ran.jobs[job]
    assert re.fullmatch(error, told["error"])
    assert re.search(message, told["message"])
    with pytest.raises(DatasetNotFound):
        ran.ws.datasets.get("refused")


def test_ray_that_is_not_installed_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "mms_sdk.compute.data.ray_data", raising=False)
    with mms.connect(workspace=tmp_path / "workspace") as ws, pytest.raises(MissingExtra, match=r"mms-sdk\[ray\]"):
        ws.datasets.write_ray("data", None)
