"""Streams for tests, whose records are known."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mms_sdk.compute.data.streams import Record
from mms_sdk.schema.dataset import Column, Position

NUMBER = Column(name="number", kind="number", dtype="int64")


@dataclass
class Listed:
    """The items of a list, each with its number as position; it ends, fails, or waits for ever behind the last.

    Attributes:
        items: Values of the records.
        name: The stream's.
        end: What comes behind the last.
        given: Positions that records were given with, in order, over all calls.
    """

    items: Sequence[Any]
    name: str = "list"
    end: str = "ends"
    given: list[int] = field(default_factory=list)

    async def records(self, after: Position) -> AsyncGenerator[Record, None]:
        begin = 0 if after is None else after["next"]
        for number in range(begin, len(self.items)):
            self.given.append(number)
            yield Record({"next": number + 1}, self.items[number], f"item {number}")
        if self.end == "fails":
            raise OSError("the source is gone")
        if self.end == "waits":
            await asyncio.Event().wait()


def numbers(count: int, *, begin: int = 0) -> list[dict[str, int]]:
    """Records with one number each."""
    return [{"number": number} for number in range(begin, begin + count)]
