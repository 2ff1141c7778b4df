"""Sources of rows with named columns: CSV, JSON lines, Parquet, Arrow and SQL, as streams of Arrow batches.

A source is read once to learn the type that fits all values of a column, and again, as often as cleaning needs it, to
bring the rows in; what is in memory is a batch. A row that cannot be read is left out with its reason. A file that
changes between two readings ends the ingest.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet

from mms_sdk.compute.data.sources.folders import printable
from mms_sdk.compute.data.sources.meant import file_meant
from mms_sdk.compute.data.sources.rows import BATCH_ROWS, ROW, SOURCE, Table
from mms_sdk.compute.data.sources.texts import TextType, as_type
from mms_sdk.errors import DataError, InvalidRequest, NothingToIngest
from mms_sdk.schema.cleaning import Reject
from mms_sdk.schema.sources import CSV, JSONL, SQL, Arrow, AsTable, Parquet

if TYPE_CHECKING:
    from sqlalchemy import URL

_SPOOL_ROWS = 65536
_CSV_BLOCK = 8 * 2**20  # bytes, and the longest row that can be read


def open_table(
    source: CSV | JSONL | Parquet | Arrow | SQL, *, spool: Path, only: Container[Path] | None = None
) -> Table:
    """Looks through a source.

    Args:
        source: Where the rows are.
        spool: A folder for what can be read only once.
        only: Which of its files; None for all.

    Raises:
        InvalidRequest: There is no such file, database or query.
        NothingToIngest: No file is there, or none can be read.
    """
    if isinstance(source, SQL):
        files = list(_queried(source, spool))
        if not files:
            raise NothingToIngest("a source has at least one row; the query gives none; check its conditions")
        return _open_files(_Arrow(), files, source)
    form = _CSV(source) if isinstance(source, CSV) else _FORMATS[type(source)]()
    return _open_files(form, [file for file in files_of(source) if only is None or file.path in only], source)


def files_of(source: CSV | JSONL | Parquet | Arrow) -> list[File]:
    """The files of a source, in order of name.

    Raises:
        NothingToIngest: There is none.
    """
    return list_files(source.path, _SUFFIXES[source.type])


@dataclass(frozen=True)
class File:
    """One file of a source, its name there, and the number of its first row."""

    path: Path
    name: str
    first: int = 1


def list_files(path: str, suffixes: Sequence[str]) -> list[File]:
    """The files that a path or a pattern names, or that lie in a folder and end with a suffix, in order of name.

    Raises:
        NothingToIngest: There is none.
    """
    root = Path(path).expanduser()
    if root.is_dir():
        found = [each for each in root.rglob("*") if each.is_file() and each.name.lower().endswith(tuple(suffixes))]
        base = root
    else:
        found = [Path(each) for each in glob.glob(str(root), recursive=True) if Path(each).is_file()]
        base = Path(os.path.commonpath([each.parent for each in found])) if found else root
    if not found:
        raise NothingToIngest(
            f"a source has at least one file, in a folder one that ends with {' or '.join(suffixes)}; {path} names "
            f"none; check the path"
        )
    return sorted((File(each, printable(each.relative_to(base).as_posix())) for each in found), key=lambda f: f.name)


class _Format:
    """How files of one kind are read.

    Attributes:
        taken: The type of the sources that it reads.
    """

    taken: ClassVar[str]

    def scan(self, file: File, rejects: list[Reject]) -> tuple[pa.Schema, int]:
        """The types that fit all its values, and its rows; appends what cannot be read."""
        raise NotImplementedError

    def read(self, file: File, schema: pa.Schema) -> Iterator[tuple[pa.RecordBatch, Sequence[int] | None]]:
        """Its batches, cast to the schema as far as it has the columns, and the rows' numbers if some are missing."""
        raise NotImplementedError

    def unify(self, schemas: Sequence[pa.Schema]) -> pa.Schema:
        """The types that fit the values of all files."""
        return pa.unify_schemas(schemas, promote_options="permissive")


_SUFFIXES = {
    "csv": (".csv", ".tsv", ".tab", ".csv.gz", ".tsv.gz"),
    "jsonl": (".jsonl", ".ndjson"),
    "parquet": (".parquet", ".pq"),
    "arrow": (".arrow", ".feather"),
}


