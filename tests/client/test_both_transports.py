"""What a call does, it does embedded and over HTTP; both are held against the files and against NumPy."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
from PIL import Image

import mms_sdk as mms
import tiny_model
from mms_sdk.errors import (
    ColumnNotFound,
    Conflict,
    Damaged,
    DataError,
    DatasetNotFound,
    DeploymentNotFound,
    Forbidden,
    InvalidInput,
    InvalidName,
    InvalidRequest,
    JobNotFound,
    MmsError,
    ModelNotFound,
    NotFound,
    NothingToIngest,
    SnapshotNotFound,
    SplitNotFound,
)
from mms_sdk.storage.workspace import Workspace
from tiny_model import LABELS, SHAPE, Tiny, pictures_of

Client = mms.WorkspaceClient


@pytest.fixture
def way(ws: Client) -> str:
    return "embedded" if ws.embedded else "http"


@pytest.fixture
def deployment(ws: Client) -> mms.Deployment:
    """Eight rows at once; made again only if it is gone."""
    try:
        return ws.deployments.get("pets")
    except DeploymentNotFound:
        return ws.deployments.create("pets", model="tiny@1", max_batch=8)


def png(picture: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def scores_of(predictions: list[mms.Prediction]) -> Any:
    """Scores in the order of the classes' codes."""
    told = [{entry.label: entry.score for entry in one.ranked} for one in predictions]
    return np.array([[scores[label] for label in LABELS] for scores in told])


# Datasets -------------------------------------------------------------------------------------------------------


def test_a_dataset_tells_its_rows_classes_and_splits(ws: Client) -> None:
    pets = ws.datasets.get("pets")
    assert (pets.ref, pets.rows, pets.num_classes, pets.labels) == ("pets@1", 120, 3, LABELS)
    assert pets.classes == dict.fromkeys(LABELS, 40)
    assert pets.splits == {"train": 72, "val": 24, "test": 24}
    assert "pets@1" in [dataset.ref for dataset in ws.datasets.list()]
    assert ws.datasets.get("pets@1").info == pets.info
    by_split = "train 24, val 8, test 8" in pets._repr_html_()
    assert by_split is ws.embedded  # the totals of the snapshot where its rows cannot be read
    assert "rows by class" in pets._repr_html_()


def test_ingesting_twice_makes_two_snapshots_and_the_first_stays_as_it_was(
    ws: Client, way: str, readable: Path
) -> None:
    source = readable / f"growing-{way}"
    shutil.copytree(readable / "photos", source)
    name = f"growing-{way}"
    first = ws.datasets.ingest(name, source, message="the first", progress=False)
    for number, picture in enumerate(pictures_of(10, seed=3)):
        (source / "ant" / f"new-{number}.png").write_bytes(png(picture))
    (source / "bee" / "broken.png").write_bytes(b"no picture")
    second = ws.datasets.ingest(name, str(source), clean=[mms.drop_unreadable()], progress=False)
    assert (first.ref, first.rows, first.info.message) == (f"{name}@1", 120, "the first")
    assert (second.ref, second.rows, second.info.snapshots) == (f"{name}@2", 130, 2)
    assert second.classes == {"ant": 50, "bee": 40, "cat": 40}
    report = second.cleaning
    assert report is not None
    assert [(step.step, step.dropped) for step in report.steps] == [("drop-unreadable", 1)]
    assert report.steps[0].examples[0].source.endswith("broken.png")
    (left_out,) = second.rejects()
    assert left_out == report.steps[0].examples[0]
    assert list(first.rejects()) == []
    assert ws.datasets.get(f"{name}@1").rows == 120
    assert ws.datasets.verify(name, progress=False).result["snapshots"] == 2


