"""What a newcomer gets wrong in Python: each is one sentence with the rule, the value and the next step."""

from __future__ import annotations

import wave
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mms_sdk as mms
from mms_sdk.errors import ColumnNotFound, DataError, InvalidRequest, NotFound, NothingToIngest


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mms.WorkspaceClient]:
    with mms.connect(workspace=tmp_path_factory.mktemp("newcomer") / "ws") as workspace:
        workspace.datasets.ingest("t", {"b": np.arange(30), "Long Name": np.arange(30) * 2})
        yield workspace


async def _records() -> AsyncIterator[dict[str, int]]:
    yield {"x": 1}


_DESCRIBED = r"columns that are written are told as mms\.Column\(name='age', .*; got 'x'"
_BY_NUMBER = r"rows are given by their numbers, e\.g\. \[3, 17\]"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda _: mms.Column("x", "number", "int64"), "fields of Column are given by name: name=, kind=, dtype="),
        (lambda _: mms.Column(name="x", kind="number"), "Column does not fit: dtype: it is missing; give it"),
        (lambda _: mms.Column(name="x", kind="text", dtype="uint8", shap=3), "shap: .*; did you mean shape?"),
        (lambda _: mms.Split(train=1, tst=0), "tst: there is no such field; did you mean test?"),
        (lambda _: mms.CSV("x", wheels=4), "wheels: there is no such field; leave it out; there are path"),
        (lambda _: mms.clip("age", min="a"), "min: it is a whole number or a number, got 'a'"),
        (lambda ws: ws.datasets.follow("f", _records(), columns=["x"]), _DESCRIBED),
        (lambda ws: ws.datasets.write("f", columns="x"), _DESCRIBED),
        (lambda ws: ws.datasets.get("t").write_column("x", lambda batch: batch["b"], inputs=["b"]), _DESCRIBED),
        (lambda ws: ws.datasets.get("t").delete_rows(0), f"{_BY_NUMBER}, of one row .row.; got 0"),
        (lambda ws: ws.datasets.get("t").delete_rows([0.5]), f"{_BY_NUMBER}; got .0.5."),
        (lambda ws: ws.datasets.get("t").open().gather("b", slice(0, 3)), f"{_BY_NUMBER}, of a slice range"),
        (lambda ws: ws.datasets.get("t").open().gather("b", [True, False]), _BY_NUMBER),
        (lambda ws: ws.datasets.get("t").open().gather("b", [2**63]), _BY_NUMBER),
        (lambda ws: ws.datasets.get("t").rename_columns(["b"]), r"by old and new names, e\.g\. .*; got \['b'\]"),
        (lambda ws: ws.datasets.get("t").clean("drop_missing"), r"such as mms\.drop_missing\(\); got 'drop_missing'"),
        (lambda ws: ws.datasets.get("t").clean(3), r"such as mms\.drop_duplicates\(\); got 3"),
        (lambda ws: ws.datasets.expire("t", keep=0), "keep: it is at least 1, got 0"),
        (lambda ws: ws.datasets.expire("t", keep=object()), "texts, finite numbers, lists and mappings.*object is not"),
        (lambda ws: ws.datasets.expire("t", keep=float("nan")), "texts, finite numbers, lists and mappings"),
        (lambda ws: ws.datasets.concat("c", 3), r"as a list, e\.g\. \['a@2', 'b'\]; got 3"),
        (lambda ws: ws.datasets.join("c", left="t", right="t", on=3), r"e\.g\. 'id' or \['id', 'day'\]; got 3"),
        (
            lambda ws: ws.datasets.join("c", left="t", right="t", on="b", rename=["x"]),
            r"by old and new names, .*; got \['x'\]",
        ),
        (lambda ws: ws.datasets.get("t").preview(captions=3), "captions are a list of texts, one for each row; got 3"),
        (lambda ws: ws.datasets.get(3), "a dataset reference is a text, e.g. 'flowers'; got 3, of type int"),
        (
            lambda ws: ws.datasets.snapshots(None),
            "a dataset name is a text, e.g. 'flowers'; got None, of type NoneType",
        ),
        (lambda ws: ws.datasets.get("t").tag(3), "a snapshot or tag is a text, e.g. 'flowers'; got 3, of type int"),
        (lambda ws: ws.datasets.get("t").head("x"), r"a whole number from 0; got rows='x', e\.g\. head\(10\)"),
        (lambda ws: ws.datasets.get("t").head(-1), "a whole number from 0; got rows=-1"),
        (
            lambda ws: ws.datasets.get("t").rename_columns({"b": "No Name"}),
            "does not fit: names.b: it fits the pattern",
        ),
        (lambda ws: ws.models.get(b"m"), "a model reference is a text, e.g. 'flowers'; got b'm', of type bytes"),
        (lambda ws: ws.deployments.get([]), r"a deployment name is a text, e\.g\. 'flowers'; got \[\], of type list"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence_of_our_own(
    ws: mms.WorkspaceClient, call: Callable[[mms.WorkspaceClient], Any], said: str
) -> None:
    with pytest.raises(InvalidRequest, match=said) as told:
        call(ws)
    assert "pydantic" not in told.value.message
    assert len(told.value.message.splitlines()) == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda dataset: dataset.open().values("Long Name"),
        lambda dataset: dataset.clean(mms.drop_missing("Long Name")),
        lambda dataset: dataset.rename_columns({"Long Name": "c"}),
    ],
)
def test_a_column_asked_for_by_its_title_is_named(ws: mms.WorkspaceClient, call: Callable[[mms.Dataset], Any]) -> None:
    with pytest.raises(ColumnNotFound, match=r"no column .Long Name.*did you mean .long_name.\?"):
        call(ws.datasets.get("t"))


