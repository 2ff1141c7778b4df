"""Tables on a terminal: they fit its lines, whatever is in them."""

from __future__ import annotations

import random

import pytest
from rich.cells import cell_len

from mms_sdk import told
from mms_sdk.client.tables import aligned, pairs, wrapped
from mms_sdk.told import on_one_line

WORDS = ("a", "東京都千代田区", "ünïcödé", "x" * 300, "two words", "", "\x1b[31mred\n", "👩‍🔬🎉", "‮right to left")


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("columns", [1, 3, 60])
def test_no_line_is_longer_than_the_terminal(width: int, columns: int) -> None:
    draw = random.Random(columns)
    rows = [{f"column_{at}": draw.choice(WORDS) for at in range(columns)} for _ in range(20)]
    lines = aligned(rows, width=width).split("\n")
    assert max(map(cell_len, lines)) <= width
    assert all(line.isprintable() for line in lines)


def test_numbers_are_never_cut_and_columns_without_room_are_named() -> None:
    rows = [{"name": "n" * 60, "bytes": 123_456_789_012, "note": "m" * 60, "last": 1.5}]
    header, line, rest = aligned(rows, width=40).split("\n")
    assert (header.split(), line.split()) == (["name", "bytes"], [f"{'n' * 25}…", "123456789012"])
    assert rest == "and 2 columns more: note, last"


def test_without_a_width_nothing_is_cut() -> None:
    rows = [{"name": "n" * 600, "at": 1}, {"name": "m", "at": 22}]
    header, first, second = aligned(rows).split("\n")
    assert first == f"{'n' * 600}   1"
    assert (header.split(), second.split()) == (["name", "at"], ["m", "22"])


def test_what_a_terminal_would_obey_is_spelled_out() -> None:
    assert on_one_line("a\x1b[2Jb\nc\t\udcff‮") == "a\\x1b[2Jb\\nc\\t\\udcff\\u202e"


def test_numbers_stand_to_the_right_also_beside_those_that_are_missing() -> None:
    assert aligned([{"n": 1}, {"n": None}, {"n": 300}]).split("\n") == ["  n", "  1", "  –", "300"]


def test_long_values_go_on_below_themselves() -> None:
    shown = pairs({"message": "one two three four five six", "n": "x" * 40, "empty": ""}, width=24)
    assert shown.split("\n") == [
        "message  one two three",
        "         four five six",
        f"n        {'x' * 15}",
        f"         {'x' * 15}",
        f"         {'x' * 10}",
        "empty",
    ]
    assert pairs({}) == ""


@pytest.mark.parametrize("text", WORDS)
def test_wrapping_loses_nothing(text: str) -> None:
    lines = wrapped(text * 3, 13)
    assert all(cell_len(line) <= 13 for line in lines)
    assert "".join(lines).replace(" ", "") == (text * 3).replace(" ", "")


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1,023 bytes"),
        (1024, "1.0 KiB"),
        (1024**2 - 1, "1,024.0 KiB"),
        (3 * 2**29, "1.5 GiB"),
        (2**63, "8,192.0 PiB"),
    ],
)
def test_sizes_are_told_in_the_unit_that_suits_them(size: int, words: str) -> None:
    assert told.size(size) == words


def test_numbers_are_told_in_six_digits() -> None:
    assert [told.number(value) for value in (1234567, 0.1 + 0.2, 2.0, 1e300, float("nan"), -5)] == [
        "1,234,567",
        "0.3",
        "2",
        "1e+300",
        "nan",
        "-5",
    ]
    assert [told.counted(number, noun) for number, noun in ((1, "class"), (2, "class"), (0, "row"))] == [
        "1 class",
        "2 classes",
        "0 rows",
    ]