def test_datasets_are_cleaned_joined_and_put_end_to_end(ws: Client, way: str, readable: Path) -> None:
    (readable / f"{way}.csv").write_text("kind,price,t\nant,1,x\nbee,,y\ncat,3,\ncat,400,z\n")
    name = f"prices-{way}"
    first = ws.datasets.ingest(name, readable / f"{way}.csv", split=mms.Split(train=1, val=0, test=0), progress=False)
    steps = [mms.drop_duplicates(by="kind"), mms.impute("price", by="value", value=2), mms.convert("price", "uint8")]
    second = first.clean(steps, message="tidy", progress=False)
    assert (second.ref, second.rows, second.info.message) == (f"{name}@2", 3, "tidy")
    assert second.facts()["cleaned"] == "3 of 4"
    (left_out,) = second.rejects()
    assert (left_out.source, left_out.reason) == (f"{name}@1, row 3", f"the same kind as {name}@1, row 2")
    with pytest.raises(ColumnNotFound, match="no column 'nothing'"):
        second.clean(mms.convert("nothing", "int8"), progress=False)

    pets = ws.datasets.get("pets@1")
    both = ws.datasets.join(
        f"priced-{way}", left=pets, right=second, on={"label": "kind"}, columns=["price"], progress=False
    )
    assert (both.rows, both.splits, both.classes) == (120, pets.splits, pets.classes)
    assert both.info.provenance["join"]["right"] == f"{name}@2"
    with pytest.raises(InvalidRequest, match="would be there twice"):
        ws.datasets.join(f"priced-{way}", left=both, right=second, on={"label": "kind"}, progress=False)
    with pytest.raises(DatasetNotFound):
        ws.datasets.join(f"priced-{way}", left="nothing", right=second, on="kind", progress=False)
    twice = ws.datasets.concat(f"twice-{way}", [both, f"priced-{way}@1"], progress=False)
    assert (twice.rows, twice.classes) == (240, dict.fromkeys(LABELS, 80))
    with pytest.raises(InvalidRequest, match=r"'price' is not in pets@1"):
        ws.datasets.concat(f"twice-{way}", [both, "pets@1"], progress=False)
    with pytest.raises(InvalidRequest, match="without a split"):
        ws.datasets.concat(f"twice-{way}", [both, "pets@1/train"], progress=False)
    assert ws.datasets.verify(f"twice-{way}", progress=False).result["snapshots"] == 1


def test_a_dataset_is_changed_tagged_compared_and_tidied_and_old_snapshots_stay_as_they_were(
    ws: Client, way: str, readable: Path
) -> None:
    name = f"edited-{way}"
    first = ws.datasets.ingest(name, readable / "photos", progress=False)
    first.tag("paper")
    fewer = first.delete_rows([0, 5, 119], message="three bad ones")
    renamed = fewer.rename_columns({"label": "species", "source": None})

    assert (fewer.ref, fewer.rows, fewer.info.message) == (f"{name}@2", 117, "three bad ones")
    assert [column.name for column in renamed.info.columns] == ["image", "species", "id", "split"]
    assert (ws.datasets.get(f"{name}@paper").ref, ws.datasets.get(f"{name}@paper").rows) == (f"{name}@1", 120)
    assert sum(fewer.splits.values()) == sum(fewer.classes.values()) == 117
    told = renamed.diff("paper")
    assert (told.rows_added, told.rows_deleted) == (0, 3)
    assert (told.columns_renamed, told.columns_dropped) == ({"label": "species"}, ("source",))
    layout = renamed.info.layout
    assert (layout.deleted, layout.parts, sorted(layout.columns)) == (3, 1, ["id", "image", "species", "split"])
    assert layout.bytes == renamed.info.bytes > sum(layout.columns.values())
    compacted = ws.datasets.compact(name, progress=False)
    assert compacted.result == {"snapshot_before": 3, "snapshot": 4, "parts_before": 1, "parts": 1}
    assert compacted.outcome == compacted.facts()["outcome"] == "1 part written anew, in snapshot 4"
    assert ws.datasets.compact(name, progress=False).outcome == "1 part: nothing to put together"
    listed = ws.datasets.snapshots(name)
    assert [(each.number, each.rows, each.deleted, each.tags) for each in listed] == [
        (4, 117, 0, ()),
        (3, 117, 3, ()),
        (2, 117, 3, ()),
        (1, 120, 0, ("paper",)),
    ]
    assert ws.datasets.expire(name, keep=1) == (2, 3)
    # The list of deleted rows; the first part is the tagged snapshot's.
    collected = ws.datasets.collect_garbage(name, grace_s=0, progress=False)
    assert collected.result["folders"] == 1
    assert collected.outcome.startswith("1 folder, 2 expired snapshots removed: ")
    assert ws.datasets.collect_garbage(name, grace_s=0, progress=False).outcome == "nothing to remove"
    verified = ws.datasets.verify(name, progress=False)
    assert verified.result["snapshots"] == 2
    assert re.fullmatch(r"2 snapshots, 2 parts, \d+\.\d KiB: all as they were written", verified.outcome)
    ws.datasets.untag(name, "paper")
    with pytest.raises(SnapshotNotFound, match="no tag 'paper'"):
        ws.datasets.get(f"{name}@paper")


