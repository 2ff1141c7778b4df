"""What handles show: the numbers they hold, and nothing that a dataset or server says as markup."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

import mms_sdk as mms
from mms_sdk import html
from mms_sdk.client import studies
from mms_sdk.client.dataset import Dataset
from mms_sdk.client.deployments import Deployment, Prediction
from mms_sdk.client.jobs import Job
from mms_sdk.client.models import ModelVersion
from mms_sdk.client.tables import Table
from mms_sdk.schema.job import Job as JobRecord
from mms_sdk.schema.prediction import Ranked
from mms_sdk.storage.workspace import Workspace

HOSTILE = "<img src=x onerror=alert(1)>"
QUOTED = "\"'><script>alert(1)</script>"


class _Page(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def harmless(markup: str) -> _Page:
    """Parses HTML, and asserts that nothing in it runs or loads anything."""
    page = _Page(markup)
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "a", "link", "form"), tag
        assert not [name for name in attributes if name.startswith("on")], attributes
        source = attributes.get("src")
        assert source is None or source.startswith(("data:image/png;base64,", "data:audio/wav;base64,"))
    return page


def _hostile_dataset(embedded: mms.WorkspaceClient) -> Dataset:
    info = embedded.datasets.get("pets").info
    columns = tuple(
        column.model_copy(update={"labels": (HOSTILE, QUOTED, "cat")}) if column.name == "label" else column
        for column in info.columns
    )
    statistics = {"classes": {HOSTILE: 17, QUOTED: 18, "cat": 19}}
    info = info.model_copy(update={"columns": columns, "statistics": statistics, "message": HOSTILE})
    return Dataset(embedded._api, info, None)


def test_a_dataset_shows_its_counts_and_escapes_labels_and_messages(embedded: mms.WorkspaceClient) -> None:
    dataset = _hostile_dataset(embedded)
    assert repr(dataset) == "<dataset pets@1: 120 rows, 3 classes; train 72, val 24, test 24>"
    page = harmless(dataset._repr_html_())
    for told in (f"{HOSTILE}17", f"{QUOTED}18", "cat19", "train 72", f"{HOSTILE}, {QUOTED}, cat", "1 of 20"):
        assert told in page.text
    assert page.text.count(HOSTILE) == 3  # as a class, as a label of the column and as the message
    assert dataset.facts()["classes"] == f"{HOSTILE} 17, {QUOTED} 18, cat 19"


def test_preview_pictures_have_the_pixels_of_the_stored_rows(embedded: mms.WorkspaceClient) -> None:
    pets = embedded.datasets.get("pets")
    rows = [7, 0, 119]
    preview = pets.preview(rows, captions=[HOSTILE, QUOTED, "c"])
    page = harmless(preview._repr_html_())
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    stored = pets.open().gather("image", np.array(rows))
    assert len(sources) == 3
    for source, expected in zip(sources, stored, strict=True):
        assert source is not None
        picture = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        assert picture.format == "PNG"
        np.testing.assert_array_equal(np.asarray(picture), expected)
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == [HOSTILE, QUOTED, "c"]
    assert "label: cat" in page.text  # beside what it was called
    title, header, *lines = repr(preview).splitlines()
    assert title == "3 rows of pets@1"
    assert header.split() == ["row", "caption", "image", "label", "source"]
    assert [line.split()[0] for line in lines] == ["7", "0", "119"]


def test_a_preview_of_clips_shows_their_first_frames(tmp_path: Path) -> None:
    first = np.random.default_rng(0).integers(0, 256, (24, 32, 3)).astype(np.uint8)
    with av.open(str(tmp_path / "1.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.height, stream.width, stream.pix_fmt = 24, 32, "bgr0"
        for frame in (first, 255 - first):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    datasets = mms.connect(workspace=tmp_path / "workspace").datasets
    whole = mms.Split(train=1, val=0, test=0)
    clips = datasets.ingest("clips", mms.Files(tmp_path / "1.mkv"), split=whole, progress=False)
    page = harmless(clips.preview()._repr_html_())
    (source,) = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))), first)
    assert "32×24 rgb" in repr(clips.preview())


def test_a_preview_without_rows_shows_two_of_each_class(embedded: mms.WorkspaceClient) -> None:
    pets = embedded.datasets.get("pets")
    page = harmless(pets.preview()._repr_html_())
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == [
        *2 * ["ant"],
        *2 * ["bee"],
        *2 * ["cat"],
    ]
    assert [line.split()[:4] for line in repr(pets.preview(split="test")).splitlines()[2:4]] == [
        [str(row), "6×8", "rgb", "ant"] for row in pets.open().split_rows("test")[:2]
    ]


def test_a_job_shows_how_it_ended_and_escapes_its_error() -> None:
    record = JobRecord(
        id="01X", kind="train", name=HOSTILE, state="failed", created_at="2026-01-02T03:04:05", error={"detail": QUOTED}
    )
    job = Job(None, record)  # type: ignore[arg-type]
    page = harmless(job._repr_html_())
    assert HOSTILE in page.text
    assert QUOTED in page.text
    assert "failed" in page.text
    assert repr(job) == f"<job 01X: train {HOSTILE}, failed>"


def test_a_model_version_shows_its_metrics_and_escapes_labels(embedded: mms.WorkspaceClient) -> None:
    record = embedded.models.get("tiny@1").record
    lineage = record.card.lineage.model_copy(update={"dataset": QUOTED})
    card = record.card.model_copy(update={"labels": (HOSTILE, "b"), "lineage": lineage, "metrics": {HOSTILE: 0.12345}})
    version = ModelVersion(None, record.model_copy(update={"card": card, "aliases": (HOSTILE,)}))
    page = harmless(version._repr_html_())
    assert page.text.count(HOSTILE) == 3
    assert QUOTED in page.text
    assert "0.1235" in page.text or "0.1234" in page.text
    assert f"{record.card.parameters:,}" in page.text
    assert "tiny@1: 2 classes" in repr(version)


def test_a_deployment_and_a_prediction_show_their_numbers_and_escape_labels(embedded: mms.WorkspaceClient) -> None:
    record = embedded.deployments.create("shown", model="tiny@1", max_batch=1).record
    deployment = Deployment(None, record.model_copy(update={"labels": (HOSTILE, QUOTED)}))  # type: ignore[arg-type]
    assert repr(deployment) == "<deployment shown: tiny@1, ready>"
    page = harmless(deployment._repr_html_())
    assert HOSTILE in page.text
    assert "(8, 6, 3)" in page.text
    ranked = (Ranked(label=HOSTILE, score=0.75), Ranked(label="b", score=0.25), Ranked(label="c", score=0.0))
    prediction = Prediction(ranked=ranked)
    assert repr(prediction) == str(prediction) == f"<{HOSTILE} 75.0%, b 25.0%, c 0.0%>"
    page = harmless(prediction._repr_html_())
    assert HOSTILE in page.text
    assert "0.7500" in page.text
    assert re.findall(r"width:(\d+)px", prediction._repr_html_()) == ["120", "40", "1"]


def test_tables_show_every_row_and_escape_every_cell() -> None:
    table = Table([1, 2], title=HOSTILE, rows=[{QUOTED: 1, "b": HOSTILE}, {QUOTED: 22, "b": "x"}])
    page = harmless(table._repr_html_())
    assert page.text.count(HOSTILE) == 2
    assert QUOTED in page.text
    assert [line.split() for line in repr(Table([1, 2], title="t", rows=[{"n": 1}, {"n": 22}])).splitlines()] == [
        ["n"],
        ["1"],
        ["22"],
    ]
    empty: Table[Any] = Table([], title="jobs", rows=[])
    assert repr(empty) == "no jobs yet"
    assert "no jobs yet" in harmless(empty._repr_html_()).text


@pytest.mark.parametrize("cell", ["", " " * 99, "\n" * 50, "x" * 99_999, "a b " * 99, None, True, 0.1, 10**30])
def test_a_cell_may_hold_anything(cell: Any) -> None:
    table = Table([1], title="t", rows=[{"n": cell}])
    page = harmless(table._repr_html_())
    assert len(page.text) < 600
    assert len(repr(table).split("\n")) == 2


def test_a_workspace_and_a_bulk_result_show_what_is_there(tmp_path: Path) -> None:
    folder = tmp_path / HOSTILE
    with mms.connect(workspace=folder) as ws:
        assert repr(ws) == f"<mms workspace at {folder}>"
        page = harmless(ws._repr_html_())
        assert str(folder) in page.text
        assert "none yet" in page.text
    told = mms.BulkResult(path=tmp_path / "x", rows=1234, errors=5, accuracy=0.98765, model="m@1", job="j")
    told = told.model_copy(update={"first_error": "a.png: it is empty"})
    failed = "5 of them without a prediction, e.g. a.png: it is empty"
    assert repr(told) == f"1,234 rows by m@1 in {tmp_path / 'x'}, {failed}, accuracy 0.9877"


def test_jobs_of_a_hostile_name_are_listed_escaped(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    job = workspace.catalog.jobs.start("ingest", HOSTILE, {}).id
    workspace.catalog.jobs.finish(job, "failed", error={"detail": HOSTILE})
    with mms.connect(workspace=tmp_path / "ws") as ws:
        assert harmless(ws.jobs.list()._repr_html_()).text.count(HOSTILE) == 2
    workspace.close()


def test_curves_draw_each_number_at_its_height_and_escape_names() -> None:
    drawn = html.curves(HOSTILE, {QUOTED: [4.0, 2.0, float("nan"), 1.0], "b": [0.5]}, width=300, height=100)
    page = harmless(drawn)
    lines = [attributes["points"] for tag, attributes in page.tags if tag == "polyline"]
    assert lines == ["0.0,0.0 100.0,50.0 300.0,75.0", "0.0,87.5"]
    assert HOSTILE in page.text
    assert f"{QUOTED} 1.0000" in page.text


@pytest.mark.parametrize("show", [html.bars, html.facts])
def test_bars_and_facts_escape_titles_and_names(show: Any) -> None:
    given = [(QUOTED, 0.5)] if show is html.bars else {QUOTED: 0.5}
    page = harmless(show(HOSTILE, given))
    assert HOSTILE in page.text
    assert QUOTED in page.text
    assert "0.5" in page.text


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"rows": [0, 1], "captions": ["one"]}, "one caption for each row; got 1 for 2 rows"),
        ({"rows": [0], "split": "test"}, "rows and split='test'"),
        ({"rows": [120]}, "row numbers of pets@1 are 0 to 119; got 120"),
        ({"rows": [-1]}, "are 0 to 119; got -1"),
        ({"rows": [0.5]}, r"rows are given by their numbers, e.g. \[3, 17\]; got \[0.5\]"),
        ({"rows": ["a"]}, "rows are given by their numbers"),
        ({"rows": [True]}, "rows are given by their numbers"),
        ({"rows": [[0]]}, "rows are given by their numbers"),
        ({"rows": [[0], [0, 1]]}, "rows are given by their numbers"),
        ({"rows": "01"}, "rows are given by their numbers"),
        ({"rows": [2**70]}, "rows are given by their numbers"),
        ({"split": "dev"}, "no rows in split 'dev'"),
    ],
)
def test_a_preview_of_what_is_not_there_is_refused(
    embedded: mms.WorkspaceClient, asked: dict[str, Any], words: str
) -> None:
    with pytest.raises(mms.errors.MmsError, match=words):
        embedded.datasets.get("pets").preview(**asked)


def test_a_preview_of_no_rows_says_so(embedded: mms.WorkspaceClient) -> None:
    preview = embedded.datasets.get("pets").preview([])
    assert repr(preview) == "0 rows of pets@1"
    assert "0 rows of pets@1" in harmless(preview._repr_html_()).text


@pytest.mark.parametrize("notebook", [True, False])
def test_how_a_trial_ended_is_no_error_output_in_a_notebook(
    notebook: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(html, "in_notebook", lambda: notebook)

    studies._say("trial 0 of 4: loss 0.5")

    said = "  trial 0 of 4: loss 0.5\n"
    assert capsys.readouterr() == ((said, "") if notebook else ("", said))
