"""What holds for every stream: subclass `StreamConformance` and give it one that has some records.

```python
class TestMyStream(StreamConformance):
    @pytest.fixture
    def stream(self):
        return MyStream(...)  # with `count` records, at least five
```
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter

from mms_sdk.compute.data.streams import Record, Stream
from mms_sdk.schema.dataset import Position
from mms_sdk.storage.datasets import MAX_POSITION_BYTES

_WITHIN_S = 30.0
_HELD_UP_S = 0.5


class StreamConformance:
    """Tests of the rules of `Stream`, on one with `count` records that the fixture `stream` gives.

    Attributes:
        count: How many it has; at least five.
        quiet_s: If none comes for so long, there are no more for now.
    """

    count = 5
    quiet_s = 1.0

    def test_it_is_a_stream(self, stream: Stream) -> None:
        """With a name that stays."""
        assert isinstance(stream, Stream)
        assert stream.name == stream.name
        assert 1 <= len(stream.name) <= 300
        assert stream.name.isprintable()

    def test_all_records_come_once(self, stream: Stream) -> None:
        """Each time."""
        first, again = (_read(stream, None, self.count, quiet_s=self.quiet_s) for _ in range(2))
        assert len(first) == self.count
        assert _values(first) == _values(again)

    def test_behind_each_position_come_the_others(self, stream: Stream) -> None:
        """None lost and none twice, and as often as it is asked for."""
        records = _read(stream, None, self.count)
        for number, record in enumerate(records, 1):
            quiet_s = self.quiet_s if number == self.count else 0.0
            rest = _read(stream, record.position, self.count - number, quiet_s=quiet_s)
            assert _values([*records[:number], *rest]) == _values(records)

    def test_a_position_behind_a_position_goes_on_from_there(self, stream: Stream) -> None:
        """As after two stops."""
        some = _read(stream, None, 2)
        more = _read(stream, some[-1].position, 2)
        rest = _read(stream, more[-1].position, self.count - 4)
        assert _values([*some, *more, *rest]) == _values(_read(stream, None, self.count))

    def test_positions_are_small_json(self, stream: Stream) -> None:
        """Which comes back as it was."""
        for record in _read(stream, None, self.count):
            assert record.position is not None
            told = json.dumps(record.position)
            assert json.loads(told) == record.position
            assert len(told) <= MAX_POSITION_BYTES

    def test_a_record_has_values_or_a_reason(self, stream: Stream) -> None:
        """And is no surprise to whoever takes it."""
        for record in _read(stream, None, self.count):
            assert isinstance(record, Record)
            assert record.reason if record.values is None else hasattr(record.values, "keys")

    def test_waiting_holds_nobody_up(self, stream: Stream) -> None:
        """Other work of the event loop goes on."""

        async def pauses() -> float:
            loop, longest = asyncio.get_running_loop(), 0.0
            async with contextlib.aclosing(stream.records(None)) as records:
                reading = asyncio.create_task(_all_of(records))
                began = loop.time()
                while loop.time() - began < self.quiet_s:
                    before = loop.time()
                    await asyncio.sleep(0.01)
                    longest = max(longest, loop.time() - before)
                reading.cancel()
                await asyncio.wait([reading])
            return longest

        assert asyncio.run(pauses()) < _HELD_UP_S


def _read(stream: Stream, after: Position, count: int, *, quiet_s: float = 0.0) -> list[Record]:
    # With time for it, a stream that has one too many shows it.
    async def read() -> list[Record]:
        found: list[Record] = []
        async with contextlib.aclosing(stream.records(json.loads(json.dumps(after)))) as records:

            async def take(upto: int) -> None:
                while len(found) < upto:
                    found.append(await anext(records))

            with contextlib.suppress(StopAsyncIteration):
                await asyncio.wait_for(take(count), _WITHIN_S)
                if quiet_s:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(take(count + 1), quiet_s)
        return found

    return asyncio.run(read())


async def _all_of(records: object) -> None:
    async for _ in records:  # type: ignore[attr-defined]
        pass


def _values(records: list[Record]) -> Counter[str]:
    return Counter(repr((record.name, record.reason, record.values)) for record in records)
