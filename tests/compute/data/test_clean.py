from __future__ import annotations

from pathlib import Path

import pytest

from mms_sdk.compute.data.clean import Looked, Present, apply, contradictions
from mms_sdk.compute.data.kinds.image import Facts
from mms_sdk.compute.data.sources.folders import FileEntry
from mms_sdk.schema.cleaning import DropDuplicates, DropOddSizes, DropUnreadable


def looked(source: str, content: str = "", *, size: tuple[int, int] | None = (4, 6), reason: str = "") -> Looked:
    return Looked(
        entry=FileEntry(path=Path(source), source=source, label=source.partition("/")[0]),
        id=content.encode(),
        facts=Facts(size=size, gray=False) if size else None,
        reason=reason,
    )


def sources(kept: list[Looked]) -> list[str]:
    return [item.entry.source for item in kept]


def test_files_that_do_not_decode_are_dropped_with_the_reason() -> None:
    kept, rejects = apply(
        DropUnreadable(), [looked("a/1"), looked("a/2", size=None, reason="it is empty"), looked("b/1")], Present()
    )

    assert sources(kept) == ["a/1", "b/1"]
    assert [(reject.source, reject.reason) for reject in rejects] == [("a/2", "it is empty")]


def test_of_equal_files_the_first_stays_also_across_classes() -> None:
    items = [looked("a/1", "x"), looked("a/2", "y"), looked("b/1", "x"), looked("b/2", "x")]

    kept, rejects = apply(DropDuplicates(), items, Present())

    assert sources(kept) == ["a/1", "a/2"]
    assert [(reject.source, reject.reason) for reject in rejects] == [
        ("b/1", "the same bytes as a/1"),
        ("b/2", "the same bytes as a/1"),
    ]


def test_what_the_dataset_holds_already_is_a_duplicate() -> None:
    kept, rejects = apply(DropDuplicates(), [looked("a/1", "x"), looked("a/2", "y")], Present(classes={b"x": "a"}))

    assert sources(kept) == ["a/2"]
    assert rejects[0].reason == "the same bytes are in the dataset already"


def test_files_that_could_not_be_read_are_nobodys_duplicates() -> None:
    items = [looked("a/1", size=None, reason="denied"), looked("a/2", size=None, reason="denied")]

    kept, rejects = apply(DropDuplicates(), items, Present())

    assert sources(kept) == ["a/1", "a/2"]
    assert rejects == []


def test_pictures_of_another_size_than_nearly_all_are_dropped() -> None:
    items = [looked(f"a/{number}") for number in range(95)] + [
        looked(f"b/{number}", size=(6, 4)) for number in range(5)
    ]

    kept, rejects = apply(DropOddSizes(), items, Present())

    assert len(kept) == 95
    assert rejects[0].reason == "it has 4×6 pixels, 95 of 100 have 6×4"  # width × height, as people say it


@pytest.mark.parametrize("odd", [6, 50])
def test_where_pictures_are_plainly_of_many_sizes_none_is_dropped(odd: int) -> None:
    items = [looked(f"a/{number}") for number in range(100 - odd)]
    items += [looked(f"b/{number}", size=(6, 4)) for number in range(odd)]

    kept, rejects = apply(DropOddSizes(), items, Present())

    assert len(kept) == 100
    assert rejects == []


def test_the_size_of_the_dataset_decides_where_there_is_one() -> None:
    items = [looked("a/1", size=(9, 9)), looked("a/2", size=(9, 9)), looked("a/3", size=(4, 6))]

    kept, rejects = apply(DropOddSizes(), items, Present(size=(4, 6)))

    assert sources(kept) == ["a/3"]
    assert len(rejects) == 2


@pytest.mark.parametrize("step", [DropUnreadable(), DropDuplicates(), DropOddSizes()])
def test_steps_leave_nothing_of_nothing_and_unreadable_files_to_the_step_for_them(step: object) -> None:
    assert apply(step, [], Present()) == ([], [])  # type: ignore[arg-type]
    if not isinstance(step, DropUnreadable):
        assert len(apply(step, [looked("a/1", size=None)], Present())[0]) == 1  # type: ignore[arg-type]


def test_a_picture_in_two_classes_is_a_contradiction_wherever_the_other_one_is() -> None:
    items = [looked("a/1", "x"), looked("b/1", "x"), looked("a/2", "y"), looked("b/2", "z"), looked("b/3", "z")]

    found = contradictions(items, Present(classes={b"y": "c", b"z": "b"}))

    assert [(each.source, each.reason) for each in found] == [
        ("b/1", "it is a/1 too"),
        ("a/2", "the dataset has it as 'c'"),
    ]


def test_files_that_could_not_be_read_contradict_nobody() -> None:
    items = [looked("a/1", size=None, reason="denied"), looked("b/1", size=None, reason="denied")]

    assert contradictions(items, Present()) == []
