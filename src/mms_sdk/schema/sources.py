"""Sources: where the rows of an ingest come from, as they are said and kept."""

from __future__ import annotations

import os
import re
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.base import Asked


def _of_text(encoding: str) -> str:
    try:
        bytes(4).decode(encoding)
    except UnicodeError:  # it is one, in which these are no characters
        return encoding
    except (LookupError, ValueError) as error:
        raise ValueError(f"an encoding is one of text that Python knows, e.g. latin-1; got {encoding!r}") from error
    return encoding


Encoding = Annotated[str, AfterValidator(_of_text)]


class _OfPath(Asked):
    by_place = ("path",)
    path: Annotated[str, BeforeValidator(lambda path: os.fspath(path) if isinstance(path, os.PathLike) else path)]

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


class AsClips(Asked):
    """How clips of a source are taken.

    Attributes:
        max_seconds: Longer clips are rejected.
        max_pixels: Clips with larger frames are rejected; bounds the memory of a decode.
    """

    max_seconds: float = Field(default=3600.0, gt=0)
    max_pixels: int = Field(default=50_000_000, gt=0)


class AsTexts(Asked):
    """How texts of a source are taken.

    Attributes:
        encoding: Of their bytes; what is kept is UTF-8.
    """

    encoding: Encoding = "utf-8"


Kind = Literal["image", "audio", "video", "text"]
"""What samples are: pictures, recordings, clips or texts."""


class _AsSamples(AsTexts, AsClips, AsPictures):
    kind: Kind | None = None

    def taken_as(self, kind: Kind) -> AsPictures | AsRecordings | AsClips | AsTexts:
        """How samples of a kind are taken."""
        if kind == "image":
            return AsPictures(color=self.color, max_pixels=self.max_pixels)
        if kind == "audio":
            return AsRecordings(max_seconds=self.max_seconds)
        if kind == "video":
            return AsClips(max_seconds=self.max_seconds, max_pixels=self.max_pixels)
        return AsTexts(encoding=self.encoding)


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


class VideoFolder(AsClips, _OfPath):
    """A folder with one sub-folder of clips for each class: MP4, MOV, Matroska, WebM, AVI, MPEG or Ogg.

    Attributes:
        path: The folder.
        max_seconds: Longer clips are rejected.
        max_pixels: Clips with larger frames are rejected; bounds the memory of a decode.
    """

    type: Literal["video-folder"] = "video-folder"


class Files(_AsSamples, _OfPath):
    """Pictures, recordings, clips or texts: files that a pattern names or that lie in a folder, one a row.

    Attributes:
        path: A pattern such as `photos/**/*.jpg`, where `**` stands for any number of folders; a folder; or a file.
        kind: What the files are: `image`, `audio`, `video` or `text`. None: what their names end with says, and others
            are left out.
        label: Where the class stands: `folder` takes the name of the folder that a file lies in. A regular expression
            is looked for in the path within the source; its group `label` is the class, and a group `split`, if it has
            one, train, validation or test, e.g. `(?P<split>[a-z]+)/(?P<label>[^_/]+)_[^/]*$`. None: there are no
            classes.
        color: Of pictures: `auto` keeps one channel when every picture is grey; `gray` and `rgb` force it.
        max_pixels: Larger pictures, and clips with larger frames, are rejected; bounds the memory of a decode.
        max_seconds: Longer recordings and clips are rejected.
        encoding: Of texts; what is kept is UTF-8.
    """

    type: Literal["files"] = "files"
    label: str | None = None

    @field_validator("label")
    @classmethod
    def _is_a_place(cls, label: str | None) -> str | None:
        if label in (None, "folder"):
            return label
        # RE2: a name cannot be made that takes it for ever. It knows all of Python's but looking around and back.
        import pyarrow as pa
        import pyarrow.compute as pc

        try:
            found = pc.extract_regex(pa.array([""]), label).type
        except pa.ArrowInvalid as error:
            raise ValueError(
                f"a class is that of the 'folder', or of a regular expression with named groups; {error}"
            ) from error
        names = [found.field(at).name for at in range(found.num_fields)]
        if not names or len(set(names)) < len(names) or not set(names) <= {"label", "split"}:
            raise ValueError(
                f"a class is that of the 'folder', or the group of a regular expression, e.g. '^(?P<label>[^_]+)_'; "
                f"its groups are label and split; got {label!r} with the groups {names}"
            )
        return label