def test_a_folder_that_is_no_workspace_is_not_made_one_where_that_is_asked(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"there is none in .*typo; name another"):
        mms.connect(workspace=tmp_path / "typo", make=False)
    assert not (tmp_path / "typo").exists()
    with mms.connect(workspace=tmp_path / "typo"):
        assert mms.connect(workspace=tmp_path / "typo", make=False).folder == tmp_path / "typo"


def _pictures(folder: Path, side: int, count: int) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(side)
    for at in range(count):
        Image.fromarray(rng.integers(0, 255, (side, side, 3), np.uint8)).save(folder / f"{'ab'[at % 2]}_{at}.png")
    return folder.parent


def test_an_ingest_that_brings_nothing_new_says_so_and_why(ws: mms.WorkspaceClient, tmp_path: Path) -> None:
    even = _pictures(tmp_path / "even" / "a", 8, 20)
    odd = _pictures(tmp_path / "odd" / "a", 9, 3)
    first = ws.datasets.ingest("sizes", mms.ImageFolder(even))
    second = ws.datasets.ingest("sizes", mms.ImageFolder(odd), clean=mms.drop_odd_sizes())
    third = ws.datasets.ingest("sizes", mms.ImageFolder(even))
    assert "nothing new" not in repr(first)
    assert second.rows == third.rows == 20
    why = "drop-odd-sizes dropped 3, e.g. a/a_0.png: it has 9×9 pixels, those in the dataset have 8×8"
    assert repr(second).endswith(f"; nothing new came in: {why}>")
    assert second.cleaning is not None
    assert second.cleaning.summary == f"3 found, 0 kept; nothing new came in: {why}"
    assert repr(third).endswith("; nothing new came in: 20 were there already>")


def _sounds(root: Path) -> None:
    (root / "a").mkdir(parents=True)
    for at in range(3):
        with wave.open(str(root / "a" / f"{at}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(bytes(1600))


def _texts(root: Path) -> None:
    (root / "a").mkdir(parents=True)
    (root / "a" / "1.txt").write_text("hello")


def _table(root: Path) -> None:
    (root / "a").mkdir(parents=True)
    (root / "a" / "1.csv").write_text("a,b")


def _saved(root: Path) -> None:
    root.mkdir()
    (root / "dataset_dict.json").write_text("{}")


def _flat(root: Path) -> None:
    _pictures(root, 8, 4)


@pytest.mark.parametrize(
    ("fill", "said"),
    [
        (_sounds, r"mms\.AudioFolder\('.*/x'\), or mms datasets ingest NAME \".*/x/\*\*/\*\.wav\" --label folder"),
        (_texts, r"mms\.Files\('.*/x/\*\*/\*\.txt', label='folder'\)"),
        (_table, r"mms\.CSV\('.*/x'\)"),
        (_saved, r"mms\.HuggingFace\('.*/x'\)"),
        (_flat, r"mms datasets ingest NAME \".*/x/\*\.png\" --label '\(\?P<label>\[\^_\]\+\)_'"),
    ],
)
@pytest.mark.parametrize("clean", [(), (mms.drop_unreadable(),)])
def test_a_folder_of_something_else_is_told_with_the_source_that_suits_it(
    ws: mms.WorkspaceClient, tmp_path: Path, fill: Callable[[Path], None], clean: Any, said: str
) -> None:
    fill(tmp_path / "x")
    with pytest.raises((NothingToIngest, DataError), match=said):
        ws.datasets.ingest("pictures", mms.ImageFolder(tmp_path / "x"), clean=clean)


def test_the_label_that_is_told_for_a_flat_folder_brings_it_in(ws: mms.WorkspaceClient, tmp_path: Path) -> None:
    _pictures(tmp_path / "flat", 8, 20)
    made = ws.datasets.ingest("flat", mms.Files(f"{tmp_path}/flat/*.png", label="(?P<label>[^_]+)_"))
    assert made.classes == {"a": 10, "b": 10}