def test_a_column_is_written_where_the_workspace_is(embedded: Client, over_http: Client, readable: Path) -> None:
    name = "brighter"
    dataset = embedded.datasets.ingest(name, readable / "photos", progress=False)
    column = mms.Column(name="brightness", kind="number", dtype="float32")

    def derive(rows: Mapping[str, Any]) -> Any:
        return rows["image"].mean((1, 2, 3), dtype=np.float32)

    written = dataset.write_column(column, derive, inputs=["image"])

    rows = written.open()
    np.testing.assert_allclose(rows.values("brightness"), derive({"image": rows.values("image")}), rtol=1e-6)
    assert written.diff(1).columns_added == ("brightness",)
    with pytest.raises(InvalidRequest, match="lies on a server"):
        over_http.datasets.get("pets").write_column(column, derive, inputs=["image"])


def test_many_processes_write_only_where_the_workspace_is(embedded: Client, over_http: Client) -> None:
    column = mms.Column(name="x", kind="number", dtype="float32")
    writing = embedded.datasets.write("written", columns=[column])
    with writing.writer("a") as writer:
        writer.write({"x": np.arange(3, dtype="float32")})

    assert writing.commit().number == 1
    assert over_http.datasets.get("written").rows == 3
    with pytest.raises(InvalidRequest, match="write where the files lie"):
        over_http.datasets.write("written", columns=[column])


def test_a_dataset_reference_with_a_split_is_refused_where_a_dataset_is_meant(ws: Client) -> None:
    with pytest.raises(InvalidRequest, match="without a split; got 'pets@1/test'"):
        ws.datasets.get("pets@1/test")


def test_rows_are_looked_at_only_where_the_workspace_is(embedded: Client, over_http: Client) -> None:
    assert len(embedded.datasets.get("pets").open().values("label")) == 120
    assert over_http.datasets.get("pets").rows == 120
    with pytest.raises(InvalidRequest, match="pets@1 lies on a server; run it there"):
        over_http.datasets.get("pets").open()
    with pytest.raises(InvalidRequest, match="a server's"):
        _ = over_http.folder
    with pytest.raises(InvalidRequest, match="without a URL"):
        over_http.models.register("tiny", Exports())


class Exports:
    """What register would take."""

    def export(self, folder: Path, *, metrics: Mapping[str, float] | None = None) -> None:
        raise AssertionError("a server's workspace does not ask for it")


# Jobs -----------------------------------------------------------------------------------------------------------


def test_a_job_is_found_by_its_id_with_what_came_out(ws: Client) -> None:
    job = ws.datasets.verify("pets", progress=False)
    again = ws.jobs.get(job.id)
    assert (again.record.kind, again.record.name, again.state) == ("verify", "pets", "succeeded")
    assert again.result == job.result
    assert ws.jobs.list(1)[0].id == job.id
    assert again.wait(timeout_s=0).record == again.record


def test_all_jobs_come_newest_first_over_as_many_pages_as_it_takes(ws: Client, folder: Path) -> None:
    workspace = Workspace(folder)
    made = [workspace.catalog.jobs.start("train", "paging", {}).id for _ in range(120)]  # a page has 50
    for job in made:
        workspace.catalog.jobs.finish(job, "cancelled")
    workspace.close()
    found = [job.id for job in ws.jobs]
    assert found == sorted(set(found), reverse=True)
    assert found[:120] == sorted(made, reverse=True)
    assert [job.id for job in ws.jobs.list(7)] == found[:7]