class WebDataset(_AsSamples, _OfPath):
    """Samples in tar files as WebDataset writes them: files that stand one after another and share a key.

    A sample's picture, recording, clip or text is the file that ends as such; the others are columns beside: texts, and
    the fields of a `.json`. Nothing is unpacked to disk, and pickles are left alone.

    Attributes:
        path: A tar file; a pattern such as `shards/*.tar` or `shards/train-{000000..000012}.tar`; or a folder.
        kind: What a sample is, by the one of its files that is `image`, `audio`, `video` or `text`. None: the one that
            there is; a text only if there is nothing else.
        part: What the name of that file ends with, e.g. `left.jpg`, where several would do.
        label: What the class stands in: what the name of its file ends with, or a field of the `.json`. None: `cls`, if
            there is one.
        color: Of pictures: `auto` keeps one channel when every picture is grey; `gray` and `rgb` force it.
        max_pixels: Larger pictures, and clips with larger frames, are rejected; bounds the memory of a decode.
        max_seconds: Longer recordings and clips are rejected.
        encoding: Of texts; what is kept is UTF-8.
    """

    type: Literal["webdataset"] = "webdataset"
    part: str | None = Field(default=None, min_length=1)
    label: str | None = Field(default=None, min_length=1)


class TFDS(AsPictures, AsRecordings, _OfPath):
    """A dataset that tensorflow-datasets prepared, in ArrayRecord or TFRecord files; without TensorFlow.

    With a picture or a recording in each row it becomes a dataset of those, and a table otherwise. Its splits train,
    validation and test become those of the snapshot.

    Attributes:
        path: The folder of a version, e.g. `~/tensorflow_datasets/mnist/3.0.1`.
        splits: Which of its splits; None for all.
        label: The feature that is the class; None for the one that is, if it is one of a few names.
        rate_hz: Of recordings whose description does not say it.
        color: Of pictures: `auto` keeps one channel when every picture is grey; `gray` and `rgb` force it.
        max_pixels: Larger pictures are rejected; bounds the memory of a decode.
        max_seconds: Longer recordings are rejected.
    """

    type: Literal["tfds"] = "tfds"
    splits: tuple[str, ...] | None = Field(default=None, min_length=1)
    label: str | None = None
    rate_hz: int | None = Field(default=None, gt=0)

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


class HTTP(AsPictures, AsRecordings):
    """Pictures or recordings at addresses of the web, fetched once by the machine that ingests.

    Attributes:
        urls: The addresses, `http://` or `https://`; or the path of a file with one a line, or with the columns `url`
            and, if there are classes, `label`, if its name ends with `.csv`.
        labels: For each of `urls` its class; None if there are none, or the file says them.
        path: The file, where it is one.
        kind: What they are.
        max_bytes: Larger files are rejected.
        max_total_bytes: More in all ends the ingest.
        timeout_s: Seconds that a file may take, with all tries and the waits between them; slower ones are rejected.
        color: Of pictures: `auto` keeps one channel when every picture is grey and three otherwise; `gray` and `rgb`
            force it.
        max_pixels: Larger pictures are rejected; bounds the memory of a decode.
        max_seconds: Longer recordings are rejected.
    """

    by_place = ("urls",)
    type: Literal["http"] = "http"
    urls: tuple[str, ...] = ()
    labels: tuple[str, ...] | None = None
    path: str | None = None
    kind: Literal["image", "audio"] = "image"
    max_bytes: int = Field(default=100 * 2**20, gt=0)
    max_total_bytes: int = Field(default=100 * 2**30, gt=0)
    timeout_s: float = Field(default=60.0, gt=0, le=3600)

    @model_validator(mode="before")
    @classmethod
    def _one_or_a_file(cls, told: Any) -> Any:
        urls = told.get("urls") if isinstance(told, dict) else None
        if isinstance(urls, str) and urls.lower().startswith(("http://", "https://")):
            return {**told, "urls": (urls,)}
        if isinstance(urls, str | PurePath):
            return {**told, "urls": (), "path": str(urls)}
        return told

    @model_validator(mode="after")
    def _is_a_list(self) -> HTTP:
        if (self.path is None) != bool(self.urls):
            raise ValueError("addresses are given as a list of at least one, or as the path of a file with them")
        if self.labels is not None and len(self.labels) != len(self.urls):
            raise ValueError(
                f"each address has its label; got {len(self.urls)} and {len(self.labels)} labels; those of a file are "
                f"in its column label"
            )
        for number, url in enumerate(self.urls):
            if problem := kept_url_problem(url):
                raise ValueError(f"address {number} is refused: {problem}")
        return self

    @property
    def told(self) -> str:
        """What it is, in a word."""
        return "a list of addresses" if self.path is None else PurePath(self.path).name


def url_problem(url: str) -> str:
    """Why an address is not fetched, without repeating what may be secret in it; empty if it is."""
    import httpx2

    try:
        parsed = httpx2.URL(url) if len(url) <= _MAX_URL_CHARS else None
    except (httpx2.InvalidURL, UnicodeError, ValueError):
        parsed = None
    if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host:
        return (
            f"an address is http:// or https://, a host and a path, of at most {_MAX_URL_CHARS:,} letters; it is none"
        )
    if parsed.userinfo:
        return "an address has no user or password, for sources are kept with their dataset; leave them out"
    return ""


def kept_url_problem(url: str) -> str:
    """Why an address that would be kept with its dataset is not fetched; empty if it is. See `url_problem`."""
    import httpx2

    if problem := url_problem(url):
        return problem
    if any(name.lower() in _SIGNATURES for name in httpx2.URL(url).params):
        return (
            "an address has no signature, token or key in its query, for sources are kept with their dataset; leave it "
            "out, or fetch the files and ingest their folder"
        )
    return ""


