from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from mms_sdk.storage.ids import new_id, now


def test_ids_are_26_characters_of_crockfords_base_32_and_never_the_same() -> None:
    made = [new_id() for _ in range(2000)]

    assert all(re.fullmatch("[0-7][0-9A-HJKMNP-TV-Z]{25}", one) for one in made)
    assert len(set(made)) == 2000


def test_ids_sort_by_the_millisecond_they_were_made_in() -> None:
    made = []
    for _ in range(20):
        made.append(new_id())
        time.sleep(0.002)

    assert made == sorted(made)


def test_an_id_begins_with_the_time_in_milliseconds() -> None:
    alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
    before = time.time_ns() // 1_000_000
    milliseconds = 0
    for letter in new_id()[:10]:
        milliseconds = milliseconds * 32 + alphabet.index(letter)

    assert before <= milliseconds <= time.time_ns() // 1_000_000


def test_the_time_is_iso_8601_in_utc_with_milliseconds() -> None:
    told = now()

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", told)
    assert abs(datetime.fromisoformat(told) - datetime.now(UTC)) < timedelta(seconds=5)


def test_ids_made_in_one_process_are_in_order_even_within_a_millisecond() -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: [new_id() for _ in range(500)], range(4)))

    assert all(ids == sorted(ids) for ids in made)
    assert len({each for ids in made for each in ids}) == 2000
