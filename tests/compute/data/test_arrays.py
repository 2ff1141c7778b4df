"""Arrays in Zarr, Icechunk and as xarray writes them become rows, and what their metadata claims is not believed."""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
import tracemalloc
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import xarray
import zarr

from mms_sdk.client.datasets import source_of
from mms_sdk.compute.data.ingest import ingest
from mms_sdk.compute.data.sources.arrays import open_arrays
from mms_sdk.errors import DataError, InvalidRequest, NothingToIngest
from mms_sdk.schema.cleaning import DropMissing
from mms_sdk.schema.sources import Icechunk, Zarr
from mms_sdk.schema.specs import IngestSpec, Split
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.stores.local import LocalStore

ALL = Split(train=1, val=0, test=0)
ROWS = 23
DTYPES = ("bool", "int8", "uint16", "int64", "uint64", "float16", "float32", "float64")


@pytest.fixture
def bring(tmp_path: Path) -> Any:
    """Ingests a source into one dataset; returns the snapshot."""
    (tmp_path / "job").mkdir()

    def bring(source: Any, *clean: Any, split: Split = ALL) -> OpenSnapshot:
        dataset = Dataset.open_or_create(LocalStore(tmp_path / "rows"), "rows")
        spec = IngestSpec(source=source, clean=clean, split=split)
        ingest(dataset, spec, job="j", folder=tmp_path / "job", tell=lambda _: None)
        return dataset.snapshot()

    return bring


def drawn(dtype: str = "float32", *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 100, (ROWS, *shape)).astype(dtype)


def notes(snapshot: OpenSnapshot) -> list[str]:
    return snapshot.record.provenance["cleaning"]["notes"]


def own(snapshot: OpenSnapshot) -> list[str]:
    return [column.name for column in snapshot.record.columns if column.name not in ("row_source", "row_id", "split")]


def write(path: Path, version: int = 3, **arrays: np.ndarray) -> Path:
    group = zarr.open_group(path, mode="w", zarr_format=version)
    for name, values in arrays.items():
        group.create_array(
            name,
            data=values,
            chunks=(4, *values.shape[1:]),
            **({"fill_value": 0} if values.dtype.kind in "biuf" else {}),
        )
    return path


# What comes in --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back(tmp_path: Path, bring: Any, version: int, dtype: str) -> None:
    values, wide = drawn(dtype), drawn(dtype, 3)
    if dtype == "bool":
        values[:], wide[:] = True, True

    snapshot = bring(Zarr(write(tmp_path / "x.zarr", version, a=values, b=wide)))

    for name, expected in (("a", values), ("b", wide)):
        np.testing.assert_array_equal(snapshot.values(name), expected)
        assert snapshot.column(name).dtype == dtype


@pytest.mark.parametrize("version", [2, 3])
def test_pictures_texts_times_and_labels_come_back(tmp_path: Path, bring: Any, version: int) -> None:
    image, grid = drawn("uint8", 5, 4, 3), drawn("float32", 2, 3)
    times = np.arange(ROWS).astype("M8[h]").astype("M8[s]")
    names = np.array([f"row {at} ü" for at in range(ROWS)])
    label = np.array(["cat", "dog"] * 12)[:ROWS]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr: texts and times have no specification in version 3 yet
        path = write(tmp_path / "x.zarr", version, image=image, grid=grid, when=times, name=names, kind=label)

    snapshot = bring(Zarr(path, label="kind"))

    np.testing.assert_array_equal(snapshot.values("image"), image)
    assert (snapshot.column("image").kind, snapshot.column("image").color) == ("image", "rgb")
    np.testing.assert_array_equal(snapshot.values("grid"), grid)
    assert snapshot.column("grid").kind == "embedding"
    np.testing.assert_array_equal(snapshot.values("when").astype("M8[s]"), times)
    assert [text.decode() for text in snapshot.gather("name", np.arange(ROWS))] == names.tolist()
    assert snapshot.column("label").labels == ("cat", "dog")
    assert [("cat", "dog")[code] for code in snapshot.values("label")] == label.tolist()
    again = bring(Zarr(path, label="kind"))
    assert (again.rows, again.record.number) == (ROWS, 2)