def test_metrics_are_the_lines_of_the_log_and_none_where_there_is_no_log(ws: Client, folder: Path) -> None:
    workspace = Workspace(folder)
    jobs = workspace.catalog.jobs
    trained, quiet = jobs.start("train", "metrics", {}).id, jobs.start("train", "metrics", {}).id
    lines = [{"step": step, "train/loss": 1 / step} for step in (1, 2, 3)]
    log = workspace.job_folder(trained) / "metrics.jsonl"
    log.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines) + b'{"step": 4, "tra')
    for job in (trained, quiet):
        jobs.finish(job, "cancelled")
    workspace.close()
    loss = ws.jobs.get(trained).metrics()["train/loss"]
    assert list(zip(loss.step, loss.value, strict=True)) == [(1, 1), (2, 1 / 2), (3, 1 / 3)]
    assert np.isnan(loss.time).all()
    assert ws.jobs.get(quiet).metrics() == {}


def test_a_file_of_a_job_is_saved_byte_for_byte_over_what_was_there(ws: Client, folder: Path, tmp_path: Path) -> None:
    workspace = Workspace(folder)
    job = workspace.catalog.jobs.start("ingest", "files", {}).id
    content = np.random.default_rng(0).bytes(3_000_001)
    (workspace.job_folder(job) / "rejects.jsonl").write_bytes(content)
    workspace.catalog.jobs.finish(job, "cancelled")
    workspace.close()
    target = tmp_path / "saved"
    target.write_bytes(b"old")
    assert ws.jobs.get(job).download("rejects.jsonl", target) == target
    assert target.read_bytes() == content
    assert list(tmp_path.iterdir()) == [target]


# Models ---------------------------------------------------------------------------------------------------------


def test_models_are_listed_newest_first_and_got_by_number_alias_or_name(ws: Client, way: str) -> None:
    assert [version.ref for version in ws.models.list("tiny")] == ["tiny@2", "tiny@1"]
    assert {"tiny@1", "tiny@2"} <= {version.ref for version in ws.models.list()}
    assert ws.models.get("tiny").version == 2
    old = ws.models.get("tiny@1")
    assert ws.models.alias("tiny", f"alias-{way}", old).version == 1
    assert ws.models.get(f"tiny@alias-{way}").version == 1
    assert ws.models.alias("tiny", f"alias-{way}", 2).version == 2
    assert ws.models.get(f"tiny@alias-{way}").version == 2
    assert f"alias-{way}" not in ws.models.get("tiny@1").record.aliases
    assert (old.labels, old.metrics["test/accuracy"]) == (LABELS, 0.5)
    assert old.location.is_dir()


def test_a_registered_version_is_the_next_and_answers_like_the_module(embedded: Client, tiny: Tiny) -> None:
    version = embedded.models.register("fresh", tiny.result.best, metrics={"test/accuracy": 0.75})
    assert (version.ref, version.metrics["test/accuracy"]) == ("fresh@1", 0.75)
    deployed = embedded.deployments.create("fresh", model="fresh", max_batch=1)
    pictures = pictures_of(3)
    found = scores_of([deployed.predict(picture) for picture in pictures])
    np.testing.assert_allclose(found, tiny.scores(pictures), atol=1e-5)
    deployed.delete()


# Deployments ----------------------------------------------------------------------------------------------------


def test_a_path_the_bytes_and_the_array_of_a_picture_get_the_module_s_scores(
    deployment: mms.Deployment, tiny: Tiny, tmp_path: Path
) -> None:
    picture = pictures_of(5)[4]
    file = tmp_path / "a picture ü.png"
    file.write_bytes(png(picture))
    for given in (file, str(file), file.read_bytes(), picture):
        prediction = deployment.predict(given)
        np.testing.assert_allclose(scores_of([prediction]), tiny.scores(picture[None]), atol=1e-5)
        scores = [entry.score for entry in prediction.ranked]
        assert scores == sorted(scores, reverse=True)
        assert prediction.label == LABELS[int(tiny.scores(picture[None]).argmax())]
    assert len(deployment.predict(file, top=2).ranked) == len(deployment.predict(picture, top=2).ranked) == 2