def _open_files(form: _Format, files: Sequence[File], taken: AsTable) -> Table:
    rejects: list[Reject] = []
    schemas, rows, readable, stamps = [], 0, [], {}
    for file in files:
        stamps[file] = _stamp(file)
        try:
            if meant := file_meant(file.path, taken=form.taken):
                raise pa.ArrowInvalid(meant)
            schema, count = form.scan(file, rejects)
        except (pa.ArrowException, OSError, UnicodeError) as error:
            rejects.append(Reject(source=file.name, reason=_first_line(error)))
            continue
        if len(set(schema.names)) < len(schema.names):
            twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
            rejects.append(Reject(source=file.name, reason=f"two columns have one name: {twice}"))
            continue
        schemas.append(schema)
        readable.append(file)
        rows += count
    if not schemas:
        told = "; ".join(f"{reject.source}: {reject.reason}" for reject in rejects[:3])
        raise NothingToIngest(f"a source has at least one file that can be read; of {len(files)} none can: {told}")
    try:
        schema = form.unify(schemas)
    except pa.ArrowException as error:
        raise DataError(
            f"a column has one type in all files; {_first_line(error)}; ingest them into datasets of their own, or "
            f"choose others with columns="
        ) from error

    def read() -> Iterator[pa.RecordBatch]:
        for file in readable:
            first = file.first
            for batch, numbers in form.read(file, schema):
                if _stamp(file) != stamps[file]:
                    raise DataError(f"files stay as they are during an ingest; {file.name} changed; run it again")
                count = len(batch)
                numbered = range(first, first + count) if numbers is None else numbers
                yield _with_all_columns(batch, schema, file.name, numbered)
                first += count

    return Table(taken=taken, schema=schema, rows=rows, rejects=rejects, read=read)


def _stamp(file: File) -> tuple[int, int]:
    told = file.path.stat()
    return told.st_size, told.st_mtime_ns


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__


def _with_all_columns(batch: pa.RecordBatch, schema: pa.Schema, source: str, rows: Sequence[int]) -> pa.RecordBatch:
    there = set(batch.schema.names)
    arrays = [
        batch.column(name).cast(kind) if name in there else pa.nulls(len(batch), kind)
        for name, kind in zip(schema.names, schema.types, strict=True)
    ]
    names = pa.DictionaryArray.from_arrays(pa.array([0] * len(batch), pa.int32()), pa.array([source]))
    return pa.RecordBatch.from_arrays([*arrays, names, pa.array(rows, pa.int64())], names=[*schema.names, SOURCE, ROW])


class _CSV(_Format):
    taken = "csv"

    def __init__(self, source: CSV) -> None:
        self._source = source

    def scan(self, file: File, rejects: list[Reject]) -> tuple[pa.Schema, int]:
        kinds: dict[str, TextType] = {}
        rows = 0
        for batch, _ in self._texts(file, rejects):
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                kinds.setdefault(name, TextType()).see(column)
            rows += len(batch)
        fields = [
            (name, pa.string() if name in self._source.text else kinds.get(name, TextType()).chosen)
            for name in self._names(file)
        ]
        return pa.schema(fields), rows

    def read(self, file: File, schema: pa.Schema) -> Iterator[tuple[pa.RecordBatch, Sequence[int] | None]]:
        for batch, numbers in self._texts(file, []):
            names = batch.schema.names
            columns = [as_type(batch.column(name), schema.field(name).type) for name in names]
            yield pa.RecordBatch.from_arrays(columns, names=names), numbers

    def unify(self, schemas: Sequence[pa.Schema]) -> pa.Schema:
        """Numbers of two kinds are floats; anything else that differs is text."""
        kinds: dict[str, pa.DataType] = {}
        for schema in schemas:
            for name, kind in zip(schema.names, schema.types, strict=True):
                kinds[name] = TextType.both(kinds.get(name, kind), kind)
        return pa.schema(list(kinds.items()))

    def _names(self, file: File) -> list[str]:
        with self._open(file, {}, lambda _: "skip") as reader:
            return list(reader.schema.names)

    def _texts(self, file: File, rejects: list[Reject]) -> Iterator[tuple[pa.RecordBatch, list[int]]]:
        # Everything is read as bytes: what it is, all values of a column decide.
        bad: list[int] = []

        def other_width(row: pyarrow.csv.InvalidRow) -> str:
            bad.append(row.number)
            reason = f"it has {row.actual_columns} values, the header has {row.expected_columns}"
            rejects.append(Reject(source=f"{file.name}, row {row.number - 1}", reason=reason))
            return "skip"

        names = self._names(file)
        if len(set(names)) < len(names):
            raise pa.ArrowInvalid("two columns have one name in its header")
        at = 1  # the header is row 1 of the file
        with self._open(file, dict.fromkeys(names, pa.binary()), other_width) as reader:
            for batch in reader:
                numbers: list[int] = []
                while len(numbers) < len(batch):
                    at += 1
                    if at not in bad:
                        numbers.append(at - 1)
                yield _decoded(batch, numbers, file.name, rejects)

    @contextmanager
    def _open(
        self, file: File, types: Mapping[str, pa.DataType], other_width: Callable[[Any], str]
    ) -> Iterator[pyarrow.csv.CSVStreamingReader]:
        tabs = file.path.suffix.lower() in (".tsv", ".tab")
        reader = pyarrow.csv.open_csv(
            file.path,
            read_options=pyarrow.csv.ReadOptions(
                use_threads=False, block_size=_CSV_BLOCK, encoding=self._source.encoding
            ),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=self._source.delimiter or ("\t" if tabs else ","),
                newlines_in_values=True,
                invalid_row_handler=other_width,
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict(types), null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False
            ),
        )
        with reader:
            yield reader


