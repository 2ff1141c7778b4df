"""The store at a URL."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from mms_sdk.errors import InvalidRequest
from mms_sdk.storage.stores.base import Store
from mms_sdk.storage.stores.cloud import CloudObjects
from mms_sdk.storage.stores.hdfs import HdfsObjects
from mms_sdk.storage.stores.local import LocalStore
from mms_sdk.storage.stores.remote import Objects, RemoteStore

CLOUD = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss")
HADOOP = ("hdfs", "webhdfs")
COPIES_BYTES = 64 * 2**30
_OPTIONS = ("endpoint", "region", "virtual_hosted_style_request")


def is_remote(where: str) -> bool:
    """Whether somebody named a place by a URL rather than a folder of this machine."""
    return "://" in where and not where.startswith("file://")


def store_at(where: str | Path, *, copies: Path | None = None, max_bytes: int = COPIES_BYTES) -> Store:
    """Opens a store; nothing is read or written.

    Args:
        where: A folder, or a URL: `s3://bucket/folder?endpoint=http://127.0.0.1:9000&region=eu-1`, `gs://`, `az://`,
            `hdfs://`, `webhdfs://`, `file://`. Credentials come from the environment, e.g. `AWS_ACCESS_KEY_ID` and
            `AWS_SECRET_ACCESS_KEY`, or from the machine's role; never in a URL.
        copies: A folder of this machine for copies of what is read from a store that is not.
        max_bytes: Room for them.

    Raises:
        InvalidRequest: There are no such stores, or the URL holds a password.
    """
    if isinstance(where, Path) or not is_remote(where):
        return LocalStore(Path(str(where).removeprefix("file://")).expanduser().absolute())
    if copies is None:
        raise InvalidRequest(f"what is read from {where.split('?')[0]} is copied to this machine; name a folder for it")
    return RemoteStore(objects_at(where), copies=copies, max_bytes=max_bytes)


def objects_at(url: str) -> Callable[[], Objects]:
    """What makes the client of an object store.

    Raises:
        InvalidRequest: See `store_at`.
    """
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise InvalidRequest(
            f"a store's URL holds no secrets, since it is written down and shown; got one of {parts.hostname}; put "
            f"them into the environment, e.g. AWS_SECRET_ACCESS_KEY"
        )
    plain = urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.scheme in CLOUD and parts.netloc and not set(options) - set(_OPTIONS):
        return partial(CloudObjects, plain, options)
    if parts.scheme in HADOOP and parts.netloc and not options:
        return partial(HdfsObjects, plain)
    known = ", ".join(f"{scheme}://" for scheme in (*CLOUD, *HADOOP))
    raise InvalidRequest(
        f"a store is a folder, or a URL of {known} with a bucket or host, and of options {list(_OPTIONS)}; got {url!r}"
    )


def refuse_shared_writing(store: Store) -> None:
    """Asks a store for the same new file twice.

    Two commits of one number are told apart by the store alone, so that one that writes both loses one of them.

    Raises:
        InvalidRequest: It does both.
    """
    key = f"mms-probe-{os.urandom(12).hex()}"
    store.create(key, b"1")
    try:
        store.create(key, b"2")
    except FileExistsError:
        return
    finally:
        store.delete(key)
    raise InvalidRequest(
        f"a store of datasets refuses to write a file that is there if it is asked to (If-None-Match on S3); "
        f"{store.url} overwrites it, so that commits would be lost; use one that refuses, e.g. AWS S3, Ceph or a folder"
    )