@pytest.mark.parametrize(
    "options",
    [
        {"chunks": (1, 2)},
        {"chunks": (100, 100)},
        {"chunks": (4, 3), "shards": (8, 6)},
        {"chunks": (2, 6), "shards": (24, 6), "compressors": [zarr.codecs.GzipCodec(), zarr.codecs.Crc32cCodec()]},
        {"chunks": (5, 4), "compressors": None},
        {"chunks": (5, 4), "compressors": [zarr.codecs.BloscCodec(), zarr.codecs.Crc32cCodec()]},
        {"chunks": (5, 4), "filters": [zarr.codecs.TransposeCodec(order=(1, 0))]},
        {"chunks": (5, 4), "chunk_key_encoding": {"name": "v2", "separator": "."}},
        {"chunks": (5, 4), "zarr_format": 2, "order": "F", "compressors": numcodecs.Zlib()},
        {"chunks": (5, 4), "zarr_format": 2, "compressors": numcodecs.LZ4(), "filters": [numcodecs.Delta("<i4")]},
        {"chunks": (5, 4), "zarr_format": 2, "compressors": numcodecs.GZip(), "filters": [numcodecs.Shuffle(4)]},
        {"chunks": (5, 4), "zarr_format": 2, "dtype": ">i4", "compressors": numcodecs.Blosc()},
    ],
)
def test_every_layout_that_is_known_comes_back(tmp_path: Path, bring: Any, options: dict[str, Any]) -> None:
    values = drawn("int32", 6)
    options = {"dtype": "int32", **options}
    array = zarr.create_array(tmp_path / "it.zarr", shape=values.shape, **options)
    array[:] = values

    snapshot = bring(Zarr(tmp_path / "it.zarr"))

    assert own(snapshot) == ["it"]
    np.testing.assert_array_equal(snapshot.values("it"), values)


