"""Evaluating a version embedded and over HTTP, held against the files and against NumPy; and what is shown of it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mms_sdk as mms
from mms_sdk import cli
from mms_sdk.client import evaluation_pages as pages
from mms_sdk.errors import (
    ColumnNotFound,
    DatasetNotFound,
    InvalidRequest,
    ModelNotFound,
    SplitNotFound,
)
from mms_sdk.schema.evaluation import Evaluation as Record
from tiny_model import LABELS, Tiny

HOW: dict[str, Any] = {"resamples": 100, "progress": False}


@pytest.fixture
def measured(ws: mms.WorkspaceClient) -> mms.Evaluation:
    return ws.evaluate("tiny@1", data="pets/test", against="tiny@2", slices=["label", "split"], **HOW)


def test_a_version_is_measured_on_a_split(
    ws: mms.WorkspaceClient, measured: mms.Evaluation, tiny: Tiny, embedded: mms.WorkspaceClient
) -> None:
    snapshot = embedded.datasets.get("pets@1").open()
    rows = snapshot.split_rows("test")
    targets = snapshot.values("label")[rows]
    scores = tiny.scores(snapshot.gather("image", rows))
    said = scores.argmax(1)

    assert (measured.model, measured.data, measured.rows) == ("tiny@1", "pets@1/test", 24)
    assert measured.metrics["accuracy"].value == np.mean(said == targets)
    loss = -np.log(scores[np.arange(24), targets]).mean()
    assert measured.metrics["log_loss"].value == pytest.approx(loss, rel=1e-4)
    wanted = [[int(((targets == of) & (said == code)).sum()) for code in range(3)] for of in range(3)]
    assert [list(row) for row in measured.confusion] == wanted
    assert [each.label for each in measured.classes] == list(LABELS)
    wrong = np.flatnonzero(said != targets)
    assert sorted(each.row for each in measured.mistakes) == sorted(rows[wrong].tolist())
    for each in measured.mistakes:
        place = int(np.flatnonzero(rows == each.row)[0])
        assert (each.target, each.predicted) == (LABELS[targets[place]], LABELS[said[place]])
        assert each.source.startswith(f"{each.target}/")
        assert each.score == pytest.approx(scores[place].max(), rel=1e-4)
    by_label = {each.value: each for each in measured.slices if each.column == "label"}
    for code, label in enumerate(LABELS):
        assert by_label[label].rows == (targets == code).sum()
        assert by_label[label].metrics["accuracy"].value == np.mean(said[targets == code] == code)
    assert measured.notes == ()
    job = ws.jobs.get(measured.id)
    assert (job.record.kind, job.state, job.record.progress.done) == ("evaluate", "succeeded", 100)
    assert "accuracy 0." in repr(ws.jobs.list())


def test_a_version_does_not_differ_from_its_copy(measured: mms.Evaluation) -> None:
    comparison = measured.comparison
    assert comparison is not None
    assert comparison.model == "tiny@2"
    assert comparison.metrics["accuracy"] == measured.metrics["accuracy"].value
    assert {each.value for each in comparison.differences.values()} == {0.0}
    assert comparison.mcnemar is not None
    assert comparison.mcnemar.p_value == 1.0


def test_what_was_measured_is_kept_with_the_version(ws: mms.WorkspaceClient, measured: mms.Evaluation) -> None:
    version = ws.models.get("tiny@1")
    newest = version.evaluations[0]
    assert newest.id == measured.id
    assert newest.record == measured.record
    assert "pets@1/test" in repr(version.evaluations)
    assert "accuracy" in repr(newest)
    assert measured.id not in [each.id for each in ws.models.get("tiny@2").evaluations]
    before = [each.id for each in version.evaluations]
    with pytest.raises(InvalidRequest):
        ws.evaluate(version, data="pets@1/test", slices="image", **HOW)
    assert [each.id for each in version.evaluations] == before  # what failed is no evaluation


def test_the_same_seed_measures_the_same(both: tuple[mms.WorkspaceClient, ...]) -> None:
    first, second = (ws.evaluate("tiny@1", data=ws.datasets.get("pets@1"), **HOW).record for ws in both)
    same = {"job": "", "created_at": ""}
    assert first.model_copy(update=same) == second.model_copy(update=same)
    assert first.notes == (
        "rows that the version was trained on may be among these; name a split that it has not seen, e.g. test",
    )


@pytest.mark.parametrize(
    ("asked", "error", "match"),
    [
        ({"model": "nothing"}, ModelNotFound, "no model"),
        ({"against": "tiny@9"}, ModelNotFound, "no version or alias 9"),
        ({"data": "nothing"}, DatasetNotFound, "no dataset"),
        ({"data": "pets/val2"}, SplitNotFound, "val2"),
        ({"slices": "colour"}, ColumnNotFound, "colour"),
        ({"slices": "image"}, InvalidRequest, "one value a row; 'image' of pets@1 is of kind image, uint8 8×6×3"),
        ({"confidence": 1.5}, InvalidRequest, "confidence"),
        ({"resamples": 5}, InvalidRequest, "resamples"),
    ],
)
def test_what_cannot_be_measured_is_said(
    ws: mms.WorkspaceClient, asked: dict[str, Any], error: type[Exception], match: str
) -> None:
    whole: dict[str, Any] = {"model": "tiny@1", "data": "pets/test", **HOW, **asked}
    with pytest.raises(error, match=match):
        ws.evaluate(whole.pop("model"), **whole)


def test_a_report_is_written_whole_and_read_back(measured: mms.Evaluation, tmp_path: Path) -> None:
    told = json.loads(measured.save(tmp_path / "report.json").read_bytes())
    assert Record.model_validate(told) == measured.record
    assert measured.save(tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]
    with pytest.raises(InvalidRequest, match=r"report\.html or report\.json; got .*report\.pdf"):
        measured.save(tmp_path / "report.pdf")
    with pytest.raises(InvalidRequest, match="make it first"):
        measured.save(tmp_path / "nowhere" / "report.html")


class _Tags(HTMLParser):
    """What a page is made of; every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.attributes: set[str] = set()
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_a_page_shows_hostile_names_as_text_and_loads_nothing(measured: mms.Evaluation) -> None:
    evil = '<script>alert("1")</script>"\' onload=x \x1b[2J'
    told = json.loads(measured.record.model_dump_json().replace('"ant"', json.dumps(evil)))
    record = Record.model_validate(told | {"notes": [evil], "data": evil, "first_left_out": evil})

    page = _Tags()
    page.feed(pages.document(record))

    assert page.open == []
    assert page.seen.isdisjoint({"script", "img", "link", "iframe", "a"})
    assert not [name for name in page.attributes if name.startswith("on") or name in ("src", "href")]
    assert evil in "".join(page.words)
    assert "http" not in re.sub(r"http-equiv", "", pages.document(record))
    assert "\x1b" not in pages.text(record)