def _decoded(
    batch: pa.RecordBatch, numbers: list[int], source: str, rejects: list[Reject]
) -> tuple[pa.RecordBatch, list[int]]:
    try:
        return _as_texts(batch), numbers
    except pa.ArrowInvalid:
        good = [at for at in range(len(batch)) if _is_text(batch.slice(at, 1))]
    for at in sorted(set(range(len(batch))) - set(good)):
        rejects.append(Reject(source=f"{source}, row {numbers[at]}", reason="it is not UTF-8; name its encoding="))
    return _as_texts(batch.take(pa.array(good, pa.int64()))), [numbers[at] for at in good]


def _as_texts(batch: pa.RecordBatch) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([column.cast(pa.string()) for column in batch.columns], names=batch.schema.names)


def _is_text(row: pa.RecordBatch) -> bool:
    try:
        _as_texts(row)
    except pa.ArrowInvalid:
        return False
    return True


class _JSONL(_Format):
    taken = "jsonl"

    def scan(self, file: File, rejects: list[Reject]) -> tuple[pa.Schema, int]:
        schema, rows = pa.schema([]), 0
        for records, _ in self._records(file, rejects):
            try:
                found = pa.Table.from_pylist(records, schema=None).schema if records else pa.schema([])
                schema = pa.unify_schemas([schema, _all_fields(records, found)], promote_options="permissive")
            except (pa.ArrowException, OverflowError) as error:
                raise pa.ArrowInvalid(f"a field has one type in all rows; {_first_line(error)}") from error
            rows += len(records)
        return schema, rows

    def read(self, file: File, schema: pa.Schema) -> Iterator[tuple[pa.RecordBatch, Sequence[int] | None]]:
        for records, numbers in self._records(file, []):
            yield pa.RecordBatch.from_pylist(records, schema=schema), numbers

    def _records(self, file: File, rejects: list[Reject]) -> Iterator[tuple[list[dict[str, Any]], list[int]]]:
        records: list[dict[str, Any]] = []
        numbers: list[int] = []
        with file.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    record = orjson.loads(line)
                    reason = "" if isinstance(record, dict) else f"it is {type(record).__name__}, not an object"
                except orjson.JSONDecodeError as error:
                    reason = f"it is not JSON: {error}"
                if reason:
                    rejects.append(Reject(source=f"{file.name}, line {number}", reason=reason))
                    continue
                records.append(record)
                numbers.append(number)
                if len(records) == BATCH_ROWS:
                    yield records, numbers
                    records, numbers = [], []
        if records:
            yield records, numbers


def _all_fields(records: Sequence[Mapping[str, Any]], found: pa.Schema) -> pa.Schema:
    # Arrow takes the names of the first record for all there are.
    missing = [name for name in dict.fromkeys(name for record in records for name in record) if name not in found.names]
    more = [(name, pa.array([record.get(name) for record in records]).type) for name in missing]
    return pa.schema([*found, *(pa.field(name, kind) for name, kind in more)])