def weather() -> xarray.Dataset:
    rng = np.random.default_rng(0)
    air = rng.normal(280, 9, (ROWS, 2, 3)).astype("float32")
    air[3, 0, 1] = np.nan
    rain = rng.random(ROWS)
    rain[5] = np.nan
    times = np.datetime64("2024-02-28", "ns") + np.arange(ROWS) * np.timedelta64(6, "h")
    return xarray.Dataset(
        {
            "air": (("time", "lat", "lon"), air, {"units": "K"}),
            "rain": (("time",), rain),
            "count": (("time",), np.arange(ROWS, dtype="int16")),
            "wet": (("time",), np.arange(ROWS) % 3 == 0),
            "area": (("lat", "lon"), np.ones((2, 3))),
            "height": ((), 2.0),
        },
        coords={"time": times, "lat": [1.0, 2.0], "lon": [5.0, 6.0, 7.0]},
    )


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("consolidated", [False, True])
def test_what_xarray_wrote_is_read_as_xarray_reads_it(
    tmp_path: Path, bring: Any, version: int, consolidated: bool
) -> None:
    packed = {"dtype": "int16", "scale_factor": 0.001, "add_offset": 0.5, "_FillValue": -32768}
    encoding = {"rain": packed, "time": {"units": "hours since 2020-01-01"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr: consolidated metadata is not in the specification of version 3
        weather().to_zarr(tmp_path / "x.zarr", zarr_format=version, encoding=encoding, consolidated=consolidated)
        expected = xarray.open_zarr(tmp_path / "x.zarr", consolidated=False, chunks=None)

    snapshot = bring(Zarr(tmp_path / "x.zarr", rows="time"))

    assert own(snapshot) == ["air", "count", "rain", "time", "wet"]
    np.testing.assert_array_equal(snapshot.values("air"), expected["air"].values)
    for name in ("count", "wet"):
        np.testing.assert_array_equal(snapshot.values(name), expected[name].values)
        assert snapshot.column(name).dtype == expected[name].dtype
    np.testing.assert_array_equal(
        np.ma.filled(snapshot.gather("rain", np.arange(ROWS)), np.nan), expected["rain"].values
    )
    assert snapshot.column("rain").nullable
    np.testing.assert_array_equal(snapshot.values("time").astype("M8[us]"), expected["time"].values)
    for name in ("area", "height", "lat", "lon"):
        assert any(note.startswith(f"left out: {name}, ") for note in notes(snapshot)), name


def test_a_path_that_ends_with_zarr_means_arrays() -> None:
    assert source_of("readings/x.zarr/") == Zarr(path="readings/x.zarr/")


def test_a_dimension_is_chosen_where_arrays_do_not_agree(tmp_path: Path, bring: Any) -> None:
    weather().to_zarr(tmp_path / "x.zarr", zarr_format=2, consolidated=False)
    with pytest.raises(InvalidRequest, match=r"'air': 'time 23'.*name the one meant with rows="):
        bring(Zarr(tmp_path / "x.zarr"))
    with pytest.raises(InvalidRequest, match="name the one meant"):
        bring(Zarr(tmp_path / "x.zarr", rows="altitude"))
    assert own(bring(Zarr(tmp_path / "x.zarr", columns=("air", "time")))) == ["air", "time"]
    with pytest.raises(InvalidRequest, match="array 'lat' has not the first axis"):
        bring(Zarr(tmp_path / "x.zarr", columns=("air", "lat"), rows="time"))


def test_arrays_without_names_of_axes_have_as_many_rows(tmp_path: Path, bring: Any) -> None:
    path = write(tmp_path / "x.zarr", a=drawn(), b=drawn()[:5])
    with pytest.raises(InvalidRequest, match=r"first axes in .* are {'a': 'unnamed 23', 'b': 'unnamed 5'}"):
        bring(Zarr(path))
    assert own(bring(Zarr(path, columns="a"))) == ["a"]
    for options in ({"columns": "x"}, {"label": "x"}, {"categories": "x"}):
        with pytest.raises(InvalidRequest, match="x"):
            bring(Zarr(path, **options))


@pytest.mark.parametrize("version", [2, 3])
def test_what_is_no_array_is_left_out_and_told(tmp_path: Path, bring: Any, version: int) -> None:
    path = write(tmp_path / "x.zarr", version, a=drawn())
    group = zarr.open_group(path)
    group.create_group("inner").create_array("b", data=drawn())
    group.create_array("scalar", data=np.array(1.0))
    group.create_array("nothing", shape=(ROWS, 0), dtype="f4")

    snapshot = bring(Zarr(path))

    assert own(snapshot) == ["a"]
    assert sorted(notes(snapshot)) == [
        "left out: inner, a group within the group",
        f"left out: nothing, it has the shape ({ROWS}, 0)",
        "left out: scalar, it has the shape ()",
    ]


def test_what_is_masked_is_missing_and_what_is_nan_is_not(tmp_path: Path, bring: Any) -> None:
    values = drawn()
    values[3] = np.nan
    path = write(tmp_path / "x.zarr", plain=values, masked=values)
    document = path / "masked" / "zarr.json"
    told = json.loads(document.read_text())
    told["attributes"]["missing_value"] = 1e9
    document.write_text(json.dumps(told))

    snapshot = bring(Zarr(path))

    assert not snapshot.column("plain").nullable
    assert snapshot.column("masked").nullable
    assert bring(Zarr(path, columns=("plain", "masked")), DropMissing(columns=("masked",))).rows == ROWS


def test_a_time_of_another_calendar_is_refused(tmp_path: Path, bring: Any) -> None:
    path = write(tmp_path / "x.zarr", time=drawn("int64"))
    edit(path / "time" / "zarr.json", attributes={"units": "days since 2001-02-29", "calendar": "360_day"})
    with pytest.raises(DataError, match=r"array 'time' is not decoded by what it says|usual calendar"):
        bring(Zarr(path))


# Icechunk -------------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path) -> tuple[Path, list[str], np.ndarray]:
    """Two commits: five rows, then ten; the first is tagged."""
    import icechunk

    values = drawn("float32", 2)[:10]
    made = icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path / "repo")))
    commits = []
    for rows in (5, 10):
        session = made.writable_session("main")
        zarr.open_group(session.store, mode="w").create_array("x", data=values[:rows], chunks=(2, 2))
        commits.append(session.commit(f"{rows} rows"))
    made.create_tag("first", snapshot_id=commits[0])
    made.create_branch("old", snapshot_id=commits[0])
    return tmp_path / "repo", commits, values


