from __future__ import annotations

import datetime as dt
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import mms_sdk as mms
import small_kinds
from mms_sdk.compute.data.kinds import rows
from mms_sdk.compute.data.kinds.rows import Ids, Table, input_columns, kind_of
from mms_sdk.compute.data.load import Inputs, Targets, fitted
from mms_sdk.compute.data.preprocess.pipeline import Pipeline
from mms_sdk.errors import DataError, InvalidInput, InvalidRequest
from mms_sdk.schema.dataset import Column
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.workspace import Workspace

TEXT = Column(name="text", kind="text", dtype="uint8", shape=None)
NOTE = TEXT.model_copy(update={"name": "note"})
SOURCE = TEXT.model_copy(update={"name": "source"})
SIZE = Column(name="size", kind="number", dtype="float64")
COLOUR = Column(name="colour", kind="category", dtype="int32", labels=("red", "blue"))
SEEN = Column(name="seen", kind="timestamp", dtype="int64", unit="ms")
LABEL = Column(name="label", kind="label", dtype="int32", labels=("ant", "bee"))
FROM = Column(name="row_source", kind="category", dtype="int32", labels=("a.csv",))
TOKENS = Column(name="tokens", kind="embedding", dtype="int64", shape=(4,))


def names(columns: list[Column], asked: Any = None, target: str | None = "label") -> list[str]:
    return [column.name for column in input_columns(columns, asked, target=target)]


def test_one_medium_is_what_a_model_sees_and_else_the_cells_of_a_table() -> None:
    assert names([TEXT, SIZE, LABEL, SOURCE]) == ["text"]
    assert names([SIZE, COLOUR, SEEN, LABEL, FROM]) == ["size", "colour", "seen"]
    assert names([SIZE, COLOUR, LABEL, FROM], target="size") == ["colour"]
    assert names([TEXT, NOTE, LABEL], "note") == ["note"]
    assert names([TEXT, SIZE, COLOUR, LABEL], ("colour", "size")) == ["colour", "size"]


def test_where_it_is_not_clear_the_columns_are_listed() -> None:
    with pytest.raises(InvalidRequest, match=r"there are \['text \(text\)', 'note \(text\)', 'size \(number\)'\]; say"):
        names([TEXT, NOTE, SIZE, LABEL])
    with pytest.raises(InvalidRequest, match=r"there are \['label'\]; say which with inputs="):
        names([LABEL])


@pytest.mark.parametrize("asked", ["nothing", ("size", "size"), (), "label"])
def test_columns_that_are_not_there_or_twice_or_the_target_are_refused(asked: Any) -> None:
    with pytest.raises(InvalidRequest, match="each once and not the target 'label'; got inputs="):
        names([SIZE, LABEL], asked)


def test_several_columns_are_a_table_and_a_medium_stands_alone() -> None:
    assert isinstance(kind_of([SIZE]), Table)
    assert isinstance(kind_of([TOKENS]), Ids)
    with pytest.raises(InvalidRequest, match=r"got \['text \(text\)'\] among \['size', 'text'\]"):
        kind_of([SIZE, TEXT])


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_a_time_that_is_sent_is_the_same_seconds_as_one_that_is_stored(unit: str) -> None:
    table = Table((SEEN.model_copy(update={"unit": unit}),))
    instant = np.datetime64("2024-02-29T12:34:56", unit)
    stored = table.rows([np.array([instant.astype(np.int64)])])["seen"].values

    for told in (
        "2024-02-29T12:34:56",
        "2024-02-29T13:34:56+01:00",
        dt.datetime(2024, 2, 29, 12, 34, 56, tzinfo=dt.UTC),
        instant,
        1709210096,
    ):
        np.testing.assert_array_equal(table.given({"seen": told})["seen"].values, stored)


def test_codes_that_name_nothing_count_as_missing() -> None:
    cells = Table((COLOUR,)).rows([np.array([0, 5, -3, 1], np.int32)])["colour"]

    np.testing.assert_array_equal(cells.values, [0, -1, -1, 1])


def test_sound_is_the_same_from_samples_and_from_a_file() -> None:
    samples = np.random.default_rng(0).integers(-(2**15), 2**15, (50, 2)).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, samples, 8000, format="WAV", subtype="PCM_16")
    kind: Any = kind_of([Column(name="audio", kind="audio", dtype="int16", shape=(None, 2), rate_hz=8000)])

    for sound in (kind.given(file.getvalue()), kind.given(samples), kind.given((samples, 8000)), kind.open(samples)):
        np.testing.assert_array_equal(sound.samples, samples / 2**15)
        assert sound.samples.dtype == np.float32
        assert sound.rate_hz == 8000
    encoded: Any = kind_of([Column(name="audio", kind="encoded-audio", dtype="uint8", shape=None)])
    with pytest.raises(InvalidInput, match="samples have a rate in Hz above 0; got None"):
        encoded.given(samples)
    with pytest.raises(InvalidInput, match="not a readable recording"):
        encoded.given(b"no sound")
    with pytest.raises(InvalidInput, match=r"at most 0\.001 s long"):
        rows.Sounds(kind.column, max_seconds=0.001).given(file.getvalue())


