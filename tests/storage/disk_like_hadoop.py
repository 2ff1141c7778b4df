"""A file system on disk that renames as HDFS does over HTTP: never onto a name that is taken, and without saying so."""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from mms_sdk.storage.stores.hdfs import HdfsObjects


class DiskLikeHadoop(LocalFileSystem):
    def mv(self, path1: str, path2: str, **_: Any) -> None:
        try:
            os.link(path1, path2)  # one of several to the same name
        except FileExistsError:
            return
        os.unlink(path1)


class ObjectsLikeHadoop(HdfsObjects):
    @cached_property
    def _system(self) -> Any:
        return DiskLikeHadoop(auto_mkdir=False, use_listings_cache=False, skip_instance_cache=True)


class ObjectsWithoutRules(HdfsObjects):
    """Where a rename puts a file in place of another."""

    @cached_property
    def _system(self) -> Any:
        return LocalFileSystem(auto_mkdir=False, use_listings_cache=False, skip_instance_cache=True)

    def create(self, key: str, data: bytes) -> None:
        self.put(key, data)