def test_a_repository_is_read_at_a_branch_a_tag_or_a_snapshot(bring: Any, repository: Any) -> None:
    path, commits, values = repository

    def rows(**at: str) -> int:
        return open_arrays(Icechunk(path, **at)).rows

    assert (rows(), rows(branch="old"), rows(tag="first"), rows(snapshot=commits[0])) == (10, 5, 5, 5)
    snapshot = bring(Icechunk(path))
    np.testing.assert_array_equal(snapshot.values("x"), values)
    with pytest.raises(InvalidRequest, match="name one of them"):
        Icechunk(path, branch="main", tag="first")


@pytest.mark.parametrize(
    "at", [{"branch": "none"}, {"tag": "none"}, {"snapshot": "none"}, {"snapshot": "1CECHNKREP0F1RSTCMT0x"}]
)
def test_a_snapshot_that_is_not_there_is_refused(repository: Any, at: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match="has no such snapshot, or is no repository that icechunk"):
        open_arrays(Icechunk(repository[0], **at))


def test_what_is_no_repository_says_that_formats_differ(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="is a folder"):
        open_arrays(Icechunk(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidRequest, match=r"differs between the versions for Python 3\.11 and for 3\.12"):
        open_arrays(Icechunk(tmp_path / "empty"))


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_damaged_repository_is_refused(bring: Any, repository: Any, damage: str) -> None:
    path, _, _ = repository
    for chunk in (path / "chunks").rglob("*"):
        chunk.unlink() if damage == "gone" else chunk.write_bytes(chunk.read_bytes()[:3])
    for manifest in [] if list((path / "chunks").rglob("*")) else (path / "manifests").rglob("*"):
        manifest.unlink() if damage == "gone" else manifest.write_bytes(manifest.read_bytes()[:30])
    with pytest.raises((DataError, InvalidRequest)):
        bring(Icechunk(path))


# Chunks that are not there --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
def test_a_chunk_that_is_not_there_is_refused_unless_it_is_meant(tmp_path: Path, bring: Any, version: int) -> None:
    values = drawn()
    path = write(tmp_path / "x.zarr", version, a=values)
    (path / "a" / ("2" if version == 2 else "c/2")).unlink()

    with pytest.raises(DataError, match=r"of 'a' in .* chunk \(2,\) is not.*fill value '0.*say missing='fill'"):
        bring(Zarr(path))
    values[8:12] = 0
    np.testing.assert_array_equal(bring(Zarr(path, missing="fill")).values("a"), values)


def test_a_chunk_that_is_not_in_its_shard_is_refused_unless_it_is_meant(tmp_path: Path, bring: Any) -> None:
    values = drawn()
    values[4:6] = 0
    array = zarr.create_array(
        tmp_path / "x.zarr", shape=(ROWS,), chunks=(2,), shards=(8,), dtype="float32", fill_value=0
    )
    array[:] = values

    with pytest.raises(DataError, match=r"chunk \(0,\) in part is not"):
        bring(Zarr(tmp_path / "x.zarr"))
    np.testing.assert_array_equal(bring(Zarr(tmp_path / "x.zarr", missing="fill")).values("x"), values)
    array[:] = drawn()
    shard = tmp_path / "x.zarr" / "c" / "1"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="that of c/1 is damaged"):
        bring(Zarr(tmp_path / "x.zarr"))


