"""Sources: where the rows of an ingest come from, as they are said and kept."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.base import Asked


class _OfPath(Asked):
    by_place = ("path",)
    path: Annotated[str, BeforeValidator(lambda path: str(path) if isinstance(path, PurePath) else path)]

    @property
    def told(self) -> str:
        """What it is, in a word."""
        return PurePath(self.path).name


class AsPictures(Asked):
    """How pictures of a source are taken.

    Attributes:
        color: `auto` keeps one channel when every picture is grey and three otherwise; `gray` and `rgb` force it.
        max_pixels: Larger pictures are rejected; bounds the memory of a decode.
    """

    color: Literal["auto", "gray", "rgb"] = "auto"
    max_pixels: int = Field(default=50_000_000, gt=0)


class AsRecordings(Asked):
    """How recordings of a source are taken.

    Attributes:
        max_seconds: Longer recordings are rejected.
    """

    max_seconds: float = Field(default=3600.0, gt=0)


class ImageFolder(AsPictures, _OfPath):
    """A folder with one sub-folder of pictures for each class.

    Attributes:
        path: The folder.
        color: `auto` keeps one channel when every picture is grey and three otherwise; `gray` and `rgb` force it.
        max_pixels: Larger pictures are rejected; bounds the memory of a decode.
    """

    type: Literal["image-folder"] = "image-folder"


class AudioFolder(AsRecordings, _OfPath):
    """A folder with one sub-folder of recordings for each class: WAV, FLAC, OGG or MP3.

    Attributes:
        path: The folder.
        max_seconds: Longer recordings are rejected.
    """

    type: Literal["audio-folder"] = "audio-folder"


class TFDS(AsPictures, _OfPath):
    """A dataset of pictures that tensorflow-datasets prepared, in ArrayRecord or TFRecord files; without TensorFlow.

    Its splits train, validation and test become those of the snapshot.

    Attributes:
        path: The folder of a version, e.g. `~/tensorflow_datasets/mnist/3.0.1`.
        splits: Which of its splits; None for all.
        color: `auto` keeps one channel when every picture is grey and three otherwise; `gray` and `rgb` force it.
        max_pixels: Larger pictures are rejected; bounds the memory of a decode.
    """

    type: Literal["tfds"] = "tfds"
    splits: tuple[str, ...] | None = Field(default=None, min_length=1)

    @field_validator("splits", mode="before")
    @classmethod
    def _several(cls, names: Any) -> Any:
        return (names,) if isinstance(names, str) else names

    @property
    def told(self) -> str:
        """What it is, in a word."""
        return "/".join(PurePath(self.path).parts[-2:])


class AsTable(Asked):
    """How rows with named columns are taken.

    Attributes:
        label: The column that is to be predicted, if it is a class; it becomes the column `label`.
        categories: Columns whose texts are a few that repeat; kept as codes.
        columns: Which columns; None for all.
    """

    label: str | None = None
    categories: tuple[str, ...] = ()
    columns: tuple[str, ...] | None = Field(default=None, min_length=1)

    @field_validator("categories", "columns", mode="before")
    @classmethod
    def _several(cls, names: Any) -> Any:
        return (names,) if isinstance(names, str) else names


class _TableFiles(AsTable, _OfPath):
    """Rows in files: one file, a pattern such as `logs/*.csv`, or a folder, whose files are taken in order of name."""


class CSV(_TableFiles):
    """Rows of delimited text with a header line.

    Types are chosen by all values of a column: whole numbers, numbers, truth values, times, else text. Nothing is
    altered: a code with leading zeros stays text.

    Attributes:
        path: A file, a pattern, or a folder.
        delimiter: What lies between two values; None for a tab in `.tsv` and `.tab` files and a comma in others.
        encoding: Of the text.
        text: Columns that stay text, whatever they look like.
    """

    type: Literal["csv"] = "csv"
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    encoding: str = "utf-8"
    text: tuple[str, ...] = ()


class JSONL(_TableFiles):
    """Rows of JSON objects, one a line.

    Attributes:
        path: A file, a pattern, or a folder.
    """

    type: Literal["jsonl"] = "jsonl"


class Parquet(_TableFiles):
    """Rows of Parquet files.

    Attributes:
        path: A file, a pattern, or a folder.
    """

    type: Literal["parquet"] = "parquet"


class Arrow(_TableFiles):
    """Rows of Arrow IPC files, also called Feather.

    Attributes:
        path: A file, a pattern, or a folder.
    """

    type: Literal["arrow"] = "arrow"


class SQL(AsTable):
    """Rows that a query gives.

    Attributes:
        url: The database, as SQLAlchemy writes it, without a password: sources are kept with the job and the dataset.
        query: What is selected. Give it an ORDER BY: rows come in that order.
        password_env: Environment variable with the password, read where the ingest runs.
    """

    by_place = ("url", "query")
    type: Literal["sql"] = "sql"
    url: str
    query: str
    password_env: str | None = None

    @property
    def told(self) -> str:
        """What it is, in a word."""
        return "a query"

    @field_validator("url")
    @classmethod
    def _without_password(cls, url: str) -> str:
        from sqlalchemy import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            has_password = make_url(url).password is not None
        except ArgumentError as error:
            raise InvalidRequest("a database is a URL such as postgresql://user@host/name; this is none") from error
        if has_password:
            raise InvalidRequest(
                "a source is kept with its dataset, so its URL has no password; name an environment variable that "
                "holds it with password_env="
            )
        return url


Source = Annotated[
    ImageFolder | AudioFolder | TFDS | CSV | JSONL | Parquet | Arrow | SQL,
    Field(discriminator="type"),
]


class Union(Asked):
    """Several sources as one: all of pictures, all of recordings, or all of tables.

    Attributes:
        sources: In order.
        names: What each is called, so that rows of two are not taken for the same; None for the last part of each path.
    """

    by_place = ("sources",)
    type: Literal["union"] = "union"
    sources: tuple[Source, ...] = Field(min_length=2, max_length=1000)
    names: tuple[Annotated[str, Field(min_length=1)], ...] | None = None

    @model_validator(mode="after")
    def _has_names(self) -> Union:
        if len(set(self.named)) < len(self.sources) or len(self.named) != len(self.sources):
            raise ValueError(f"each source has a name of its own; got {list(self.named)}; say them with names=")
        return self

    @property
    def named(self) -> tuple[str, ...]:
        """What each source is called."""
        return self.names or tuple(source.told for source in self.sources)

    @property
    def told(self) -> str:
        """What it is, in a word."""
        return " and ".join(self.named)