def test_a_page_has_everything_that_was_measured(measured: mms.Evaluation) -> None:
    page = measured._repr_html_()
    for said in ("balanced_accuracy", "tiny@1 against tiny@2", "by label", "calibration", "Wilson", "roc_auc", "<svg"):
        assert said in page
    told = str(measured)
    for said in ("balanced_accuracy", "tiny@1 against tiny@2", "by label", "McNemar", "Wilson", "pets@1/test"):
        assert said in told


def test_many_classes_are_shown_by_their_most_frequent_mistakes(measured: mms.Evaluation) -> None:
    count = 40
    one = measured.classes[0]
    confusion = np.eye(count, dtype=int) * 5
    confusion[3, 8] = 77
    record = measured.record.model_copy(
        update={
            "classes": tuple(one.model_copy(update={"label": f"c{at}"}) for at in range(count)),
            "confusion": tuple(map(tuple, confusion.tolist())),
        }
    )
    page = pages.page(record)
    assert "most frequent mistakes of 40 classes" in page
    assert re.search(r">c3</td><td[^>]*>c8</td><td[^>]*>77</td>", page)


def test_the_command_measures_and_writes_the_report(
    folder: Path, embedded: mms.WorkspaceClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--workspace", str(folder), "--resamples", "100"]
    report = tmp_path / "report.html"
    words = ["evaluate", "tiny@1", "pets/test", "--against", "tiny@2", "--slice", "label", "--to", str(report)]

    assert cli.main([*words, *where]) == 0
    assert "balanced_accuracy" in capsys.readouterr().out
    assert "tiny@1 against tiny@2" in report.read_text()
    assert cli.main(["evaluate", "tiny@1", "pets/test", "--json", *where]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["model"], told["rows"], told["resamples"]) == ("tiny@1", 24, 100)
    jobs = embedded.jobs.counts()
    assert cli.main(["evaluate", "tiny@1", "pets/test", "--to", str(tmp_path / "x.pdf"), *where]) == 1
    assert "report.html or report.json" in capsys.readouterr().err
    assert embedded.jobs.counts() == jobs