def test_of_billions_of_chunks_that_are_not_there_the_first_is_named(tmp_path: Path, bring: Any) -> None:
    path = write(tmp_path / "x.zarr", a=drawn())
    edit(path / "a" / "zarr.json", shape=[2**31 - 1])
    edit(path / "a" / "zarr.json", chunk_grid={"name": "regular", "configuration": {"chunk_shape": [1]}})
    with pytest.raises(DataError, match=r"chunk \(6,\) is not"):
        bring(Zarr(path))


# Metadata and chunks that were made to harm ---------------------------------------------------------------------


@contextmanager
def bounded(max_bytes: int = 50 * 2**20) -> Iterator[None]:
    """What Python and NumPy take within the block, at most."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < max_bytes
    finally:
        tracemalloc.stop()


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def grid(*sizes: Any) -> dict[str, Any]:
    return {"name": "regular", "configuration": {"chunk_shape": list(sizes)}}


def sharded(**fields: Any) -> list[Any]:
    told = {"chunk_shape": [2], "codecs": ["bytes"], "index_codecs": ["bytes", "crc32c"], **fields}
    return [{"name": "sharding_indexed", "configuration": told}]


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"shape": [2**31]}, "declares 2,147,483,648 rows"),
        ({"shape": [2**62]}, "rows, more than"),
        ({"shape": [2**63]}, "has axes or chunks"),
        ({"shape": [10**400]}, "has axes or chunks"),
        ({"shape": [-1]}, "has axes or chunks"),
        ({"shape": [1.5]}, "has axes or chunks"),
        ({"shape": [True]}, "has axes or chunks"),
        ({"shape": "23"}, "has axes or chunks"),
        ({"shape": None}, "has axes or chunks"),
        ({"shape": [1] * 33, "chunk_grid": grid(*[1] * 33)}, "has axes or chunks"),
        ({"shape": [23, 2**40, 2**40], "chunk_grid": grid(1, 1, 1)}, "more than can be counted"),
        ({"shape": [23, 2**40], "chunk_grid": grid(1, 1)}, "has rows of"),
        ({"chunk_grid": grid(0)}, "has axes or chunks"),
        ({"chunk_grid": grid(-4)}, "has axes or chunks"),
        ({"chunk_grid": grid(2**40)}, "has chunks of 4,398,046,511,104 bytes"),
        ({"chunk_grid": grid(4, 4)}, "has axes or chunks"),
        ({"chunk_grid": {"name": "rectangular"}}, "that MMS does not know"),
        ({"chunk_grid": None}, "not described as Zarr"),
        ({"chunk_key_encoding": {"name": "../../etc"}}, "that MMS does not know"),
        ({"chunk_key_encoding": {"name": "default", "configuration": {"separator": "/../"}}}, "names its chunks"),
        ({"data_type": "object"}, "has values of type"),
        ({"data_type": "string"}, "has values of type"),
        ({"data_type": "variable_length_bytes"}, "has values of type"),
        ({"data_type": "complex64"}, "has values of type"),
        ({"data_type": {"name": "fixed_length_utf32", "configuration": {"length_bytes": 2**40}}}, "has values of type"),
        ({"data_type": {"name": "structured", "configuration": {"fields": []}}}, "has values of type"),
        ({"data_type": {"name": "numpy.datetime64", "configuration": {"unit": "Y"}}}, "has values of type"),
        ({"data_type": []}, "has values of type|not described"),
        ({"codecs": []}, "no short list"),
        ({"codecs": ["bytes"] * 9}, "no short list"),
        ({"codecs": ["bytes", "numcodecs.pickle"]}, "has the codecs"),
        ({"codecs": [{"name": "numcodecs.json2"}]}, "has the codecs"),
        ({"codecs": ["vlen-utf8"]}, "has the codecs"),
        ({"codecs": ["bytes", "gzip", "gzip"]}, "has the codecs"),
        ({"codecs": ["bytes", "my.own"]}, "has the codecs"),
        ({"codecs": [5]}, "not described as Zarr"),
        ({"codecs": sharded(chunk_shape=[3])}, "shards with an index, or divided"),
        ({"codecs": sharded(chunk_shape=[0])}, "has axes or chunks"),
        ({"codecs": sharded(index_codecs=["bytes", "gzip"])}, "shards with an index, or divided"),
        ({"codecs": sharded(index_location="start")}, "shards with an index, or divided"),
        ({"codecs": sharded(codecs=sharded())}, "has the codecs"),
        ({"codecs": sharded(chunk_shape=[1]), "chunk_grid": grid(2**27)}, "has shards of"),
        ({"storage_transformers": [{"name": "x"}]}, "storage transformers"),
        ({"zarr_format": 4}, "has the format 4"),
        ({"zarr_format": 2}, "not described as Zarr"),
        ({"fill_value": "x" * 100}, "cannot be read"),
        ({"fill_value": {"a": []}}, "cannot be read"),
        ({"attributes": {"scale_factor": "x"}}, "is not decoded by what it says"),
        ({"attributes": {"add_offset": [1, 2]}}, "is not decoded by what it says"),
        ({"attributes": {"_FillValue": "!"}}, "is not decoded by what it says"),
    ],
)
def test_what_version_3_declares_is_not_believed(
    tmp_path: Path, bring: Any, fields: dict[str, Any], error: str
) -> None:
    path = write(tmp_path / "x.zarr", a=drawn())
    edit(path / "a" / "zarr.json", **fields)
    with bounded(), pytest.raises(DataError, match=error):
        bring(Zarr(path))


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"dtype": "|O", "filters": [{"id": "pickle", "protocol": 5}]}, "has values of type"),
        ({"dtype": "|O", "filters": [{"id": "json2"}]}, "has values of type"),
        ({"filters": [{"id": "pickle", "protocol": 5}]}, "is filtered by"),
        ({"filters": [{"id": "vlen-utf8"}]}, "is filtered by"),
        ({"filters": [{"id": "shuffle", "elementsize": 0}]}, "is filtered by"),
        ({"filters": [{"id": "delta", "dtype": "|O"}]}, "is filtered by"),
        ({"filters": [{"id": "delta", "dtype": "<f4", "astype": "<f8"}]}, "is filtered by"),
        ({"filters": [{}]}, "not described as Zarr"),
        ({"filters": 5}, "not described as Zarr"),
        ({"compressor": {"id": "lzma"}}, "is compressed by"),
        ({"compressor": {"id": "pickle"}}, "is compressed by"),
        ({"compressor": {"id": "my-own"}}, "is compressed by"),
        ({"compressor": {}}, "not described as Zarr"),
        ({"compressor": "blosc"}, "not described as Zarr"),
        ({"dtype": [["a", "<f4"]]}, "has values of type"),
        ({"dtype": "<c8"}, "has values of type"),
        ({"dtype": "|V100"}, "has values of type"),
        ({"dtype": "<U999999999"}, "has values of type"),
        ({"dtype": "<f4,<f4"}, "has values of type"),
        ({"shape": [2**40]}, "rows, more than"),
        ({"chunks": [0]}, "has axes or chunks"),
        ({"chunks": [-4]}, "has axes or chunks"),
        ({"chunks": [2**40]}, "has chunks of"),
        ({"chunks": []}, "has axes or chunks"),
        ({"dimension_separator": "../"}, "names its chunks"),
        ({"zarr_format": 1}, "has the format 1"),
    ],
)
def test_what_version_2_declares_is_not_believed(
    tmp_path: Path, bring: Any, fields: dict[str, Any], error: str
) -> None:
    path = write(tmp_path / "x.zarr", 2, a=drawn())
    edit(path / "a" / ".zarray", **fields)
    with pytest.raises(DataError, match=error):
        bring(Zarr(path))


def test_nothing_is_unpickled(tmp_path: Path, bring: Any) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    path = write(tmp_path / "x.zarr", 2, a=drawn())
    for chunk in (path / "a").glob("[0-9]*"):
        chunk.write_bytes(pickle.dumps(np.array([Evil()] * 4, object)))
    for fields in ({"dtype": "|O", "filters": [{"id": "pickle", "protocol": 5}], "compressor": None}, {"dtype": "<f4"}):
        edit(path / "a" / ".zarray", **fields)
        with pytest.raises(DataError):
            bring(Zarr(path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["zarr.json", "a/zarr.json"])
@pytest.mark.parametrize(
    "text", ["", "[]", "5", "{", "[" * 100_000, "9" * 10_000, '{"node_type": "array"}', "\xff\xfe"]
)
def test_metadata_that_is_none_is_refused(tmp_path: Path, bring: Any, name: str, text: str) -> None:
    path = write(tmp_path / "x.zarr", a=drawn())
    (path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises((DataError, InvalidRequest), match=r"metadata is|has the format|none is one"):
        bring(Zarr(path))


def test_what_metadata_says_is_not_repeated_at_length(tmp_path: Path, bring: Any) -> None:
    path = write(tmp_path / "x.zarr", a=drawn())
    edit(path / "a" / "zarr.json", attributes={"units": "days since " + "x" * 10**6})
    with pytest.raises(DataError) as refused:
        bring(Zarr(path))
    assert len(str(refused.value)) < 1000


def test_metadata_of_any_size_is_read_up_to_a_bound(tmp_path: Path, bring: Any) -> None:
    path = write(tmp_path / "x.zarr", a=drawn())
    with (path / "a" / "zarr.json").open("r+b") as file:
        file.truncate(2**34)
    with pytest.raises(DataError, match="metadata has at most"):
        bring(Zarr(path))


BOMB = bytes(2**28)


@pytest.mark.parametrize("codec", ["gzip", "zlib", "zstd", "blosc", "lz4"])
def test_a_chunk_that_decodes_to_more_is_refused_in_bounded_memory(tmp_path: Path, bring: Any, codec: str) -> None:
    packed = {
        "gzip": lambda: gzip.compress(BOMB, 1) * 2,
        "zlib": lambda: zlib.compress(BOMB, 1),
        "zstd": lambda: numcodecs.Zstd().encode(BOMB),
        "blosc": lambda: numcodecs.Blosc().encode(BOMB),
        "lz4": lambda: numcodecs.LZ4().encode(BOMB),
    }[codec]()
    path = write(tmp_path / "x.zarr", 2, a=drawn())
    edit(path / "a" / ".zarray", compressor=numcodecs.get_codec({"id": codec}).get_config())
    for chunk in (path / "a").glob("[0-9]*"):
        chunk.write_bytes(packed)

    with bounded(), pytest.raises(DataError, match="by what it says of itself"):
        bring(Zarr(path))


def test_what_stands_behind_the_frame_of_a_chunk_is_refused_in_bounded_memory(tmp_path: Path, bring: Any) -> None:
    path = write(tmp_path / "x.zarr", 2, a=drawn())
    edit(path / "a" / ".zarray", compressor=numcodecs.Zstd().get_config())
    bomb = numcodecs.Zstd().encode(BOMB)
    for chunk in (path / "a").glob("[0-9]*"):
        chunk.write_bytes(numcodecs.Zstd().encode(drawn()[:4]) + bomb)

    with bounded(), pytest.raises(DataError, match="by what it says of itself"):
        bring(Zarr(path))


@pytest.mark.parametrize("whole", [True, False])
def test_a_chunk_in_a_shard_that_decodes_to_more_is_refused(tmp_path: Path, bring: Any, whole: bool) -> None:
    import google_crc32c

    bomb = gzip.compress(BOMB, 1)
    gzips = [zarr.codecs.GzipCodec()]
    rows = 2 if whole else 8
    array = zarr.create_array(
        tmp_path / "x.zarr", shape=(8,), chunks=(2,), shards=(rows,), dtype="f4", compressors=gzips
    )
    array[:] = np.arange(1, 9)
    pieces = rows // 2
    index = np.array([[0, len(bomb)]] * pieces, "<u8").tobytes()
    checksum = google_crc32c.value(index).to_bytes(4, "little")
    for shard in (tmp_path / "x.zarr" / "c").iterdir():
        shard.write_bytes(bomb + index + checksum)

    with bounded(), pytest.raises(DataError, match="by what it says of itself"):
        bring(Zarr(tmp_path / "x.zarr"))


def resident_kib() -> int:
    (told,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(told.split()[1])


@pytest.mark.parametrize("version", [2, 3])
def test_a_chunk_that_is_cut_or_garbage_is_refused(tmp_path: Path, bring: Any, version: int) -> None:
    path = write(tmp_path / "x.zarr", version, a=drawn())
    chunk = path / "a" / ("1" if version == 2 else "c/1")
    whole = chunk.read_bytes()
    for data in (b"", whole[:5], whole[:-1], b"\x00" * 40, whole[::-1]):
        chunk.write_bytes(data)
        with pytest.raises(DataError, match=r"by what it says of itself|cannot be read"):
            bring(Zarr(path))


def test_an_array_is_read_a_few_chunks_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    array = zarr.create_array(path, shape=(9_999_999, 256), chunks=(4096, 256), dtype="uint8", fill_value=7)
    assert array.nbytes > 2 * 2**30
    before = resident_kib()

    batches = open_arrays(Zarr(path, missing="fill")).read()

    for _, batch in zip(range(20), batches, strict=False):
        assert len(batch) == 8192
    assert resident_kib() - before < 200 * 1024


@pytest.mark.parametrize("shards", [None, (2**20,)])
def test_rows_that_nobody_wrote_are_filled_up_to_a_bound(tmp_path: Path, shards: Any) -> None:
    path, written = tmp_path / "x.zarr", 5000
    array = zarr.create_array(path, shape=(2**31 - 1,), chunks=(4096,), shards=shards, dtype="uint8", fill_value=7)
    array[:written] = 1

    with pytest.raises(DataError, match=r"at most 10,000,000 rows.* declares 2,147,483,647, and of 2,147,475,455 it"):
        open_arrays(Zarr(path, missing="fill"))

    array.resize((10_000_000 + 2 * 4096,))  # the two chunks that were written beside as many rows as there may be
    found = open_arrays(Zarr(path, missing="fill"))
    assert next(iter(found.read())).column(0).to_pylist()[written - 1 : written + 1] == [1, 7]
    array.resize((10_000_000 + 2 * 4096 + 1,))
    with pytest.raises(DataError, match=r"of 10,000,001 it has no chunk; resize it"):
        open_arrays(Zarr(path, missing="fill"))


def test_arrays_that_change_meanwhile_end_the_ingest(tmp_path: Path) -> None:
    path = write(tmp_path / "x.zarr", a=drawn())
    found = open_arrays(Zarr(path))
    list(found.read())
    zarr.open_array(path / "a")[:] = drawn(seed=1)
    with pytest.raises(DataError, match="arrays stay as they are during an ingest"):
        list(found.read())


def test_a_folder_without_arrays_or_rows_says_so(tmp_path: Path, bring: Any) -> None:
    with pytest.raises(InvalidRequest, match="is a folder"):
        bring(Zarr(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidRequest, match="none is one"):
        bring(Zarr(tmp_path / "empty"))
    zarr.open_group(tmp_path / "groups", mode="w").create_group("inner").create_array("a", data=drawn())
    with pytest.raises(InvalidRequest, match="none is one"):
        bring(Zarr(tmp_path / "groups"))
    with pytest.raises(NothingToIngest, match="at least one row"):
        bring(Zarr(write(tmp_path / "no-rows", a=np.zeros(0, "f4"))))
    shutil.rmtree(tmp_path / "empty")