@pytest.mark.parametrize("form", ["arrays", "bytes"])
def test_many_pictures_are_answered_in_their_order(deployment: mms.Deployment, tiny: Tiny, form: str) -> None:
    pictures = pictures_of(8, seed=9)
    given = list(pictures) if form == "arrays" else [png(picture) for picture in pictures]
    np.testing.assert_allclose(scores_of(deployment.predict_many(given)), tiny.scores(pictures), atol=1e-5)


def test_a_deployment_is_listed_counts_what_it_answers_switches_over_and_ends(ws: Client) -> None:
    made = ws.deployments.create("passing", model="tiny@1", max_batch=2)
    assert made.record.buckets == (1, 2)
    made.predict_many(list(pictures_of(2)))
    after = ws.deployments.get("passing")
    assert (after.record.requests, after.record.rows, after.record.version) == (1, 2, 1)
    assert "passing" in [each.name for each in ws.deployments.list()]
    assert ws.deployments.create("passing", model="tiny", max_batch=1).record.version == 2
    made.delete()
    assert "passing" not in [each.name for each in ws.deployments.list()]
    with pytest.raises(DeploymentNotFound, match="nothing is deployed as 'passing'"):
        made.predict(pictures_of(1)[0])


# Bulk prediction ------------------------------------------------------------------------------------------------


def test_a_split_is_predicted_row_for_row_into_parquet(
    ws: Client, embedded: Client, tiny: Tiny, tmp_path: Path
) -> None:
    told = ws.predict("tiny@1", data="pets@1/test", to=tmp_path / "out.parquet", progress=False)
    table = pq.read_table(told.path).to_pydict()
    opened = embedded.datasets.get("pets").open()
    rows = opened.split_rows("test")
    scores = tiny.scores(opened.gather("image", rows))
    labels = [LABELS[code] for code in opened.values("label")[rows]]
    best = [LABELS[at] for at in scores.argmax(1)]
    assert table["row"] == rows.tolist()
    assert table["label"] == labels
    assert table["predicted"] == best
    np.testing.assert_allclose(table["score"], scores.max(1), atol=1e-5)
    assert (told.rows, told.errors, told.model) == (24, 0, "tiny@1")
    assert told.accuracy == pytest.approx(np.mean([a == b for a, b in zip(labels, best, strict=True)]))
    assert ws.jobs.get(told.job).state == "succeeded"
    assert list(tmp_path.iterdir()) == [told.path]


def test_a_folder_is_predicted_file_for_file_and_an_unreadable_one_says_why(
    ws: Client, way: str, readable: Path, tmp_path: Path
) -> None:
    source = readable / f"loose-{way}"
    source.mkdir()
    for number, picture in enumerate(pictures_of(3)):
        (source / f"{number}.png").write_bytes(png(picture))
    (source / "3.png").write_bytes(b"no picture")
    told = ws.predict("tiny", data=source, to=tmp_path / "out.parquet", top=1, progress=False)
    table = pq.read_table(told.path).to_pydict()
    assert (told.rows, told.errors, told.accuracy) == (4, 1, None)
    assert [Path(name).name for name in table["source"]] == ["0.png", "1.png", "2.png", "3.png"]
    assert [error is None for error in table["error"]] == [True, True, True, False]
    assert [labels and len(labels) for labels in table["ranked_labels"]] == [1, 1, 1, None]


# Errors ---------------------------------------------------------------------------------------------------------

Call = Callable[[Client], Any]


def _deployed(ws: Client) -> mms.Deployment:
    try:
        return ws.deployments.get("pets")
    except DeploymentNotFound:
        return ws.deployments.create("pets", model="tiny@1", max_batch=8)


