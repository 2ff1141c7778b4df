from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mms_sdk.compute.data.split import place, place_by_content
from mms_sdk.errors import DataError
from mms_sdk.schema.dataset import SPLITS
from mms_sdk.schema.specs import Split

LABELS = ("cat", "dog", "eel")
FRACTIONS = st.sampled_from(
    [(0.8, 0.1, 0.1), (0.6, 0.2, 0.2), (0.7, 0.3, 0.0), (0.5, 0.0, 0.5), (0.98, 0.01, 0.01), (1.0, 0.0, 0.0)]
)


def ids_of(rows: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, 16), np.uint8)


def rule(fractions: tuple[float, float, float], seed: int = 0) -> Split:
    train, val, test = fractions
    return Split(train=train, val=val, test=test, seed=seed)


def counts(codes: np.ndarray) -> dict[str, int]:
    return {SPLITS[code]: int(count) for code, count in Counter(codes.tolist()).items()}


def largest_remainder(total: int, split: Split) -> dict[str, int]:
    """Hamilton's method in exact fractions; ties go to the split named first."""
    exact = {name: Fraction(str(share)) * total for name, share in split.fractions.items()}
    seats = {name: int(share) for name, share in exact.items()}
    ranked = sorted(exact, key=lambda name: (-(exact[name] - seats[name]), SPLITS.index(name)))
    for name in ranked[: total - sum(seats.values())]:
        seats[name] += 1
    return seats


@given(total=st.integers(1, 600), fractions=FRACTIONS, seed=st.integers(0, 5))
@settings(max_examples=200)
def test_a_class_is_dealt_by_largest_remainders(total: int, fractions: tuple[float, float, float], seed: int) -> None:
    split = rule(fractions, seed)
    expected = largest_remainder(total, split)
    if min(Fraction(str(share)) * total for share in split.fractions.values()) < 1:
        return  # too few rows for the fractions alone; what holds then has a test of its own

    codes = place(ids_of(total, seed=seed), np.zeros(total, int), split=split, before={}, labels=LABELS)

    assert counts(codes) == expected


@given(total=st.integers(3, 60), fractions=FRACTIONS)
@settings(max_examples=100)
def test_no_split_of_a_small_class_is_empty_and_the_rest_is_trained_on(
    total: int, fractions: tuple[float, float, float]
) -> None:
    split = rule(fractions)

    found = counts(place(ids_of(total), np.zeros(total, int), split=split, before={}, labels=LABELS))

    assert set(found) == set(split.fractions)
    assert sum(found.values()) == total
    for name, share in split.fractions.items():
        assert max(1, int(share * total) - 2) <= found[name] <= max(1, int(share * total + 1))


@given(sizes=st.lists(st.integers(10, 80), min_size=1, max_size=3), shuffle=st.integers(0, 99), seed=st.integers(0, 3))
@settings(max_examples=60)
def test_where_a_row_goes_depends_on_its_content_and_not_on_the_order_of_the_files(
    sizes: list[int], shuffle: int, seed: int
) -> None:
    classes = np.repeat(np.arange(len(sizes)), sizes)
    ids = ids_of(len(classes), seed=7)
    order = np.random.default_rng(shuffle).permutation(len(classes))
    split = Split(seed=seed)

    straight = place(ids, classes, split=split, before={}, labels=LABELS)
    shuffled = place(ids[order], classes[order], split=split, before={}, labels=LABELS)

    np.testing.assert_array_equal(shuffled, straight[order])


def test_every_class_keeps_the_fractions(tmp_path: object) -> None:
    classes = np.repeat([0, 1, 2], [100, 40, 10])

    codes = place(ids_of(150), classes, split=Split(), before={}, labels=LABELS)

    for code, (train, val, test) in enumerate([(80, 10, 10), (32, 4, 4), (8, 1, 1)]):
        assert counts(codes[classes == code]) == {"train": train, "val": val, "test": test}


def test_another_seed_is_another_placement_and_each_row_may_go_anywhere() -> None:
    ids = ids_of(50)
    placements = [
        place(ids, np.zeros(50, int), split=Split(train=0.5, val=0.3, test=0.2, seed=seed), before={}, labels=LABELS)
        for seed in range(400)
    ]

    assert len({tuple(codes) for codes in placements}) == 400
    share = np.mean([[codes == code for code in range(3)] for codes in placements], axis=0)  # (split, row)
    for code, expected in enumerate((0.5, 0.3, 0.2)):
        assert np.abs(share[code] - expected).max() < 5 * (expected * (1 - expected) / 400) ** 0.5