_MAX_URL_CHARS = 8192
_SIGNATURES = {
    *("x-amz-signature", "x-amz-credential", "x-amz-security-token", "x-goog-signature", "x-goog-credential"),
    *("awsaccesskeyid", "key-pair-id", "policy", "sig", "signature", "token", "access_token", "auth_token"),
    *("api_key", "apikey", "api-key", "key", "secret", "password"),
}


class HuggingFace(AsPictures, AsRecordings, AsTable, _OfPath):
    """A dataset that the library `datasets` saved with `save_to_disk`, or keeps in its cache; without that library.

    Rows with one picture or one recording become such; others become rows of a table. Its splits train, validation and
    test become those of the snapshot.

    Attributes:
        path: The folder, of one dataset or of several that are splits.
        splits: Which of its splits; None for all.
        label: The column that is to be predicted, if it is a class; None for the only one of type `ClassLabel`, if
            there is exactly one.
        categories: Columns whose texts are a few that repeat; kept as codes.
        columns: Which columns; None for all.
        color: Of pictures: `auto` keeps one channel when every picture is grey and three otherwise; `gray` and `rgb`
            force it.
        max_pixels: Larger pictures are rejected; bounds the memory of a decode.
        max_seconds: Longer recordings are rejected.
    """

    type: Literal["hugging-face"] = "hugging-face"
    splits: tuple[str, ...] | None = Field(default=None, min_length=1)

    @field_validator("splits", mode="before")
    @classmethod
    def _several_splits(cls, names: Any) -> Any:
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
    encoding: Encoding = "utf-8"
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


class _Arrays(AsTable, _OfPath):
    rows: str | None = None
    missing: Literal["refuse", "fill"] = "refuse"


class Zarr(_Arrays):
    """Rows along the first axis of the arrays of a Zarr group, v2 or v3, or of one array; xarray's conventions hold.

    Attributes:
        path: The folder of the group or array.
        rows: Name of the dimension that rows lie along; None for the first one that all arrays share. Arrays that do
            not have it first are left out.
        missing: Zarr reads a chunk that is not there as its fill value; `fill` says that this is meant, for at most 10
            million rows of an array that have no chunk at all.
        label: The column that is to be predicted, if it is a class; it becomes the column `label`.
        categories: Columns whose texts are a few that repeat; kept as codes.
        columns: Which arrays; None for all.
    """

    type: Literal["zarr"] = "zarr"


class Icechunk(_Arrays):
    """Rows along the first axis of the arrays of an Icechunk repository.

    Attributes:
        path: The folder of the repository.
        branch: Whose newest snapshot is read; None for `main`.
        tag: Or the snapshot that has this tag.
        snapshot: Or the snapshot of this id.
        rows: Name of the dimension that rows lie along; None for the first one that all arrays share. Arrays that do
            not have it first are left out.
        missing: Zarr reads a chunk that is not there as its fill value; `fill` says that this is meant, for at most 10
            million rows of an array that have no chunk at all.
        label: The column that is to be predicted, if it is a class; it becomes the column `label`.
        categories: Columns whose texts are a few that repeat; kept as codes.
        columns: Which arrays; None for all.
    """

    type: Literal["icechunk"] = "icechunk"
    branch: str | None = None
    tag: str | None = None
    snapshot: str | None = None

    @model_validator(mode="after")
    def _is_one_snapshot(self) -> Icechunk:
        if sum(each is not None for each in (self.branch, self.tag, self.snapshot)) > 1:
            raise ValueError("a repository is read at a branch, a tag or a snapshot: name one of them")
        return self


_SECRET_OF_DATABASE = re.compile("pass|pwd|secret|token|key|odbc_connect", re.IGNORECASE)


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
            parsed = make_url(url)
        except ArgumentError as error:
            raise InvalidRequest("a database is a URL such as postgresql://user@host/name; this is none") from error
        if parsed.password is not None or any(_SECRET_OF_DATABASE.search(name) for name in parsed.query):
            raise InvalidRequest(
                "a source is kept with its dataset, so its URL has no password, in its query neither; name an "
                "environment variable that holds it with password_env="
            )
        return url


Source = Annotated[
    ImageFolder
    | AudioFolder
    | VideoFolder
    | Files
    | WebDataset
    | HTTP
    | TFDS
    | HuggingFace
    | CSV
    | JSONL
    | Parquet
    | Arrow
    | Zarr
    | Icechunk
    | SQL,
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
        for name in self.names or ():
            if "/" in name or not name.isprintable():
                raise ValueError(f"a source's name is printable and has no slash; got {name!r}; choose another")
        return self

    @property
    def named(self) -> tuple[str, ...]:
        """What each source is called."""
        return self.names or tuple(source.told.replace("/", "-") for source in self.sources)

    @property
    def told(self) -> str:
        """What it is, in a word."""
        return " and ".join(self.named)
