"""Loggers: what they wrote is read back by other programs, of runs that stop and go on, and of trouble."""

from __future__ import annotations

import csv
import json
import math
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import google_crc32c
import pytest
from small_pictures import SmallData, make_data
from test_trainer import BATCHES, SMALL, fit

import mms_sdk as mms
from mms_sdk.compute.training import loop
from mms_sdk.compute.training.callbacks import Begun, Ending
from mms_sdk.compute.training.loggers import sending
from mms_sdk.compute.training.loggers.mlflow import allowed_name
from mms_sdk.compute.training.policies import Checkpoints
from mms_sdk.errors import InvalidRequest, MissingExtra, NotWritable
from mms_sdk.storage.metric_log import MetricLog

pytestmark = [
    # MLflow 3.17 with SQLAlchemy 2.1.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]
OPTIONS = {"seed": 7, "limits": {"steps": None}, "preprocess": [{"name": "flip"}], "model": "MLP"}
ODD = {"train/f1@5": 0.5, "train/f1#5": 0.25, "précision (%)": 1.0, "a//b/../c": 2.0, "x" * 300: 3.0, "/": 4.0}
CHECKPOINT = 12
Points = dict[tuple[int, str], float]


@pytest.fixture(scope="module", autouse=True)
def nothing_leaves_the_machine() -> Iterator[None]:
    """Neither library tells its makers of its use, nor tries a server for minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        yield


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database of MLflow; to make one takes seconds."""
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    MlflowClient(uri).search_experiments()
    return uri


# Readers, none of which is of MMS -----------------------------------------------------------------------------------


def in_log(path: Path) -> Points:
    """What a metric log says, without the place of each record."""
    points: Points = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        points |= {(record["step"], name): float(v) for name, v in record.items() if name not in ("step", "time")}
    return points


def in_csv(path: Path) -> Points:
    points: Points = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            step = int(row.pop("step"))
            assert float(row.pop("time")) > 1e9
            for name, value in row.items():
                if value != "":
                    assert (step, name) not in points, "a step is in the file twice"
                    points[step, name] = float(value)
    return points


def in_tensorboard(folder: Path) -> Points:
    accumulator = accumulated(folder)
    points: Points = {}
    for name in accumulator.Tags()["scalars"]:
        for event in accumulator.Scalars(name):
            assert (event.step, name) not in points, "a step is in the files twice"
            points[event.step, name] = event.value
    return points


def accumulated(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


def texts(folder: Path, tag: str) -> list[str]:
    return [event.tensor_proto.string_val[0].decode() for event in accumulated(folder).Tensors(tag)]


def in_mlflow(uri: str, experiment: str) -> tuple[Points, Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    points: Points = {}
    for name in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, name):
            assert (metric.step, name) not in points, "a step is in MLflow twice"
            points[metric.step, name] = metric.value
    return points, run


def in_wandb(file: Path) -> tuple[Points, dict[str, Any], int]:
    """The points, the configuration and the exit code in a file that `wandb sync` would send."""
    from wandb.proto.wandb_internal_pb2 import Record

    points: Points = {}
    config: dict[str, Any] = {}
    code = -1
    for data in in_leveldb_log(file.read_bytes()):
        record = Record.FromString(data)
        config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        config |= {item.key: json.loads(item.value_json) for item in record.config.update}
        code = record.exit.exit_code if record.HasField("exit") else code
        items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        step = record.history.step.num
        points |= {(step, name): float(value) for name, value in items.items() if not name.startswith("_")}
    return points, config, code


def in_leveldb_log(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log that has seven bytes of a header: in blocks of 32 KiB, each piece with its kind."""
    at, record = 7, b""
    while at + 7 <= len(data):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        if at + 7 + length > len(data):
            return  # the last one is still being written
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def float32(points: Points) -> Points:
    return {place: struct.unpack("f", struct.pack("f", value))[0] for place, value in points.items()}


def early(points: Points) -> Points:
    return {place: value for place, value in points.items() if place[0] <= CHECKPOINT}


def written(points: Mapping[tuple[int, str], float]) -> dict[tuple[int, str], str]:
    """To compare what is no number too."""
    return {place: repr(value) for place, value in points.items()}


# A run that is told of without training -------------------------------------------------------------------------------


@dataclass
class Telling:
    """Tells a logger of a run, as the trainer does."""

    folder: Path
    job: str = "01JOB"
    run: str = "01JOB"

    def begin(self, logger: mms.Callback, *, before: Sequence[dict[str, Any]] = (), step: int = 0) -> None:
        self.log = MetricLog(self.folder / f"{self.job}.jsonl")
        for record in before:
            self.log.write(record)
        self.logger = logger
        begun = Begun(job=self.job, run=self.run, dataset="pets@1", options=OPTIONS, step=step, log=self.log.path)
        logger.begin(begun)

    def say(self, step: int, **metrics: float) -> None:
        record = {"step": step, "time": time.time(), **metrics}
        self.log.write(record)
        self.logger.log(record)

    def end(self, state: Ending = "succeeded", why: str = "all is done") -> None:
        self.log.close()
        self.logger.end(state, why)


@pytest.fixture
def telling(tmp_path: Path) -> Telling:
    return Telling(tmp_path)


def kinds(folder: Path, uri: str) -> list[tuple[mms.Callback, Callable[[], Points]]]:
    return [
        (mms.loggers.CSV(folder / "metrics.csv"), lambda: in_csv(folder / "metrics.csv")),
        (mms.loggers.TensorBoard(folder / "runs"), lambda: in_tensorboard(folder / "runs" / "01JOB")),
        (mms.loggers.MLflow(folder.name, tracking_uri=uri, wait_s=60), lambda: in_mlflow(uri, folder.name)[0]),
    ]


# Whole runs -----------------------------------------------------------------------------------------------------------


@dataclass
class Logged:
    """A run that was left in the middle of its second epoch, three steps after a checkpoint, and then continued."""

    folder: Path
    data: SmallData
    first: str
    second: str
    uri: str

    @property
    def log(self) -> Points:
        return in_log(self.data.workspace.job_folder(self.second) / "metrics.jsonl")

    @property
    def longest(self) -> Points:
        """With the steps before the checkpoint that were still on the devices when it was made."""
        return early(in_log(self.data.workspace.job_folder(self.first) / "metrics.jsonl")) | self.log


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory, uri: str) -> Iterator[Logged]:
    folder = tmp_path_factory.mktemp("logged")
    data = make_data(folder / "workspace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_LOG_EVERY_S", 0.0)  # each step is logged
        loggers = [
            mms.loggers.CSV(folder / "metrics.csv"),
            mms.loggers.TensorBoard(folder / "runs"),
            mms.loggers.MLflow("pets", tracking_uri=uri, wait_s=60),
        ]
        trainer = replace(SMALL, epochs=2, checkpoint=Checkpoints(every="4steps"), callbacks=loggers)
        for step in trainer.steps(data):
            if step.number == CHECKPOINT + 3:
                break
        first = data.workspace.catalog.jobs.list(limit=1)[0].id
        assert max(step for step, _ in in_csv(folder / "metrics.csv")) > CHECKPOINT
        second = fit(trainer, data, resume=first).job
    yield Logged(folder, data, first, second, uri)
    data.workspace.close()


def test_a_run_and_its_continuation_are_one_csv_file_without_a_gap_or_a_step_twice(logged: Logged) -> None:
    assert in_csv(logged.folder / "metrics.csv") == logged.log
    told = json.loads((logged.folder / "metrics.run.json").read_text())
    assert (told["job"], told["run"], told["dataset"]) == (logged.second, logged.first, "pets@1")
    assert (told["state"], told["why"], told["options"]["batch_size"]) == ("succeeded", "all 2 epochs are done", 8)


def test_a_run_and_its_continuation_are_one_run_of_tensorboard(logged: Logged) -> None:
    assert [folder.name for folder in (logged.folder / "runs").iterdir()] == [logged.first]
    folder = logged.folder / "runs" / logged.first

    assert in_tensorboard(folder) == float32(logged.longest)
    assert texts(folder, "end")[-1] == "succeeded: all 2 epochs are done"
    assert json.loads(texts(folder, "options")[-1])["seed"] == 0


def test_a_run_and_its_continuation_are_one_run_of_mlflow(logged: Logged) -> None:
    points, run = in_mlflow(logged.uri, "pets")

    assert points == logged.longest
    assert run.info.status == "FINISHED"
    assert run.data.params["batch_size"] == "8"
    assert (run.data.tags["mms.run"], run.data.tags["mms.job"]) == (logged.first, logged.second)
    assert run.data.tags["mms.stopped"] == "all 2 epochs are done"


def test_the_steps_are_those_of_the_run(logged: Logged) -> None:
    steps = {step for step, name in logged.log if name == "running/loss"}
    epochs = {step for step, name in logged.log if name == "val/loss"}

    assert epochs == {BATCHES, 2 * BATCHES}
    assert len(steps) > BATCHES


def test_a_job_that_has_ended_is_exported_as_if_a_logger_had_been_there(logged: Logged, tmp_path: Path) -> None:
    with mms.connect(workspace=logged.data.workspace.root) as ws:
        job = ws.jobs.get(logged.second)
        for logger in (mms.loggers.CSV(tmp_path / "{run}.csv"), mms.loggers.TensorBoard(tmp_path / "runs")):
            job.log_to(logger)
            job.log_to(logger)  # writes nothing twice

    assert in_csv(tmp_path / f"{logged.first}.csv") == logged.log
    assert in_tensorboard(tmp_path / "runs" / logged.first) == float32(logged.log)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_is_killed_goes_on_in_the_same_files_without_a_gap_or_a_step_twice(tmp_path: Path) -> None:
    script = Path(__file__).with_name("logs_until_killed.py")
    (tmp_path / "ws").mkdir()
    data = make_data(tmp_path / "ws")
    with subprocess.Popen([sys.executable, script, tmp_path, ""], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "here" not in process.stdout.readline():
            assert process.poll() is None
        process.kill()
    assert process.returncode == -signal.SIGKILL
    first = data.workspace.catalog.jobs.list(limit=1)[0].id

    done = subprocess.run([sys.executable, script, tmp_path, first], capture_output=True, text=True, check=True)

    log = in_log(data.workspace.job_folder(done.stdout.split()[-1]) / "metrics.jsonl")
    longest = early(in_log(data.workspace.job_folder(first) / "metrics.jsonl")) | log
    assert in_csv(tmp_path / "metrics.csv") == log
    assert in_tensorboard(tmp_path / "runs" / first) == float32(longest)
    points, run = in_mlflow(f"sqlite:///{tmp_path}/mlflow.db", "pets")
    assert log.items() <= points.items() <= longest.items()
    assert run.info.status == "FINISHED"


# What is no number, and odd names -------------------------------------------------------------------------------------


def test_what_is_not_finite_is_kept(telling: Telling, uri: str) -> None:
    for logger, read in kinds(telling.folder, uri):
        telling.begin(logger)
        telling.say(1, **{"train/loss": math.nan, "up": 1.5})
        telling.say(2, **{"train/loss": math.inf, "up": 2.5})
        telling.say(3, **{"train/loss": -math.inf, "up": 3.5})
        telling.end()

        expected = {(1, "train/loss"): "nan", (2, "train/loss"): "inf", (3, "train/loss"): "-inf"}
        points = written(read())
        if isinstance(logger, mms.loggers.MLflow):  # whose database has no infinity
            expected |= {(2, "train/loss"): "1.7976931348623157e+308", (3, "train/loss"): "-1.7976931348623157e+308"}
        assert points == {**expected, **{(step, "up"): repr(step + 0.5) for step in (1, 2, 3)}}
        telling.log.path.unlink()


def test_odd_names_are_kept_apart(telling: Telling, uri: str) -> None:
    for logger, read in kinds(telling.folder, uri):
        telling.begin(logger)
        telling.say(1, **ODD)
        telling.say(2, **{"epoch": 1, 'other, "quoted"\n': 5.0})
        telling.end()

        points = read()
        assert sorted(points.values()) == [0.25, 0.5, 1.0, 1.0, 2.0, 3.0, 4.0, 5.0]
        if not isinstance(logger, mms.loggers.MLflow):
            assert {name for step, name in points if step == 1} == set(ODD)
        telling.log.path.unlink()


def test_names_that_mlflow_takes_are_left_as_they_are_and_others_stay_different() -> None:
    for name in ("train/loss", "top 5", "a.b-c_d", "précision", "val/x.y"):
        assert allowed_name(name) == name
    odd = ["a@", "a#", "a", "..", ".", "", "a/", "/a", "a//b", "a/./b", "a/../b", "x" * 300, "x" * 301]
    assert len({allowed_name(name) for name in odd}) == len(odd)
    assert all(len(allowed_name(name)) <= 250 for name in odd)


# CSV ------------------------------------------------------------------------------------------------------------------


def test_a_metric_that_comes_later_gets_a_column_and_no_row_is_lost(telling: Telling) -> None:
    telling.begin(mms.loggers.CSV(telling.folder / "metrics.csv"))
    telling.say(1, a=1.0)
    telling.say(2, a=2.0, b=0.1)
    telling.say(3, b=0.2)
    telling.say(3, epoch=1, c=5.0)
    telling.end("failed", "no luck")

    with (telling.folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["step", "time", "epoch", "a", "b", "c"]
    assert [[row[0], *row[2:]] for row in rows[1:]] == [
        ["1", "", "1.0", "", ""],
        ["2", "", "2.0", "0.1", ""],
        ["3", "", "", "0.2", ""],
        ["3", "1", "", "", "5.0"],
    ]
    assert json.loads((telling.folder / "metrics.run.json").read_text())["state"] == "failed"
    assert sorted(path.name for path in telling.folder.iterdir()) == ["01JOB.jsonl", "metrics.csv", "metrics.run.json"]


def test_a_csv_file_of_somebody_else_is_left_alone(telling: Telling) -> None:
    path = telling.folder / "rows.csv"
    path.write_text("picture,label\n1.png,cat\n")

    with pytest.raises(InvalidRequest, match=r"writes over metrics only; .*rows.csv begins with 'picture,label"):
        telling.begin(mms.loggers.CSV(path))

    telling.log.close()
    assert path.read_text() == "picture,label\n1.png,cat\n"


def test_a_csv_file_is_of_one_run_unless_the_run_is_in_its_name(telling: Telling) -> None:
    for run in ("01A", "01B"):
        telling.job = telling.run = run
        for path in ("{run}.csv", "newest.csv"):
            telling.begin(mms.loggers.CSV(telling.folder / path))
            telling.say(1, **{f"of_{run}": 1.0})
            telling.end()
            telling.log.path.unlink()

    assert {(1, "of_01A")} == set(in_csv(telling.folder / "01A.csv"))
    assert {(1, "of_01B")} == set(in_csv(telling.folder / "01B.csv")) == set(in_csv(telling.folder / "newest.csv"))


def test_a_path_that_is_no_csv_file_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"ends in \.csv; got 'metrics'"):
        mms.loggers.CSV("metrics")


@pytest.mark.parametrize("make", [lambda path: mms.loggers.CSV(path / "metrics.csv"), mms.loggers.TensorBoard])
def test_a_place_that_cannot_be_written_is_told_before_the_first_step(telling: Telling, make: Any) -> None:
    (telling.folder / "file").write_text("in the way")

    with pytest.raises(NotWritable, match=r"cannot be written: (Not a directory|File exists); give"):
        telling.begin(make(telling.folder / "file"))
    telling.log.close()


@pytest.mark.parametrize("kind", ["csv", "tensorboard"])
def test_a_disk_that_is_full_for_a_while_is_a_warning_and_leaves_no_gap(
    kind: str, telling: Telling, small_disk: Callable[[Path, int], None], caplog: pytest.LogCaptureFixture
) -> None:
    disk = telling.folder / "disk"
    small_disk(disk, 64)
    telling.begin(mms.loggers.CSV(disk / "metrics.csv") if kind == "csv" else mms.loggers.TensorBoard(disk))
    telling.say(1, a=1.0)
    fill(disk / "filler")
    for step in range(2, 400):
        telling.say(step, a=float(step))
    assert ours(caplog) == 1
    (disk / "filler").unlink()
    telling.say(400, a=400.0)
    telling.say(400, epoch=1)
    telling.say(401, a=401.0)
    telling.end()

    points = in_csv(disk / "metrics.csv") if kind == "csv" else in_tensorboard(disk / "01JOB")
    assert {step for step, name in points if name == "a"} == set(range(1, 402))
    assert ours(caplog) == 1


def ours(caplog: pytest.LogCaptureFixture) -> int:
    """Warnings that are not those of the libraries."""
    return sum(record.name == "mms.training" for record in caplog.records)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"x" * 4096):
            pass


# TensorBoard ----------------------------------------------------------------------------------------------------------


def frames(path: Path) -> list[bytes]:
    """The records of an event file, whose lengths and sums are checked: TFRecord, as TensorFlow describes it."""

    def masked(data: bytes) -> int:
        crc = google_crc32c.value(data)
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32

    data, found = path.read_bytes(), []
    while data:
        length, length_crc = struct.unpack("<QI", data[:12])
        body, (crc,) = data[12 : 12 + length], struct.unpack("<I", data[12 + length : 16 + length])
        assert (length_crc, crc) == (masked(data[:8]), masked(body))
        found.append(body)
        data = data[16 + length :]
    return found


def test_an_event_file_is_framed_as_tensorflow_does_and_on_the_disk_after_each_record(telling: Telling) -> None:
    telling.begin(mms.loggers.TensorBoard(telling.folder / "runs"))
    (file,) = (telling.folder / "runs" / "01JOB").iterdir()

    before = frames(file)
    telling.say(1, a=1.0)
    after = frames(file)
    telling.end()

    assert b"brain.Event:2" in before[0]
    assert len(after) == len(before) + 1
    assert frames(file)[: len(after)] == after


@pytest.mark.parametrize(("state", "status"), [("succeeded", 1), ("failed", 2), ("cancelled", None)])
def test_the_hyperparameters_and_the_end_are_what_the_hparams_page_reads(
    telling: Telling, state: Ending, status: int | None
) -> None:
    from tensorboard.plugins.hparams import metadata

    telling.begin(mms.loggers.TensorBoard(telling.folder / "runs"))
    telling.end(state, "so it was")

    folder = telling.folder / "runs" / "01JOB"
    plugin = accumulated(folder).PluginTagToContent("hparams")
    start = metadata.parse_session_start_info_plugin_data(plugin["_hparams_/session_start_info"])
    assert start.hparams["seed"].number_value == 7
    assert start.hparams["limits.steps"].string_value == "None"
    assert start.hparams["preprocess.0.name"].string_value == "flip"
    end = plugin.get("_hparams_/session_end_info")
    assert (end and metadata.parse_session_end_info_plugin_data(end).status) == status
    assert texts(folder, "end") == [f"{state}: so it was"]


def test_a_continued_run_whose_folder_is_gone_is_written_from_its_beginning(telling: Telling) -> None:
    before = [{"step": step, "time": 1.7e9, "a": float(step)} for step in (1, 2, 3)]
    telling.job = "01NEXT"

    telling.begin(mms.loggers.TensorBoard(telling.folder / "runs"), before=before, step=3)
    telling.say(4, a=4.0)
    telling.end()

    assert in_tensorboard(telling.folder / "runs" / "01JOB") == {(step, "a"): float(step) for step in (1, 2, 3, 4)}


# Servers --------------------------------------------------------------------------------------------------------------


class Stubborn:
    """A server that is away for the first few calls."""

    def __init__(self, away: int) -> None:
        self.away, self.got, self.ended = away, [], ("", "")  # type: ignore[var-annotated]

    def _answer(self) -> None:
        self.away -= 1
        if self.away >= 0:
            raise ConnectionError("nobody is there")

    def open(self, run: Begun) -> None:
        self._answer()

    def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        self._answer()
        self.got += [record["step"] for record in records]

    def close(self, state: Ending, why: str) -> None:
        self._answer()
        self.ended = (state, why)


class Sends:
    """A logger that sends to a stubborn server."""

    def __init__(self, server: Stubborn, *, wait_s: float) -> None:
        self.server, self.wait_s = server, wait_s

    def begin(self, run: Begun) -> None:
        self.sending = sending.Sending("Stubborn", self.server, run)

    def log(self, record: Mapping[str, Any]) -> None:
        pass

    def end(self, state: Ending, why: str) -> None:
        self.sending.end(state, why, wait_s=self.wait_s)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(sending, "_AGAIN_AFTER_S", (0.01, 0.05))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("away", [0, 1, 5])
def test_a_server_that_comes_back_gets_each_record_once_and_in_order(
    telling: Telling, away: int, caplog: pytest.LogCaptureFixture
) -> None:
    server = Stubborn(away)

    telling.begin(Sends(server, wait_s=30))
    for step in range(300):
        telling.say(step, a=1.0)
    telling.end("cancelled", "enough")

    assert server.got == list(range(300))
    assert server.ended == ("cancelled", "enough")
    assert len(caplog.records) == min(away, 1)


@pytest.mark.usefixtures("quick")
def test_a_server_that_stays_away_is_a_warning_at_once_and_one_at_the_end(
    telling: Telling, caplog: pytest.LogCaptureFixture
) -> None:
    telling.begin(Sends(Stubborn(10**9), wait_s=0.2))
    telling.say(1, a=1.0)
    telling.end()

    first, last = (record.getMessage() for record in caplog.records)
    assert first == (
        "Stubborn does not take what job 01JOB logs (ConnectionError: nobody is there); the run goes on, and it is "
        "tried again"
    )
    assert last == (
        "Stubborn has not got all of job 01JOB within 0.2 s of its end (the last it said: nobody is there); the job's "
        "own log is whole, and job.log_to(…) sends the rest"
    )


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The address of one that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_server_that_never_answers_holds_no_run_up(
    silent_server: str, telling: Telling, caplog: pytest.LogCaptureFixture
) -> None:
    began = time.monotonic()
    telling.begin(mms.loggers.MLflow("pets", tracking_uri=silent_server, wait_s=0.5))
    for step in range(100):
        telling.say(step, a=1.0)
    told = time.monotonic() - began
    telling.end()

    assert told < 2
    assert time.monotonic() - began < 10
    assert "MLflow has not got all of job 01JOB within 0.5 s" in caplog.text


def test_a_run_ends_well_though_its_server_is_away(pets: SmallData, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        away = f"http://127.0.0.1:{server.getsockname()[1]}"
    logger = mms.loggers.MLflow("pets", tracking_uri=away, wait_s=0.5)

    result = fit(replace(SMALL, epochs=1, callbacks=[logger]), pets)

    assert result.stopped == "all 1 epochs are done"
    assert "MLflow has not got all of" in caplog.text
    caplog.clear()


def test_what_mlflow_has_not_got_is_sent_later(telling: Telling, uri: str) -> None:
    logger = mms.loggers.MLflow("sent later", tracking_uri=uri, wait_s=60)
    telling.begin(logger)
    telling.say(1, a=1.0)
    telling.say(2, a=2.0)
    telling.end("cancelled", "left")
    assert in_mlflow(uri, "sent later")[1].info.status == "KILLED"

    telling.begin(logger, before=[{"step": 3, "time": 1.7e9, "a": 3.0}, {"step": 3, "time": 1.7e9, "b": 0.5}])
    telling.end("failed", "after all")

    points, run = in_mlflow(uri, "sent later")
    assert points == {(1, "a"): 1.0, (2, "a"): 2.0, (3, "a"): 3.0, (3, "b"): 0.5}
    assert (run.info.status, run.data.tags["mms.stopped"]) == ("FAILED", "after all")


def test_an_option_that_a_continuation_changed_is_a_tag(
    telling: Telling, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = mms.loggers.MLflow("changed", tracking_uri=uri, wait_s=60)
    telling.begin(logger)
    telling.end()
    monkeypatch.setitem(OPTIONS, "model", "x" * 10_000)
    telling.begin(logger)
    telling.end()

    run = in_mlflow(uri, "changed")[1]
    assert run.data.params["model"] == "MLP"
    assert run.data.tags["mms.model"] == "x" * 5000


# Weights & Biases -----------------------------------------------------------------------------------------------------


def missing(package: str) -> bool:
    return find_spec(package) is None


@pytest.mark.skipif(missing("wandb"), reason="needs the package wandb, which brings much: pip install 'mms-sdk[wandb]'")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_run_of_weights_and_biases_has_the_metrics_the_options_and_the_end(telling: Telling) -> None:
    logger = mms.loggers.WandB("pets", mode="offline", folder=telling.folder, wait_s=60)
    telling.begin(logger)
    telling.say(1, **{"train/loss": 2.5, "up": math.nan})
    telling.say(2, **{"train/loss": 1.5})
    telling.say(2, epoch=1, **{"val/loss": 1.25})
    telling.end("failed", "no luck")

    (file,) = telling.folder.glob("wandb/offline-run-*/run-01JOB.wandb")
    points, config, code = in_wandb(file)
    until = time.monotonic() + 30
    while code == -1 and time.monotonic() < until:  # offline, a process of its own may still write what is finished
        time.sleep(0.05)
        points, config, code = in_wandb(file)
    assert math.isnan(points.pop((1, "up")))
    assert points == {(1, "train/loss"): 2.5, (2, "train/loss"): 1.5, (2, "epoch"): 1.0, (2, "val/loss"): 1.25}
    assert config["seed"] == 7
    assert config["mms"] == {"job": "01JOB", "dataset": "pets@1"}
    assert code == 1


@pytest.mark.skipif(missing("wandb"), reason="needs the package wandb, which brings much: pip install 'mms-sdk[wandb]'")
def test_nobody_who_is_not_logged_in_is_asked_for_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)

    with pytest.raises(InvalidRequest, match="there is no key; run: wandb login"):
        mms.loggers.WandB("pets")


# Construction ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "package", "extra"),
    [
        (lambda: mms.loggers.TensorBoard("runs"), "tensorboard", "tensorboard"),
        (lambda: mms.loggers.MLflow("pets"), "mlflow", "mlflow"),
        (lambda: mms.loggers.WandB("pets"), "wandb", "wandb"),
    ],
)
def test_a_missing_package_is_told_at_construction(
    make: Any, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(MissingExtra, match=rf'needs {package}, .* run: pip install "mms-sdk\[{extra}\]"'):
        make()


def test_a_server_has_an_experiment_or_a_project_and_a_mode_there_is() -> None:
    with pytest.raises(InvalidRequest, match="has a name; got ''"):
        mms.loggers.MLflow("")
    with pytest.raises(InvalidRequest, match="has a name; got ''"):
        mms.loggers.WandB("")
    with pytest.raises(InvalidRequest, match="got 'ofline'"):
        mms.loggers.WandB("pets", mode="ofline")  # type: ignore[arg-type]