@given(
    before=st.integers(3, 60), added=st.integers(0, 60), fractions=st.sampled_from([(0.8, 0.1, 0.1), (0.6, 0.2, 0.2)])
)
@settings(max_examples=100)
def test_rows_that_are_added_bring_the_class_back_to_its_fractions(
    before: int, added: int, fractions: tuple[float, float, float]
) -> None:
    split = rule(fractions)
    held = counts(place(ids_of(before), np.zeros(before, int), split=split, before={}, labels=LABELS))

    codes = place(ids_of(added, seed=1), np.zeros(added, int), split=split, before={0: held}, labels=LABELS)

    whole = Counter(held) + Counter(counts(codes))
    expected = counts(
        place(ids_of(before + added), np.zeros(before + added, int), split=split, before={}, labels=LABELS)
    )
    assert sum(whole.values()) == before + added
    assert all(abs(whole[name] - expected[name]) <= 1 for name in split.fractions)


def test_a_class_that_holds_more_of_a_split_than_its_share_gets_rows_for_the_others() -> None:
    codes = place(
        ids_of(10), np.zeros(10, int), split=Split(), before={0: {"train": 20, "val": 20, "test": 0}}, labels=LABELS
    )

    assert counts(codes) == {"train": 8, "test": 2}  # 20 and 5 are missing


@pytest.mark.parametrize("rows", [1, 2])
def test_a_class_with_fewer_rows_than_splits_is_refused_with_its_name_and_what_to_do(rows: int) -> None:
    classes = np.array([0] * 10 + [1] * rows)

    with pytest.raises(DataError, match=rf"class 'dog' has {rows} in all; add rows to it, remove it, or split into"):
        place(ids_of(len(classes)), classes, split=Split(), before={}, labels=LABELS)


def test_a_small_class_is_helped_by_the_rows_it_has_already() -> None:
    before = {0: {"train": 1, "val": 1}}

    codes = place(ids_of(1), np.zeros(1, int), split=Split(), before=before, labels=LABELS)

    assert counts(codes) == {"test": 1}


def test_no_rows_are_placed_nowhere() -> None:
    assert len(place(ids_of(0), np.zeros(0, int), split=Split(), before={}, labels=LABELS)) == 0


@pytest.mark.parametrize(
    "fractions", [(0.8, 0.1, 0.2), (0.5, 0.1, 0.1), (0.0, 0.5, 0.5), (-0.1, 0.6, 0.5), (1.1, 0, 0)]
)
def test_fractions_that_do_not_add_up_are_refused(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match=r"add up to 1|it is above 0|it is at most 1"):
        rule(fractions)


@given(fractions=FRACTIONS, seed=st.integers(0, 5), order=st.permutations(range(12)))
def test_by_content_a_row_has_its_place_whatever_comes_with_it(
    fractions: tuple[float, float, float], seed: int, order: list[int]
) -> None:
    ids, split = ids_of(12, seed=seed), rule(fractions, seed)
    together = place_by_content(ids, split=split)

    np.testing.assert_array_equal(place_by_content(ids[order], split=split), together[order])
    for row in range(12):
        assert place_by_content(ids[row : row + 1], split=split)[0] == together[row]
    assert place_by_content(ids[:0], split=split).shape == (0,)


@pytest.mark.parametrize("fractions", [(0.8, 0.1, 0.1), (0.7, 0.3, 0.0), (0.5, 0.0, 0.5), (1.0, 0.0, 0.0)])
@pytest.mark.parametrize("seed", [0, 1])
def test_by_content_the_fractions_hold_on_average(fractions: tuple[float, float, float], seed: int) -> None:
    rows = 40_000
    found = counts(place_by_content(ids_of(rows), split=rule(fractions, seed)))

    for name, share in zip(SPLITS, fractions, strict=True):  # within five standard deviations of a binomial
        assert abs(found.get(name, 0) - rows * share) <= 5 * (rows * share * (1 - share)) ** 0.5


def test_by_content_a_class_may_have_one_row_and_a_place_depends_on_nothing_else() -> None:
    ids, by_content = ids_of(300), Split(by="content", seed=5)
    codes = place(ids, np.arange(300), split=by_content, before={}, labels=[str(number) for number in range(300)])
    np.testing.assert_array_equal(codes, place_by_content(ids, split=by_content))
    alone = place(ids[7:8], np.zeros(1, int), split=by_content, before={0: {"train": 9}}, labels=LABELS)
    assert alone.tolist() == codes[7:8].tolist()
