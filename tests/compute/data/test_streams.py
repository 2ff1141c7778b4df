"""The rules of streams, on a list of records and on what an iterator is made into."""

from __future__ import annotations

import asyncio

import pytest
from small_streams import Listed, numbers

from mms_sdk.compute.data.streams import Record, as_stream
from mms_sdk.errors import Conflict, InvalidRequest
from mms_sdk.testing.streams import StreamConformance


class TestListed(StreamConformance):
    count = 9
    quiet_s = 0.2

    @pytest.fixture(params=["ends", "waits"])
    def stream(self, request):
        return Listed([*numbers(8), {"number": 3}], end=request.param)


class TestRenamed(StreamConformance):
    quiet_s = 0.2

    @pytest.fixture
    def stream(self):
        return as_stream(Listed(numbers(5)), name="another")


class _Repeats(Listed):
    async def records(self, after):
        async for record in super().records(None if after is None else {"next": max(0, after["next"] - 1)}):
            yield record


class _Skips(Listed):
    async def records(self, after):
        async for record in super().records(after):
            if after is None or record.position["next"] != after["next"] + 1:
                yield record


@pytest.mark.parametrize("broken", [_Repeats, _Skips])
def test_the_conformance_class_finds_a_stream_that_repeats_or_leaves_out_a_record(broken) -> None:
    with pytest.raises(AssertionError):
        StreamConformance().test_behind_each_position_come_the_others(broken(numbers(5)))


class _Generated:
    def __init__(self, items):
        self._items = iter(items)

    def __aiter__(self):
        return self

    async def __anext__(self):
        for item in self._items:
            return item
        raise StopAsyncIteration


async def _all(stream) -> list[Record]:
    return [record async for record in stream.records(None)]


def test_an_iterator_gives_mappings_pairs_or_records() -> None:
    items = [{"x": 1}, (7, {"x": 2}), Record("a", {"x": 3}, "third"), [1, 2, 3], "text", None]

    stream = as_stream(_Generated(items), name="mine")
    found = asyncio.run(_all(stream))

    assert stream.name == "mine"
    assert found[:3] == [(None, {"x": 1}, "", ""), (7, {"x": 2}, "", ""), ("a", {"x": 3}, "third", "")]
    assert [record.values for record in found[3:]] == [None, None, None]
    assert [record.reason for record in found[3:]] == [
        f"a record is a mapping of values by column; got {kind}" for kind in ("list", "str", "NoneType")
    ]
    with pytest.raises(Conflict, match="one follower at a time takes the records of an iterator"):
        asyncio.run(_all(stream))


@pytest.mark.parametrize("given", [[{"x": 1}], iter([]), "topic", None, print, Listed])
def test_what_is_no_stream_is_refused(given) -> None:
    with pytest.raises(InvalidRequest, match=r"a stream has a name and records\(after\), or is an async iterator"):
        as_stream(given)


@pytest.mark.parametrize("name", ["", "x" * 301, "a\nb", "\udc80"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="a stream's name has 1 to 300 printable characters"):
        as_stream(_Generated([]), name=name)