def test_arrays_of_other_shapes_and_numbers_that_do_not_fit_are_refused() -> None:
    series: Any = kind_of([Column(name="track", kind="series", dtype="float32", shape=(None, 2))])
    assert series.given([[1, 2], [3, 4], [5, 6]]).shape == (3, 2)
    for wrong in ([1, 2], [[1], [2]], [["a", "b"]], [[1, 2], [3]], {"a": 1}):
        with pytest.raises(InvalidInput, match="series"):
            series.given(wrong)
    for wrong in ([[1.0, float("nan")]], [[1e300, 0.0]]):
        with pytest.raises(InvalidInput, match=r"holds finite numbers of at most 3\.40282e\+38"):
            series.given(wrong)
    tokens: Any = kind_of([TOKENS])
    with pytest.raises(InvalidInput, match="kind embedding, numbers of shape"):
        tokens.given([0.5, 1.0, 2.0, 3.0])
    with pytest.raises(InvalidInput, match=r"at most 2\.14748e"):
        tokens.given([1, 2, 3, 2**40])


@pytest.fixture(scope="module")
def gaps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenSnapshot]:
    """Texts of which some are missing, and columns that may be targets."""
    count = sum(small_kinds.ROWS.values())
    columns = (
        TEXT.model_copy(update={"nullable": True}),
        SIZE.model_copy(update={"nullable": True}),
        TOKENS,
        Column(name="whole", kind="number", dtype="int64"),
    )
    values = {
        "text": [None if row % 9 == 0 else b"a" for row in range(count)],
        "size": np.ma.MaskedArray(np.arange(count) * 1.5, np.arange(count) < 5),
        "tokens": np.arange(4 * count).reshape(count, 4),
        "whole": np.arange(count),
    }
    workspace = Workspace(tmp_path_factory.mktemp("gaps"))
    yield small_kinds.write(workspace, "gaps", columns, values).open()
    workspace.close()


def test_a_row_may_have_the_titles_of_its_source() -> None:
    columns = (
        Column(name="a", kind="number", dtype="float64", title="A"),
        Column(name="a_2", kind="number", dtype="float64", title="a"),
        Column(name="b", kind="number", dtype="float64"),
    )
    table = kind_of(columns)

    by_title = table.given({"a": 2.0, "A": 1.0, "b": 3.0})
    by_name = table.given({"a": 1.0, "a_2": 2.0, "b": 3.0})

    assert {name: cells.values.tolist() for name, cells in by_title.items()} == {"a": [1.0], "a_2": [2.0], "b": [3.0]}
    assert {name: cells.values.tolist() for name, cells in by_name.items()} == {"a": [1.0], "a_2": [2.0], "b": [3.0]}
    with pytest.raises(InvalidInput, match=r"without \['a_2'\]"):
        table.given({"a": 1.0, "b": 3.0})


def test_rows_without_a_value_are_counted_and_refused(gaps: OpenSnapshot) -> None:
    every = np.arange(gaps.rows)
    with pytest.raises(DataError, match=r"20 of 180 rows of gaps@1 have none; drop them with clean="):
        Inputs(gaps, every, Pipeline.of([mms.text.Bytes(8)]), ("text",))
    with pytest.raises(DataError, match="every row that is trained on has a value in column 'text'"):
        fitted(gaps, Pipeline.of([mms.text.Bytes(8)]), ("text",))
    with pytest.raises(DataError, match="value in column 'size'; 5 of 180 rows"):
        Targets(gaps, every, "size")
    assert Inputs(gaps, every[1:9], Pipeline.of([mms.text.Bytes(8)]), ("text",)).gather(every[2:4]).shape == (2, 8)


def test_targets_are_codes_or_numbers_of_one_shape(gaps: OpenSnapshot) -> None:
    some = np.array([7, 3, 3])

    labels = Targets(gaps, some, "label").gather(some)
    numbers = Targets(gaps, some, "whole").gather(some)
    arrays = Targets(gaps, some, "tokens").gather(some)

    np.testing.assert_array_equal(labels, small_kinds.classes_of(gaps.rows)[some])
    np.testing.assert_array_equal(numbers, some)
    np.testing.assert_array_equal(arrays, np.arange(4 * gaps.rows).reshape(-1, 4)[some])
    assert (labels.dtype, numbers.dtype, arrays.dtype) == (np.int32, np.float32, np.float32)
    np.testing.assert_array_equal(Targets(gaps, some, None).gather(some), [0, 0, 0])
    with pytest.raises(DataError, match="column 'text' of gaps@1 is text"):
        Targets(gaps, some, "text")


def test_ids_reach_the_device_as_they_are_and_floats_are_narrowed(gaps: OpenSnapshot, tmp_path: Path) -> None:
    every = np.arange(gaps.rows)
    ids = Inputs(gaps, every, Pipeline(), ("tokens",))
    pipeline, table = fitted(gaps, Pipeline(), ("whole",))

    assert ids.gather(every).dtype == np.int32
    np.testing.assert_array_equal(Pipeline().on_batch(ids.gather(every)), np.arange(4 * gaps.rows).reshape(-1, 4))
    assert pipeline.host[0].name == "table.encode"
    assert table.shape == (1,)
    train = gaps.split_rows("train")
    np.testing.assert_allclose(table.gather(train)[:, 0], (train - train.mean()) / train.std(), rtol=1e-6)


def test_steps_for_other_rows_and_rows_without_a_shape_are_refused(gaps: OpenSnapshot) -> None:
    with pytest.raises(InvalidRequest, match=r"image\.resize is for image, these are text; begin preprocess"):
        fitted(gaps, Pipeline.of([mms.image.Resize(4)]), ("text",))
    with pytest.raises(InvalidRequest, match=r"\['image\.normalize'\] are for pictures; these rows are table"):
        fitted(gaps, Pipeline.of([mms.table.Encode(), mms.image.Normalize()]), ("whole",))
    with pytest.raises(InvalidRequest, match=r"rows of text differ; begin preprocess with mms\.text\.Bytes"):
        Inputs(gaps, np.arange(1, 9), Pipeline(), ("text",))
