"""HDFS through fsspec: `hdfs://` over libhdfs, `webhdfs://` over HTTP."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from mms_sdk.errors import MissingExtra, NotWritable, Unavailable
from mms_sdk.storage.stores.base import Stored

_DRAFTS = ".mms-drafts"


@dataclass(frozen=True)
class HdfsObjects:
    """Files below a folder of a Hadoop file system.

    A file is written beside its place and renamed to it. The name node does one rename of several to the same name,
    and refuses one to a name that is taken; that is what makes a commit exclusive here.

    Attributes:
        url: e.g. `webhdfs://namenode:9870/data`.
    """

    url: str

    @cached_property
    def _system(self) -> Any:
        try:
            import fsspec
        except ImportError as error:
            raise MissingExtra("fsspec", extra="hdfs") from error
        with self._told(""):
            return fsspec.core.url_to_fs(self.url, use_listings_cache=False)[0]

    @cached_property
    def _root(self) -> str:
        return str(self._system._strip_protocol(self.url)).rstrip("/")

    def get(self, key: str, start: int, end: int) -> tuple[bytes, int]:
        """See `Objects.get`."""
        with self._told(key):
            size = int(self._system.info(self._path(key))["size"])
            data = self._system.cat_file(self._path(key), start=start, end=min(end, size)) if size else b""
        return data, size

    def put(self, key: str, data: bytes) -> None:
        """See `Store.replace`: for a moment between the old file and the new there is none."""
        with self._told(key), self._draft(data) as draft:
            if self._system.exists(self._path(key)):
                self._system.rm_file(self._path(key))
            self._rename(draft, key)

    def create(self, key: str, data: bytes) -> None:
        """See `Store.create`."""
        with self._told(key), self._draft(data) as draft:
            if self._system.exists(self._path(key)) or not self._rename(draft, key):
                raise FileExistsError(f"{self.url}/{key} exists")

    def upload(self, key: str, file: Path) -> None:
        """See `Store.upload`."""
        with self._told(key), self._draft(b"") as draft:
            self._system.put_file(str(file), draft)
            if self._system.exists(self._path(key)):
                self._system.rm_file(self._path(key))
            self._rename(draft, key)

    def stat(self, key: str) -> Stored:
        """See `Store.stat`."""
        with self._told(key):
            return self._stored(self._system.info(self._path(key)))

    def names(self, prefix: str) -> list[str]:
        """See `Objects.names`."""
        with contextlib.suppress(FileNotFoundError), self._told(prefix):
            found = self._system.ls(self._path(prefix), detail=False)
            return sorted(name for each in found if (name := each.rstrip("/").rsplit("/", 1)[-1]) != _DRAFTS)
        return []

    def walk(self, prefix: str) -> Iterator[Stored]:
        """See `Objects.walk`."""
        with contextlib.suppress(FileNotFoundError), self._told(prefix):
            for told in self._system.find(self._path(prefix), detail=True).values():
                found = self._stored(told)
                if not found.key.startswith(_DRAFTS):
                    yield found

    def delete(self, keys: list[str]) -> None:
        """See `Objects.delete`."""
        for key in keys:
            with contextlib.suppress(FileNotFoundError), self._told(key):
                self._system.rm_file(self._path(key))

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}".rstrip("/")

    def _rename(self, draft: str, key: str) -> bool:
        # Not every client says whether the name node did it; whether the draft is still there does.
        self._system.makedirs(self._path(key).rsplit("/", 1)[0], exist_ok=True)
        with contextlib.suppress(OSError):
            self._system.mv(draft, self._path(key))
        return not self._system.exists(draft)

    @contextlib.contextmanager
    def _draft(self, data: bytes) -> Iterator[str]:
        draft = f"{self._root}/{_DRAFTS}/{os.urandom(12).hex()}"
        self._system.makedirs(f"{self._root}/{_DRAFTS}", exist_ok=True)
        try:
            self._system.pipe_file(draft, data)
            yield draft
        finally:
            if self._system.exists(draft):
                self._system.rm_file(draft)

    def _stored(self, told: dict[str, Any]) -> Stored:
        modified = told.get("mtime") or told.get("modified") or told.get("created") or told["modificationTime"] / 1000
        seconds = modified.timestamp() if isinstance(modified, datetime) else float(modified)
        return Stored(str(told["name"])[len(self._root) + 1 :], int(told["size"] or 0), seconds)

    @contextlib.contextmanager
    def _told(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, IsADirectoryError) as error:
            raise FileNotFoundError(f"{self.url}/{key} is not there") from error
        except (FileExistsError, MissingExtra):
            raise
        except PermissionError as error:
            raise NotWritable(f"{self.url}/{key} is refused to this user ({error}); ask for the right to it") from error
        except (OSError, RuntimeError, ValueError) as error:
            raise Unavailable(f"{self.url}/{key} cannot be reached now: {error}; check the address") from error
