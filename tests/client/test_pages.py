"""What datasets of every kind show: true numbers, all of them, in words that fit, and no markup of their own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len
from test_shown import HOSTILE, QUOTED, harmless

import mms_sdk as mms
from mms_sdk import html
from mms_sdk.client import pages
from mms_sdk.client.dataset import Dataset

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with mms.connect(workspace=tmp_path_factory.mktemp("pages") / "ws") as found:
        yield found


@pytest.fixture(scope="module")
def crumbs(ws: mms.WorkspaceClient) -> Dataset:
    """Twelve parts of hostile text, series, vectors, times, categories and video, with values missing, and no class."""
    columns = [
        mms.Column(name="story", kind="text", dtype="uint8", shape=None, nullable=True, title=HOSTILE),
        mms.Column(name="signal", kind="series", dtype="float32", shape=(None, 2), rate_hz=50, unit="<mV>"),
        mms.Column(name="vector", kind="embedding", dtype="float32", shape=(8,)),
        mms.Column(name="when", kind="timestamp", dtype="int64", unit="s", nullable=True),
        mms.Column(name="kind", kind="category", dtype="int32", labels=(HOSTILE, QUOTED)),
        mms.Column(name="video", kind="encoded-video", dtype="uint8", shape=None),
    ]
    writing = ws.datasets.write("crumbs", columns=columns)
    for key in range(12):
        with writing.writer(f"{key:02}") as writer:
            writer.write(
                {
                    "story": [HOSTILE.encode(), None, QUOTED.encode() * 100],
                    "signal": [RNG.random((n, 2), np.float32) for n in (0, 10, 500)],
                    "vector": RNG.random((3, 8), np.float32),
                    "when": np.ma.masked_equal(np.array([0, 86400, -1]), -1),
                    "kind": np.array([0, 1, 1], np.int32),
                    "video": [b"<script>", b"", b"x" * 2000],
                }
            )
    writing.commit(expect=12)
    return ws.datasets.get("crumbs")


def test_a_dataset_of_every_kind_shows_itself_and_no_markup_of_its_own(crumbs: Dataset) -> None:
    page = harmless(crumbs._repr_html_())
    for told in ("36", "12 parts", "series", "float32 n×2", "in <mV>; 50 Hz", f"called {HOSTILE}", "text, nullable"):
        assert told in page.text
    assert "12 parts of 3 rows on average; mms datasets compact crumbs makes one of them" in page.text
    assert repr(crumbs) == "<dataset crumbs@1: 36 rows>"
    assert "rows by class" not in page.text


def test_what_is_drawn_is_said_for_those_who_do_not_see_it(ws: mms.WorkspaceClient, crumbs: Dataset) -> None:
    shown = [crumbs._repr_html_(), crumbs.preview()._repr_html_(), crumbs.describe()._repr_html_()]
    for page in map(harmless, shown):
        for tag, attributes in page.tags:
            said = attributes.get("alt") if tag == "img" else attributes.get("aria-label")
            assert said or tag not in ("svg", "img", "audio")
            assert attributes.get("role") not in ("img", "region") or said
            assert tag != "th" or attributes.get("scope") in ("col", "row")
        levels = [int(attributes["aria-level"] or 0) for _, attributes in page.tags if "aria-level" in attributes]
        assert levels[0] == 3
        assert set(levels[1:]) <= {4}


def test_samples_of_every_kind_show_themselves_and_no_markup_of_their_own(crumbs: Dataset) -> None:
    preview = crumbs.preview([0, 1, 2])
    page = harmless(preview._repr_html_())
    assert f"story: {HOSTILE}" in page.text
    assert "story: –" in page.text
    assert "when: 1970-01-02T00:00:00" in page.text
    assert f"kind: {QUOTED}" in page.text
    assert "video: this is not a readable clip" in page.text
    labels = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert len(labels) == 5  # a vector each, and two series that hold something
    title, header, *lines = repr(preview).split("\n")
    assert title == "3 rows of crumbs@1"
    assert header.split() == ["row", "story", "signal", "vector", "when", "kind", "video"]
    assert len(lines) == 3
    rows = crumbs.preview()
    assert len(harmless(rows._repr_html_()).text) > 100
    assert len(repr(rows).split("\n")) == 2 + 12


def test_descriptions_show_every_column_and_no_markup_of_their_own(crumbs: Dataset) -> None:
    described = crumbs.describe()
    page = harmless(described._repr_html_())
    assert [each.column for each in described] == ["story", "signal", "vector", "when", "kind", "video"]
    for told in ("numbers", "names", "times", HOSTILE, "seconds", "1970-01-01T00:00:00"):
        assert told in page.text
    story = described[0]
    assert (story.count, story.missing, story.distinct) == (24, 12, 2)
    drawn = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert all(re.match(r"histogram from .* to .*: [\d, ]+$", str(label)) for label in drawn)
    assert "story" in repr(described)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_text_for_a_terminal_fits_it(crumbs: Dataset, ws: mms.WorkspaceClient, width: int) -> None:
    wide = "wide" if "wide@1" in [each.ref for each in ws.datasets.list()] else None
    if wide is None:
        ws.datasets.ingest("wide", {f"a_long_name_for_column_{at}": RNG.random(10) for at in range(60)}, progress=False)
    for dataset in (crumbs, ws.datasets.get("wide")):
        lines = pages.text(dataset, width=width).split("\n")
        assert max(map(cell_len, lines)) <= width
        assert all(line.isprintable() for line in lines)
    assert sum("a_long_name_for_c" in line for line in lines) == 60


def test_classes_are_counted_by_split_as_numpy_counts_them(ws: mms.WorkspaceClient) -> None:
    codes = RNG.integers(0, 30, 2_000)
    names = np.array([f"class {code:02}" for code in codes])
    ws.datasets.ingest("many", mms.Arrow(_arrow(ws, {"x": RNG.random(2_000), "name": names}), label="name"))
    many = ws.datasets.get("many")
    opened = many.open()
    label, split = opened.values("label"), opened.values("split")
    expected = {
        name: {part: int(((label == code) & (split == number)).sum()) for number, part in enumerate(mms_splits(many))}
        for code, name in enumerate(many.labels)
    }
    assert many.classes_by_split() == expected
    assert {name: sum(counts.values()) for name, counts in expected.items()} == many.classes
    page = harmless(many._repr_html_())
    bars = [attributes["aria-label"] for tag, attributes in page.tags if "train" in str(attributes.get("aria-label"))]
    largest = sorted(many.classes, key=lambda name: -many.classes[name])[:20]
    assert bars == [", ".join(f"{part} {rows:,}" for part, rows in expected[name].items()) for name in largest]
    rest = sorted(many.classes.values())[:10]
    assert f"the largest 20; 10 more have {rest[0]} to {rest[-1]} rows each" in page.text
    assert many.facts()["classes"].startswith("30: class 00 ")


def mms_splits(dataset: Dataset) -> tuple[str, ...]:
    """Names of the splits in order of their codes."""
    return next(column.labels or () for column in dataset.info.columns if column.name == "split")


def _arrow(ws: mms.WorkspaceClient, arrays: Any) -> str:
    from mms_sdk.compute.data.kinds.tabular import write_arrays

    return str(write_arrays(arrays, ws.folder / "arrays.arrow"))


def test_rows_without_a_class_are_in_none() -> None:
    codes = np.ma.masked_equal(np.array([0, 1, 9, 1]), 9)
    splits = np.array([0, 1, 1, 1], np.uint8)
    expected = {"a": {"train": 1, "val": 0}, "b": {"train": 0, "val": 2}, "c": {"train": 0, "val": 0}}
    assert pages.by_split(codes, splits, ("a", "b", "c"), ("train", "val")) == expected
    wrong = np.array([0, 1, -7, 1, 3, 1]), np.array([0, 1, 1, 1, 1, 2], np.uint8)  # codes that name nothing
    assert pages.by_split(*wrong, ("a", "b", "c"), ("train", "val")) == expected


def test_a_dataset_without_a_row_shows_itself(ws: mms.WorkspaceClient) -> None:
    arrays = {"x": RNG.random(30), "name": np.array(["a", "b"] * 15), "v": RNG.random((30, 3))}
    dataset = ws.datasets.ingest("emptied", mms.Arrow(_arrow(ws, arrays), label="name"), progress=False)
    empty = dataset.delete_rows(range(30))
    assert repr(empty) == "<dataset emptied@2: 0 rows, 2 classes>"
    for shown in (empty, empty.preview(), empty.head(), empty.describe(), empty.open()):
        assert harmless(shown._repr_html_()).text
        assert repr(shown)
    assert {each.count for each in empty.describe()} == {0}
    assert "30 deleted rows still in them" in pages.text(empty)


def test_a_page_of_a_damaged_dataset_says_what_is_wrong(ws: mms.WorkspaceClient) -> None:
    arrays = {"x": RNG.random(30), "name": np.array(["a", "b"] * 15)}
    damaged = ws.datasets.ingest("damaged", mms.Arrow(_arrow(ws, arrays), label="name"), progress=False)
    whole = {path: path.read_bytes() for path in Path(damaged.info.location).glob("parts/*/data.zarr/label/c/*")}
    for path, content in whole.items():
        path.write_bytes(bytes(len(content)))
    page = harmless(damaged._repr_html_())
    for path, content in whole.items():
        path.write_bytes(content)  # other tests back this workspace up
    assert "is damaged" in page.text
    assert "a15" in page.text  # the totals are the snapshot's own


def test_the_next_step_is_for_the_newest_snapshot_and_gone_once_done(ws: mms.WorkspaceClient, crumbs: Dataset) -> None:
    fewer = crumbs.delete_rows([0])
    older = ws.datasets.get("crumbs@1")
    assert "next step" in fewer.facts()
    assert "next step" not in older.facts()
    assert older.facts()["snapshot"].endswith("; the newest is 2")
    ws.datasets.compact("crumbs", progress=False)
    compacted = ws.datasets.get("crumbs")
    assert "next step" not in compacted.facts()
    assert compacted.facts()["size"].endswith(" in 1 part; 13 folders besides, of other snapshots or of none")


def test_what_is_deleted_is_said_with_what_to_do(ws: mms.WorkspaceClient) -> None:
    dataset = ws.datasets.ingest("large", {"x": RNG.random((300, 2_000))}, progress=False)
    fewer = dataset.delete_rows(range(100))
    assert re.fullmatch(
        r"1\.5 MiB of 4\.\d MiB belong to deleted rows or to columns that are gone; mms datasets compact large leaves "
        r"them out",
        fewer.facts()["next step"],
    )


def test_differences_snapshots_and_reports_show_themselves(ws: mms.WorkspaceClient, crumbs: Dataset) -> None:
    dataset = ws.datasets.ingest("shown", {"a": RNG.random(9), "b": RNG.random(9)}, message=HOSTILE, progress=False)
    told = dataset.delete_rows([1]).rename_columns({"b": "c"}).diff(1)
    assert repr(told) == "shown@1 → shown@3: rows added 0; rows deleted 1; columns renamed b → c"
    page = harmless(told._repr_html_())
    assert "b → c" in page.text
    listed = ws.datasets.snapshots("shown")
    assert HOSTILE in harmless(listed._repr_html_()).text
    assert HOSTILE in harmless(listed[-1]._repr_html_()).text
    report = dataset.cleaning
    assert report is not None
    assert harmless(report._repr_html_()).text == "9 found, 9 kept"
    loud = report.model_copy(update={"notes": (HOSTILE,)})
    assert HOSTILE in harmless(loud._repr_html_()).text
    assert HOSTILE not in harmless(dataset.open()._repr_html_()).text


def test_a_split_has_one_colour_in_all_bars_and_in_the_legend() -> None:
    counts = {"a": {"train": 0, "val": 2, "test": 1, "dev": 0}, "b": {"train": 6, "val": 0, "test": 0, "dev": 0}}
    drawn = html.stacked(HOSTILE, counts)
    blue, orange, green = "#4c8bf5", "#e8710a", "#188038"
    assert re.findall(r"background:(#\w+)", drawn) == [blue, orange, green, orange, green, blue]
    assert re.findall(r"width:([\d.]+)px;background", drawn) == ["80.0", "40.0", "240.0"]
    page = harmless(drawn)
    assert page.text == f"{HOSTILE}trainvaltesta3b6"
    assert [attributes["aria-label"] for _, attributes in page.tags if attributes.get("role") == "img"] == [
        "train 0, val 2, test 1, dev 0",
        "train 6, val 0, test 0, dev 0",
    ]
    assert harmless(html.stacked("t", {"a": {"": 0}, "b": {"": 5}})).text == "ta0b5"