PICTURE = pictures_of(1)[0]
REFUSED: list[tuple[str, type[MmsError], str, Call]] = [
    ("a dataset", DatasetNotFound, "no dataset 'dogs'", lambda ws: ws.datasets.get("dogs")),
    ("a snapshot", SnapshotNotFound, "99", lambda ws: ws.datasets.get("pets@99")),
    ("its name", InvalidName, "got '..'", lambda ws: ws.datasets.get("../etc")),
    ("snapshot 0", InvalidName, "begins with a letter; got '0'", lambda ws: ws.datasets.get("pets@0")),
    ("to verify", DatasetNotFound, "no dataset 'dogs'", lambda ws: ws.datasets.verify("dogs")),
    ("ingest name", InvalidName, "try 'my-dogs'", lambda ws: ws.datasets.ingest("My Dogs", "/tmp")),
    ("a job", JobNotFound, "no job '01ABC'", lambda ws: ws.jobs.get("01ABC")),
    ("jobs limit", InvalidRequest, "limit", lambda ws: ws.jobs.list(0)),
    ("a model", ModelNotFound, "no model 'dogs'", lambda ws: ws.models.get("dogs")),
    ("models", ModelNotFound, "no model 'dogs'", lambda ws: ws.models.list("dogs")),
    ("a version", ModelNotFound, "has versions [2, 1]", lambda ws: ws.models.get("tiny@9")),
    ("an alias", ModelNotFound, "no version or alias 'nobody'", lambda ws: ws.models.get("tiny@nobody")),
    ("alias to", ModelNotFound, "no version or alias 9", lambda ws: ws.models.alias("tiny", "champion", 9)),
    ("alias name", InvalidName, "alias name has", lambda ws: ws.models.alias("tiny", "Good One", 1)),
    ("alias number", InvalidName, "from 1; got 'tiny@7up'", lambda ws: ws.models.alias("tiny", "7up", 1)),
    ("a deployment", DeploymentNotFound, "nothing is deployed as 'dogs'", lambda ws: ws.deployments.get("dogs")),
    ("to deploy", ModelNotFound, "no model 'dogs'", lambda ws: ws.deployments.create("dogs", model="dogs")),
    ("deploy name", InvalidName, "deployment name", lambda ws: ws.deployments.create("Dogs!", model="tiny")),
    ("bulk model", ModelNotFound, "no model", lambda ws: ws.predict("dogs", data="pets", to="/tmp/never.parquet")),
    ("bulk data", DatasetNotFound, "'dogs'", lambda ws: ws.predict("tiny", data="dogs", to="/tmp/never.parquet")),
    ("split", SplitNotFound, "holdout", lambda ws: ws.predict("tiny", data="pets/holdout", to="/tmp/never.parquet")),
    ("bulk to", InvalidRequest, "make it first", lambda ws: ws.predict("tiny", data="pets", to="/nowhere/x.parquet")),
    ("shape", InvalidInput, "3, 3, 3", lambda ws: _deployed(ws).predict(np.zeros((3, 3, 3, 3), np.uint8))),
    ("NaN", InvalidInput, "number", lambda ws: _deployed(ws).predict(np.full(SHAPE, np.nan))),
    ("range", InvalidInput, "from 0 to 255", lambda ws: _deployed(ws).predict(np.full(SHAPE, 256))),
    ("complex", InvalidInput, "numbers", lambda ws: _deployed(ws).predict(np.zeros(SHAPE, complex))),
    ("corrupt", InvalidInput, "", lambda ws: _deployed(ws).predict(b"no picture")),
    ("no file", InvalidInput, "No such file", lambda ws: _deployed(ws).predict("/nowhere/x.png")),
    ("zero byte", InvalidInput, "check it", lambda ws: _deployed(ws).predict("x\0.png")),
    ("a list", InvalidInput, "got list", lambda ws: _deployed(ws).predict([1, 2])),  # type: ignore[arg-type]
    ("none", InvalidInput, "at least one", lambda ws: _deployed(ws).predict_many([])),
    ("mixed", InvalidInput, "send two requests", lambda ws: _deployed(ws).predict_many([PICTURE, b"x"])),
    (
        "too many",
        InvalidRequest,
        "at most 8 rows, as the deployment has programs",
        lambda ws: _deployed(ws).predict_many([PICTURE] * 9),
    ),
    ("top", InvalidRequest, "got '-1'", lambda ws: _deployed(ws).predict(PICTURE, top=-1)),
]


