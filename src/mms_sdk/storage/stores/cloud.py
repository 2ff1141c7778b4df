"""S3 and what speaks it, Google Cloud Storage and Azure, through obstore."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from mms_sdk.errors import MissingExtra, NotWritable, Unavailable
from mms_sdk.storage.stores.base import Stored

_Answer = TypeVar("_Answer")
_WRITER = "mms-writer"
_UPLOAD_PIECE_BYTES = 16 * 2**20
_KEYS_AT_A_TIME = 1000
_REFUSED = (
    *("NoSuchBucket", "ContainerNotFound", "AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId"),
    *("ExpiredToken", "AuthenticationFailed"),
)
_NO_RANGE = re.compile(r"\b416\b")
# Long enough to live through a gateway that restarts, short enough to say so while somebody is still waiting.
_WITHIN_S = 60.0
_RETRIES = {"max_retries": 3, "retry_timeout": timedelta(seconds=30)}
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

        def asked() -> tuple[bytes, int]:
            try:
                found = obstore.get(self._store, key, options={"range": (start, end)})
                return bytes(found.bytes()), int(found.meta["size"])
            except obstore.exceptions.GenericError as error:
                if _NO_RANGE.search(str(error)):  # an empty file has none
                    return b"", 0
                raise

        return self._tried(asked, key, "read")

    def put(self, key: str, data: bytes) -> None:
        """See `Store.replace`."""
        import obstore

        self._tried(lambda: obstore.put(self._store, key, data), key, "written")

    def create(self, key: str, data: bytes) -> None:
        """See `Store.create`."""
        import obstore

        writer = os.urandom(16).hex()

        def asked() -> None:
            try:
                with self._told(key, "written"):
                    obstore.put(self._store, key, data, mode="create", attributes={_WRITER: writer})
            except (FileExistsError, Unavailable) as error:
                # Somebody else did; or we did, and the answer to it was lost.
                found = self._writer(key)
                if found == writer:
                    return
                if found is not None:
                    raise FileExistsError(f"{self.url}/{key} exists") from error
                raise Unavailable(f"{self.url}/{key} was not written: {error}") from error

        self._tried(asked, key, "written")

    def upload(self, key: str, file: Path) -> None:
        """See `Store.upload`."""
        import obstore

        self._tried(lambda: obstore.put(self._store, key, file, chunk_size=_UPLOAD_PIECE_BYTES), key, "written")

    def stat(self, key: str) -> Stored:
        """See `Store.stat`."""
        import obstore

        return self._tried(lambda: _stored(obstore.head(self._store, key)), key, "read")

    def names(self, prefix: str) -> list[str]:
        """See `Objects.names`."""
        import obstore

        found = self._tried(lambda: obstore.list_with_delimiter(self._store, prefix or None), prefix, "listed")
        keys = [each["path"] for each in found["objects"]] + list(found["common_prefixes"])
        return sorted(key.rstrip("/").rsplit("/", 1)[-1] for key in keys)

    def walk(self, prefix: str) -> Iterator[Stored]:
        """See `Objects.walk`."""
        import obstore

        found = self._tried(lambda: obstore.list(self._store, prefix or None).collect(), prefix, "listed")
        yield from map(_stored, found)

    def delete(self, keys: list[str]) -> None:
        """See `Objects.delete`."""
        import obstore

        for start in range(0, len(keys), _KEYS_AT_A_TIME):
            some = keys[start : start + _KEYS_AT_A_TIME]
            with contextlib.suppress(FileNotFoundError):
                self._tried(partial(obstore.delete, self._store, some), some[0], "removed")

    def _writer(self, key: str) -> str | None:
        # Who wrote a file; None if it is not there.
        import obstore

        def asked() -> str:
            return str(obstore.get(self._store, key).attributes.get(_WRITER, ""))

        with contextlib.suppress(FileNotFoundError):
            return self._tried(asked, key, "read")
        return None

    def _tried(self, asked: Callable[[], _Answer], key: str, doing: str) -> _Answer:
        # All of these can be done twice. obstore does what was not answered again, but not what was answered in part.
        until, wait_s = time.monotonic() + _WITHIN_S, 0.1
        while True:
            try:
                with self._told(key, doing):
                    return asked()
            except Unavailable:
                if time.monotonic() + wait_s > until:
                    raise
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, 5.0)

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
            if code in _REFUSED:
                raise NotWritable(
                    f"{what} cannot be {doing}: the store says {code}; check the URL, the credentials in the "
                    f"environment, and what they allow"
                ) from error
            if isinstance(error, FileNotFoundError | exceptions.NotFoundError):
                raise FileNotFoundError(f"{what} is not there") from error
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
    # Not the store's whole answer, which may name keys, nor what led to what in obstore.
    return str(error).split("\n", 1)[0].split("<", 1)[0].strip()[:300]
