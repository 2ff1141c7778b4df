"""Streams: records that arrive over time, each with the position behind it, so that the rest can be asked for later."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from mms_sdk.errors import Conflict, InvalidRequest
from mms_sdk.schema.dataset import Position

PLAIN = "records"
"""What a stream without a name is called."""


class Record(NamedTuple):
    """One record of a stream.

    Attributes:
        position: Behind it, as JSON: what is given to `Stream.records` to get all that is not counted in it. None where
            the source has no positions.
        values: Its values by column; None if it cannot be read.
        name: What people find it by, e.g. `partition 2, offset 17`; its position if left out.
        reason: Why it cannot be read.
    """

    position: Position
    values: Mapping[str, Any] | None
    name: str = ""
    reason: str = ""


@runtime_checkable
class Stream(Protocol):
    """Records that arrive over time.

    A class with these two is a stream; `mms_sdk.testing.streams.StreamConformance` tests the rules:

    - A position stands for every record that came up to it. `records(None)` gives all there are, and
      `records(position)`, in whichever process and however much later, the very same records but for those, each once.
      Between parts of a source that have no common order, theirs may differ from one time to the next.
    - A position is JSON other than null, comes back from JSON as it was, and takes at most 64 KiB.
    - A record that cannot be read is given with the reason instead of values. An error ends the stream.
    - It ends when there will be no more, or never. It waits without holding up the event loop, and reads ahead a
      bounded number of records at most.
    - `records` is called again and again, one call after the other; closing what it gave (`aclose`) lets go of whatever
      it holds. It notes nowhere by itself how far somebody got: the dataset does.
    """

    @property
    def name(self) -> str:
        """What its position is kept under in a dataset; the same whenever it is followed again."""

    def records(self, after: Position) -> AsyncGenerator[Record, None]:
        """The records that a position does not count in; all of them for None."""


class Iterated:
    """An async iterator as a stream, which can be gone through once. See `Stream`.

    Args:
        records: Gives mappings of values by column, or pairs of a position and such a mapping, or `Record`s.
        name: Its name.
    """

    def __init__(self, records: AsyncIterable[Any], name: str) -> None:
        self.name = name
        self._records: AsyncIterable[Any] | None = records

    async def records(self, after: Position) -> AsyncGenerator[Record, None]:
        """What the iterator gives, the first time."""
        if self._records is None:
            raise Conflict(
                f"one follower at a time takes the records of an iterator; another one of stream {self.name!r} was "
                f"first; begin again behind the position that the dataset has, or give a stream with records(after)"
            )
        records, self._records = self._records, None
        async for item in records:
            yield record_of(item)


def as_stream(given: Any, *, name: str | None = None) -> Stream:
    """What is followed, as a stream.

    Args:
        given: A stream, or an async iterator.
        name: Another name than its own.

    Raises:
        InvalidRequest: It is neither; or the name is no name.
    """
    if isinstance(given, Stream) and not isinstance(given, type):
        found = given if name is None or name == given.name else _Renamed(given, name)
    elif isinstance(given, AsyncIterable):
        found = Iterated(given, PLAIN if name is None else name)
    else:
        raise InvalidRequest(
            f"a stream has a name and records(after), or is an async iterator of mappings; got "
            f"{type(given).__name__}; what ends is ingested instead: ws.datasets.ingest()"
        )
    if not isinstance(found.name, str) or not 1 <= len(found.name) <= 300 or not found.name.isprintable():
        raise InvalidRequest(f"a stream's name has 1 to 300 printable characters; got {str(found.name)[:200]!r}")
    return found


def record_of(item: Any) -> Record:
    """What an iterator gave, as a record; one that says so if it is none."""
    if isinstance(item, Mapping):
        return Record(None, item)
    if isinstance(item, Record):
        return item
    if isinstance(item, tuple) and len(item) == 2:
        return Record(*item)
    return Record(None, None, reason=f"a record is a mapping of values by column; got {type(item).__name__}")


class _Renamed:
    def __init__(self, stream: Stream, name: str) -> None:
        self.name = name
        self.records = stream.records