@pytest.mark.parametrize(("kind", "words", "call"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_is_refused_is_refused_alike_in_class_and_message(
    both: tuple[Client, Client], kind: type[MmsError], words: str, call: Call
) -> None:
    seen = []
    for ws in both:
        with pytest.raises(MmsError) as raised:
            call(ws)
        seen.append((type(raised.value), raised.value.message))
    assert seen[0] == seen[1]
    assert seen[0][0] is kind
    assert words in seen[0][1]


def _one_class(folder: Path) -> None:
    (folder / "ant").mkdir(parents=True)
    for number, picture in enumerate(pictures_of(8)):
        (folder / "ant" / f"{number}.png").write_bytes(png(picture))


def _empty(folder: Path) -> None:
    (folder / "ant").mkdir(parents=True)


def _unreadable(folder: Path) -> None:
    _one_class(folder)
    (folder / "bee").mkdir()
    for number in range(8):
        (folder / "bee" / f"{number}.png").write_bytes(b"no picture")


@pytest.mark.parametrize(("make", "kind"), [(_empty, NothingToIngest), (_unreadable, DataError)])
def test_a_job_that_fails_raises_the_same_error_from_waiting_and_leaves_no_dataset(
    both: tuple[Client, Client], readable: Path, make: Callable[[Path], None], kind: type[MmsError]
) -> None:
    source = readable / f"bad{make.__name__}"
    make(source)
    seen = []
    for ws in both:
        with pytest.raises(kind) as raised:
            ws.datasets.ingest("bad", source, progress=False)
        seen.append((type(raised.value), raised.value.message))
        job = ws.jobs.list(1)[0]
        assert (job.state, job.record.name) == ("failed", "bad")
        with pytest.raises(kind):
            job.wait()
        with pytest.raises(NotFound, match=f"job {job.id} has no file predictions.parquet; it is failed"):
            job.download("predictions.parquet", readable / "never")
        with pytest.raises(DatasetNotFound):
            ws.datasets.get("bad")
    assert seen[0] == seen[1]
    assert not (readable / "never").exists()


def test_a_server_reads_no_source_outside_its_roots(over_http: Client, tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(Forbidden, match="--source-root"):
        over_http.datasets.ingest("outside", tiny.photos, progress=False)
    with pytest.raises(Forbidden, match="--source-root"):
        over_http.predict("tiny", data=tiny.photos, to=tmp_path / "x.parquet", progress=False)
    assert not list(tmp_path.iterdir())


def test_a_damaged_artefact_is_neither_deployed_nor_predicted_with(
    both: tuple[Client, Client], folder: Path, tiny: Tiny, tmp_path: Path
) -> None:
    workspace = Workspace(folder)
    tiny_model.register(tiny, workspace, "damaged")
    workspace.close()
    weights = max((file for file in both[0].models.get("damaged").location.rglob("*") if file.is_file()), key=_size)
    whole = weights.read_bytes()
    content = bytearray(whole)
    content[len(content) // 2] ^= 1
    weights.chmod(0o600)
    weights.write_bytes(content)
    seen = []
    for ws in both:
        with pytest.raises(Damaged) as deployed:
            ws.deployments.create("damaged", model="damaged")
        with pytest.raises(Damaged) as predicted:
            ws.predict("damaged", data="pets/test", to=tmp_path / "x.parquet", progress=False)
        seen.append((deployed.value.message, predicted.value.message))
    weights.write_bytes(whole)  # other tests back this workspace up
    assert seen[0] == seen[1]
    assert "model damaged@1" in seen[0][0]
    assert weights.name in seen[0][0]
    assert not list(tmp_path.iterdir())


def _size(file: Path) -> int:
    return file.stat().st_size


def test_the_status_names_what_is_there(ws: Client) -> None:
    told = ws.status()
    assert "pets@1" in told["datasets"]
    assert "tiny" in told["models"]
    assert "recorded" in told["jobs"]
    assert (ws.embedded, told["workspace"]) == (ws._workspace is not None, ws.where)


def test_errors_keep_their_builtin_meaning_over_the_wire(ws: Client) -> None:
    with pytest.raises(KeyError):
        ws.models.get("dogs")
    with pytest.raises(ValueError, match="dataset name"):
        ws.datasets.get("A B")
    assert not issubclass(DatasetNotFound, Conflict)