class _Parquet(_Format):
    taken = "parquet"

    def scan(self, file: File, rejects: list[Reject]) -> tuple[pa.Schema, int]:
        with pyarrow.parquet.ParquetFile(file.path) as opened:
            return opened.schema_arrow.remove_metadata(), opened.metadata.num_rows

    def read(self, file: File, schema: pa.Schema) -> Iterator[tuple[pa.RecordBatch, Sequence[int] | None]]:
        with pyarrow.parquet.ParquetFile(file.path) as opened:
            for batch in opened.iter_batches(BATCH_ROWS):
                yield _validated(batch, file), None


class _Arrow(_Format):
    taken = "arrow"

    def scan(self, file: File, rejects: list[Reject]) -> tuple[pa.Schema, int]:
        with pa.OSFile(str(file.path)) as opened, pa.ipc.open_file(opened) as reader:
            rows = sum(reader.get_batch(number).num_rows for number in range(reader.num_record_batches))
            return reader.schema.remove_metadata(), rows

    def read(self, file: File, schema: pa.Schema) -> Iterator[tuple[pa.RecordBatch, Sequence[int] | None]]:
        with pa.OSFile(str(file.path)) as opened, pa.ipc.open_file(opened) as reader:
            for number in range(reader.num_record_batches):
                batch = _validated(reader.get_batch(number), file)
                for start in range(0, len(batch), BATCH_ROWS):
                    yield batch.slice(start, BATCH_ROWS), None


def _validated(batch: pa.RecordBatch, file: File) -> pa.RecordBatch:
    # Else an offset may point anywhere.
    try:
        batch.validate(full=True)
    except pa.ArrowException as error:
        raise DataError(f"values lie within their file; {file.name}: {_first_line(error)}; write it again") from error
    return batch


_FORMATS: dict[type, Callable[[], _Format]] = {JSONL: _JSONL, Parquet: _Parquet, Arrow: _Arrow}


def _only_read(url: URL) -> URL:
    # SQLite makes a file that is not there, and a query may be one that writes.
    if not url.database or url.database == ":memory:" or url.query.get("mode") == "memory":
        return url
    if "uri" in url.query:
        return url.update_query_dict({"mode": "ro"})
    path = Path(url.database).expanduser().absolute()
    if not path.is_file():
        raise InvalidRequest(
            f"an SQLite database that is asked is a file that is there; {path} is none; check the path: "
            f"sqlite:///FILE, or sqlite:////FOLDER/FILE from the root"
        )
    return url.set(database=f"file:{quote(str(path))}").update_query_dict({"mode": "ro", "uri": "true"})


def _queried(source: SQL, spool: Path) -> Iterator[File]:
    # A query gives other rows the next time it is asked: what it gave is kept while it is ingested.
    from sqlalchemy import create_engine, make_url, text
    from sqlalchemy.exc import SQLAlchemyError

    url = make_url(source.url)
    if source.password_env is not None:
        if source.password_env not in os.environ:
            raise InvalidRequest(
                f"a password is in the environment where the ingest runs; {source.password_env} is not set there; "
                f"set it, or leave password_env= out"
            )
        url = url.set(password=os.environ[source.password_env])
    try:
        engine = create_engine(_only_read(url) if url.get_backend_name() == "sqlite" else url)
        try:
            with engine.connect().execution_options(stream_results=True) as connection:
                rows = connection.execute(text(source.query)).mappings()
                first = 1
                for number, records in enumerate(rows.partitions(_SPOOL_ROWS)):
                    table = pa.Table.from_pylist([dict(record) for record in records])
                    pyarrow.feather.write_feather(table, spool / f"query-{number:06d}.arrow")
                    yield File(spool / f"query-{number:06d}.arrow", "query", first)
                    first += len(table)
        finally:
            engine.dispose()
    except (SQLAlchemyError, ImportError) as error:
        told = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise InvalidRequest(f"{url.render_as_string()} does not answer the query: {told}; mend the query") from error
    except pa.ArrowException as error:
        raise DataError(f"a column of a query has one type in all rows; {_first_line(error)}; cast it") from error
