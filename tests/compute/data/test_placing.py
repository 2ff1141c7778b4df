"""Rows of tables and arrays that are placed by a column, and rows that come later."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mms_sdk as mms
from mms_sdk.compute.data.ingest import ingest
from mms_sdk.compute.data.kinds.tabular import write_arrays
from mms_sdk.errors import DataError, InvalidRequest
from mms_sdk.schema.dataset import SPLITS
from mms_sdk.schema.sources import Arrow, ImageFolder
from mms_sdk.schema.specs import IngestSpec, Split
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.stores.local import LocalStore

USUAL = Split()
BY_GROUP = Split(by="group", column="station", train=0.6, val=0.2, test=0.2)
BY_TIME = Split(by="time", column="seen", train=0.7, val=0.2, test=0.1)
Bring = Callable[..., OpenSnapshot]


@pytest.fixture
def bring(tmp_path: Path) -> Bring:
    made = 0

    def bring(arrays: dict[str, Any], split: Split = USUAL, *clean: Any) -> OpenSnapshot:
        nonlocal made
        made += 1
        dataset = Dataset.open_or_create(LocalStore(tmp_path / "rows"), "rows")
        source = Arrow(path=str(write_arrays(arrays, tmp_path / f"{made}.arrow")))
        spec = IngestSpec(source=source, split=split, clean=clean)
        ingest(dataset, spec, job="j", folder=tmp_path, tell=lambda _: None)
        return dataset.snapshot()

    return bring


def stations(rows: int = 400, *, seed: int = 0, kind: str = "U4") -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {"series": rng.normal(size=(rows, 6, 2)), "station": rng.integers(0, 40, rows).astype(kind)}


def placed(snapshot: OpenSnapshot) -> Any:
    return np.asarray(snapshot.values("split"))


def by_station(snapshot: OpenSnapshot) -> dict[Any, set[int]]:
    names: dict[Any, set[int]] = {}
    for name, split in zip(snapshot.gather("station", np.arange(snapshot.rows)), placed(snapshot), strict=True):
        names.setdefault(name, set()).add(int(split))
    return names


@pytest.mark.parametrize("kind", ["U4", "i4"])
def test_a_group_is_in_one_split_also_with_rows_that_come_later(bring: Bring, kind: str) -> None:
    first = bring(stations(kind=kind), BY_GROUP)
    places = by_station(first)
    assert {len(splits) for splits in places.values()} == {1}
    assert set(first.record.splits) == set(SPLITS)

    later = bring(stations(seed=1, kind=kind))  # the rule is the dataset's

    assert later.rows == 800
    np.testing.assert_array_equal(placed(later)[:400], placed(first))
    assert by_station(later) == places
    assert later.record.split_rule == first.record.split_rule == BY_GROUP.model_dump()
    assert by_station(bring(stations(seed=2, kind=kind), BY_GROUP)) == places


def test_a_group_has_its_place_whatever_width_its_numbers_come_in(bring: Bring) -> None:
    first = bring(stations(kind="i8"), BY_GROUP)
    assert by_station(bring(stations(seed=1, kind="i2"))) == by_station(first)


def test_groups_go_by_the_fractions_on_average_and_another_seed_places_others(bring: Bring) -> None:
    arrays = {"n": np.arange(4000), "station": np.arange(4000) // 2}
    snapshot = bring(arrays, BY_GROUP)
    for name, share in BY_GROUP.fractions.items():  # five standard deviations of a binomial of 2,000 groups
        assert abs(snapshot.record.splits[name] / 4000 - share) < 5 * (share * (1 - share) / 2000) ** 0.5


def test_rows_without_a_group_are_one(bring: Bring) -> None:
    names = np.array([None, "a", None, "b", None], object)
    snapshot = bring({"n": np.arange(5), "station": names}, BY_GROUP)
    assert len(by_station(snapshot)[None]) == 1


@pytest.mark.parametrize("kind", ["M8[s]", "f8", "i4"])
def test_the_newest_are_tested_on_and_later_rows_are_cut_where_the_first_were(bring: Bring, kind: str) -> None:
    order = np.random.default_rng(0).permutation(100)
    first = bring({"n": np.arange(100), "seen": order.astype(kind)}, BY_TIME)
    wanted = np.where(order < 70, 0, np.where(order < 90, 1, 2))
    np.testing.assert_array_equal(placed(first), wanted)
    assert first.record.split_rule["cuts"] == {"val": 70, "test": 90}

    later = bring({"n": np.arange(100, 104), "seen": np.array([3, 75, 95, 500]).astype(kind)})

    np.testing.assert_array_equal(placed(later)[:100], wanted)
    assert placed(later)[100:].tolist() == [0, 1, 2, 2]
    assert later.record.split_rule == first.record.split_rule


def test_rows_of_one_time_are_in_one_split(bring: Bring) -> None:
    days = np.repeat(np.arange(10), 13)
    snapshot = bring({"n": np.arange(130), "seen": days}, Split(by="time", column="seen", train=0.75, val=0, test=0.25))
    assert {len(set(placed(snapshot)[days == day])) for day in range(10)} == {1}
    assert snapshot.record.splits == {"train": 91, "test": 39}


@pytest.mark.parametrize(
    ("arrays", "split", "error", "match"),
    [
        ({"n": np.arange(9)}, BY_TIME, InvalidRequest, r"one of the columns \['n'\]; got 'seen'"),
        ({"seen": np.zeros((9, 2))}, BY_TIME, InvalidRequest, "one value a row; 'seen' holds"),
        ({"seen": np.array(["a"] * 9)}, BY_TIME, InvalidRequest, "times or numbers; 'seen' is of kind text"),
        ({"seen": np.zeros(9)}, BY_TIME, DataError, "'seen' has 1 value"),
        ({"seen": np.array([1, np.nan, 3.0])}, BY_TIME, DataError, "1 of 3 rows have no 'seen'"),
    ],
)
def test_what_cannot_be_placed_is_refused(
    bring: Bring, arrays: dict[str, Any], split: Split, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        bring(arrays, split)


def test_a_dataset_keeps_to_its_rule(bring: Bring) -> None:
    bring(stations(), BY_GROUP)
    for other in (Split(by="group", column="station"), BY_TIME, Split(train=0.5, val=0.25, test=0.25)):
        with pytest.raises(DataError, match="keep to the rule that their dataset began with"):
            bring(stations(seed=1), other)


def test_rows_placed_by_class_are_followed_by_none_that_a_column_places(bring: Bring) -> None:
    bring(stations())
    with pytest.raises(DataError, match="leave split= out"):
        bring(stations(seed=1), BY_GROUP)


def test_pictures_of_a_folder_have_no_column_to_be_placed_by(tmp_path: Path) -> None:
    (tmp_path / "pictures" / "ant").mkdir(parents=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "pictures" / "ant" / "0.png")
    spec = IngestSpec(source=ImageFolder(path=str(tmp_path / "pictures")), split=BY_GROUP)
    dataset = Dataset.open_or_create(LocalStore(tmp_path / "rows"), "rows")
    with pytest.raises(InvalidRequest, match="files of a folder are placed by class or content"):
        ingest(dataset, spec, job="j", folder=tmp_path, tell=lambda _: None)


def test_rows_that_a_step_drops_cut_nothing(bring: Bring) -> None:
    arrays = {"n": np.arange(20), "seen": np.arange(20)}
    snapshot = bring(arrays, Split(by="time", column="seen", train=0.5, val=0, test=0.5), mms.keep_where("n >= 10"))
    assert snapshot.record.splits == {"train": 5, "test": 5}


@pytest.mark.parametrize("asked", [{"by": "group"}, {"by": "time"}, {"column": "n"}, {"by": "content", "column": "n"}])
def test_a_rule_names_a_column_if_it_goes_by_one(asked: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="names a column, others none"):
        Split(**asked)
