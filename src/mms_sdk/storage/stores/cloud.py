"""S3 and what speaks it, Google Cloud Storage and Azure, through obstore."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from mms_sdk.errors import MissingExtra, NotWritable, Unavailable
from mms_sdk.storage.stores.base import Stored

_WRITER = "mms-writer"
_UPLOAD_PIECE_BYTES = 16 * 2**20
_KEYS_AT_A_TIME = 1000
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
_REFUSED = ("AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId", "ExpiredToken", "AuthenticationFailed")
# Long enough to live through a gateway that restarts, short enough to say so while somebody is still waiting.
_RETRIES = {"max_retries": 8, "retry_timeout": timedelta(seconds=60)}
_TIMEOUTS = {"connect_timeout": "5s", "read_timeout": "20s", "timeout": "120s"}


@dataclass(frozen=True)
class CloudObjects:
    """Objects in a bucket.

    A file that must not exist yet carries who wrote it, so that a writer whose answer got lost on the way, and whose
    request was sent again, finds that it was the first itself.

    Attributes:
        url: e.g. `s3://bucket/folder`.
        options: obstore's, without secrets; those it takes from the environment or from the machine's role.
    """

    url: str
    options: dict[str, str] = field(default_factory=dict)

    @cached_property
    def _store(self) -> Any:
        try:
            from obstore.store import from_url
        except ImportError as error:
            raise MissingExtra("obstore", extra="s3") from error
        make: Any = from_url  # its types know each store's options by their names
        plain = self.options.get("endpoint", "").startswith("http://")
        client = {**_TIMEOUTS, "allow_http": plain}
        return make(self.url, client_options=client, retry_config=_RETRIES, **self.options)

    def get(self, key: str, start: int, end: int) -> tuple[bytes, int]:
        """See `Objects.get`."""
        import obstore

        with self._told(key, "read"):
            try:
                found = obstore.get(self._store, key, options={"range": (start, end)})
                return bytes(found.bytes()), int(found.meta["size"])
            except obstore.exceptions.BaseError:
                if start == 0 and self.stat(key).bytes == 0:  # no range of an empty file can be had
                    return b"", 0
                raise

    def put(self, key: str, data: bytes) -> None:
        """See `Store.replace`."""
        import obstore

        with self._told(key, "written"):
            obstore.put(self._store, key, data)

    def create(self, key: str, data: bytes) -> None:
        """See `Store.create`."""
        import obstore

        writer = os.urandom(16).hex()
        while True:
            try:
                with self._told(key, "written"):
                    obstore.put(self._store, key, data, mode="create", attributes={_WRITER: writer})
                return
            except (FileExistsError, Unavailable) as error:
                # Somebody else did; or we did, and the answer to it was lost.
                found = self._writer(key)
                if found == writer:
                    return
                if found is not None:
                    raise FileExistsError(f"{self.url}/{key} exists") from error
                if isinstance(error, Unavailable):
                    raise

    def upload(self, key: str, file: Path) -> None:
        """See `Store.upload`."""
        import obstore

        with self._told(key, "written"):
            obstore.put(self._store, key, file, chunk_size=_UPLOAD_PIECE_BYTES)

    def stat(self, key: str) -> Stored:
        """See `Store.stat`."""
        import obstore

        with self._told(key, "read"):
            return _stored(obstore.head(self._store, key))

    def names(self, prefix: str) -> list[str]:
        """See `Objects.names`."""
        import obstore

        with self._told(prefix, "listed"):
            found = obstore.list_with_delimiter(self._store, prefix or None)
        keys = [each["path"] for each in found["objects"]] + list(found["common_prefixes"])
        return sorted(key.rstrip("/").rsplit("/", 1)[-1] for key in keys)

    def walk(self, prefix: str) -> Iterator[Stored]:
        """See `Objects.walk`."""
        import obstore

        with self._told(prefix, "listed"):
            for chunk in obstore.list(self._store, prefix or None):
                yield from map(_stored, chunk)

    def delete(self, keys: list[str]) -> None:
        """See `Objects.delete`."""
        import obstore

        for start in range(0, len(keys), _KEYS_AT_A_TIME):
            some = keys[start : start + _KEYS_AT_A_TIME]
            with contextlib.suppress(FileNotFoundError), self._told(some[0], "removed"):
                obstore.delete(self._store, some)

    def _writer(self, key: str) -> str | None:
        # Who wrote a file; None if it is not there.
        import obstore

        with contextlib.suppress(FileNotFoundError), self._told(key, "read"):
            return str(obstore.get(self._store, key).attributes.get(_WRITER, ""))
        return None

    @contextlib.contextmanager
    def _told(self, key: str, doing: str) -> Iterator[None]:
        from obstore import exceptions

        what = f"{self.url}/{key}"
        try:
            yield
        except (FileNotFoundError, exceptions.BaseError) as error:
            code = _code(error)
            if isinstance(error, exceptions.AlreadyExistsError):
                raise FileExistsError(f"{what} exists") from error
            if isinstance(error, FileNotFoundError | exceptions.NotFoundError) and code not in _NO_BUCKET:
                raise FileNotFoundError(f"{what} is not there") from error
            if code in _REFUSED:
                raise NotWritable(
                    f"{what} cannot be {doing}: the store refuses it ({code}); check the credentials in the "
                    f"environment, and what they allow"
                ) from error
            raise Unavailable(
                f"{what} cannot be {doing} now: {code or _reason(error)}; check the address and the network, then do "
                f"it again"
            ) from error


def _stored(meta: Any) -> Stored:
    return Stored(meta["path"], meta["size"], meta["last_modified"].timestamp())


def _code(error: Exception) -> str | None:
    found = re.search(r"<Code>(\w+)</Code>", str(error))
    return found[1] if found else None


def _reason(error: Exception) -> str:
    # Not the store's whole answer, which may name keys.
    return str(error).split("<", 1)[0].strip()[:300]
