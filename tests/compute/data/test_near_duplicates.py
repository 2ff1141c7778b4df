"""Near duplicates, against comparing everything with everything, and against sets of shingles."""

from __future__ import annotations

import io
import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_datasets import ingested
from make_pictures import saved, write
from PIL import Image, ImageDraw
from scipy.fft import dctn

from mms_sdk.compute.data import clean_table
from mms_sdk.compute.data.clean_table import ID
from mms_sdk.compute.data.kinds import image
from mms_sdk.compute.data.near_duplicates import Leaders, NearPictures, NearTexts, picture_hash, shingles, signature
from mms_sdk.compute.data.sources.rows import ROW, SOURCE
from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.cleaning import DropNearDuplicates


def _drawn(seed: int, side: int = 96) -> Image.Image:
    rng = random.Random(seed)
    picture = Image.new("RGB", (side, side), tuple(rng.randrange(256) for _ in range(3)))
    draw = ImageDraw.Draw(picture)
    for _ in range(12):
        x, y = rng.randrange(side), rng.randrange(side)
        shape = (x, y, x + rng.randrange(8, side), y + rng.randrange(8, side))
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(shape, tuple(rng.randrange(256) for _ in range(3)))
    return picture


def _hash(picture: Image.Image) -> int | None:
    return picture_hash(image.to_array(picture, color="gray"))


def _bits(one: int, other: int) -> int:
    return (one ^ other).bit_count()


def _led_by_brute_force(hashes: list[int], distance: int) -> list[int]:
    leaders: list[int] = []
    led = []
    for value in hashes:
        near = [number for number, leader in enumerate(leaders) if _bits(value, leader) <= distance]
        led.append(near[0] if near else len(leaders))
        leaders += [] if near else [value]
    return led


def test_a_hash_compares_the_lowest_frequencies_of_scipys_cosine_transform_with_their_median() -> None:
    for seed in range(20):
        grey = _drawn(seed).convert("L")
        small = np.asarray(grey.resize((32, 32), Image.Resampling.BILINEAR), np.float64)
        low = dctn(small, norm="ortho")[1:9, 1:9]
        bits = "".join("1" if value > np.median(low) else "0" for value in low.ravel())
        assert _hash(grey) == int(bits, 2)


def test_copies_that_were_scaled_compressed_or_lightened_are_near_and_other_pictures_are_far() -> None:
    originals = [_drawn(seed) for seed in range(40)]
    hashes = [_hash(picture) for picture in originals]
    for picture, looks in zip(originals, hashes, strict=True):
        jpeg = Image.open(io.BytesIO(saved(picture, "JPEG", quality=60)))
        small = picture.resize((64, 64), Image.Resampling.BICUBIC)
        light = Image.eval(picture, lambda value: value // 2 + 60)
        assert max(_bits(looks, _hash(copy)) for copy in (jpeg, small, light)) <= 4
    apart = [_bits(one, other) for at, one in enumerate(hashes) for other in hashes[:at]]
    assert min(apart) > 8


@pytest.mark.parametrize("shade", [0, 128, 255])
def test_a_picture_without_structure_looks_like_nothing(shade: int) -> None:
    assert picture_hash(np.full((9, 7, 1), shade, np.uint8)) is None


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), distance=st.integers(0, 11), cut=st.integers(1, 200))
def test_what_is_near_is_found_as_by_comparing_all_with_all_however_it_comes(
    seed: int, distance: int, cut: int
) -> None:
    rng = random.Random(seed)
    hashes = [rng.getrandbits(64) for _ in range(40)]
    while len(hashes) < 300:
        near = rng.choice(hashes)
        for bit in rng.sample(range(64), rng.randrange(0, 14)):
            near ^= 1 << bit
        hashes.append(near)
    leaders = Leaders(NearPictures(distance))
    values = np.array(hashes, np.uint64)
    led = np.concatenate([leaders.place(values[start : start + cut]) for start in range(0, len(values), cut)])
    assert led.tolist() == _led_by_brute_force(hashes, distance)


def _shingles(text: str) -> set[str]:
    plain = " ".join(text.casefold().split())
    return {plain[at : at + 5] for at in range(max(1, len(plain) - 4))}


def _jaccard(one: str, other: str) -> float:
    a, b = _shingles(one), _shingles(other)
    return len(a & b) / len(a | b)


def _texts(seed: int, count: int = 150) -> list[str]:
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghiklmnopqrstuvwyz", k=rng.randrange(2, 9))) for _ in range(400)]
    texts = [" ".join(rng.choices(words, k=rng.randrange(20, 60))) for _ in range(count // 3)]
    while len(texts) < count:
        changed = rng.choice(texts).split()
        for _ in range(rng.randrange(0, 12)):
            changed[rng.randrange(len(changed))] = rng.choice(words)
        texts.append(" ".join(changed))
    return texts


@pytest.mark.parametrize(
    "text", ["", "a", "abcd", "abcde", "Ein Bär  isst\nHonig, ein Bär isst Honig", "漢字かな交じり文"]
)
def test_shingles_are_the_runs_of_five_characters_each_once(text: str) -> None:
    assert len(shingles(text)) == len(_shingles(text) - {""})
    assert np.array_equal(shingles(text), shingles(f"  {text.upper()} "))


def test_signatures_agree_in_the_share_of_shingles_that_texts_have_in_common() -> None:
    texts = _texts(1)
    signatures = [signature(text) for text in texts]
    errors = [
        np.mean(signatures[a] == signatures[b]) - _jaccard(texts[a], texts[b]) for a in range(100) for b in range(a)
    ]
    assert abs(np.mean(errors)) < 0.003
    assert max(map(abs, errors)) < 0.2


def test_the_same_text_has_the_same_signature_for_ever() -> None:
    assert signature("The quick brown fox jumps over the lazy dog")[:3].tolist() == _BY_HAND


def _by_hand(text: str, order: int) -> int:
    # The same arithmetic on Python's own numbers.
    wrap = 2**64 - 1

    def mixed(value: int) -> int:
        value = value + 0x9E3779B97F4A7C15 & wrap
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & wrap
        value = (value ^ value >> 27) * 0x94D049BB133111EB & wrap
        return value ^ value >> 31

    factor = mixed((order + 1) * 0x9E3779B97F4A7C15 & wrap) | 1
    term = mixed((order + 129) * 0x9E3779B97F4A7C15 & wrap)
    least = 2**32
    for at in range(len(text) - 4):
        value = 0
        for character in text[at : at + 5]:
            value = mixed(value + ord(character) + 1 & wrap)
        least = min(least, (value * factor + term & wrap) >> 32)
    return least


_BY_HAND = [_by_hand("the quick brown fox jumps over the lazy dog", order) for order in range(3)]


@pytest.mark.parametrize("similarity", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("seed", range(3))
def test_texts_that_are_plainly_near_go_and_plainly_other_ones_stay(similarity: float, seed: int) -> None:
    texts = _texts(seed)
    leaders = Leaders(NearTexts(similarity))
    led = leaders.place(np.array([signature(text) for text in texts])).tolist()
    first = {leader: led.index(leader) for leader in set(led)}
    for at, leader in enumerate(led):
        before = [_jaccard(texts[at], texts[place]) for place in first.values() if place < at]
        if first[leader] == at:
            assert max(before, default=0) < similarity + 0.15
        else:
            assert _jaccard(texts[at], texts[first[leader]]) > similarity - 0.15
    assert 0 < len(first) < len(texts)


def test_bands_find_as_many_pairs_as_comparing_all_signatures() -> None:
    for similarity in (0.3, 0.6, 0.8, 0.9, 1.0):
        signatures = np.array([signature(text) for text in _texts(7, 300)])
        kept: list[int] = []
        for at, one in enumerate(signatures):
            if not any(np.count_nonzero(one == signatures[other]) >= np.ceil(similarity * 128) for other in kept):
                kept.append(at)
        leaders = Leaders(NearTexts(similarity))
        led = leaders.place(signatures)
        assert [int(np.flatnonzero(led == number)[0]) for number in range(leaders.count)] == kept


def _near_rows(texts: list, step: DropNearDuplicates) -> tuple[list, list[tuple[str, str]]]:
    batch = pa.record_batch(
        {
            "text": pa.array(texts, pa.string()),
            SOURCE: pa.array(["t"] * len(texts)),
            ROW: pa.array(range(1, len(texts) + 1)),
            ID: pa.array([bytes(16)] * len(texts), pa.binary(16)),
        }
    )
    batches = [batch.slice(start, 2) for start in range(0, len(texts), 2)]
    fitted = clean_table.fit([step], lambda: iter(batches))
    found = list(clean_table.through(fitted, batches))
    kept = [text for each, _ in found for text in each.column("text").to_pylist()]
    return kept, [(reject.source, reject.reason) for _, dropped in found for _, reject in dropped]


def test_rows_whose_text_reads_nearly_like_an_earlier_one_go_and_name_it() -> None:
    long = "It was the best of times, it was the worst of times, it was the age of wisdom"
    texts = [long, None, "another", long.upper() + "!", None, "", "", "another "]
    kept, rejects = _near_rows(texts, DropNearDuplicates("text"))
    assert kept == [long, None, "another", None, "", ""]
    assert rejects == [
        ("t, row 4", "text reads nearly like t, row 1"),
        ("t, row 8", "text reads nearly like t, row 3"),
    ]


def test_near_texts_are_looked_for_in_a_column_of_text() -> None:
    with pytest.raises(InvalidRequest, match=r"column that is there: \['text'\]; got 'other'"):
        _near_rows(["a"], DropNearDuplicates("other"))
    with pytest.raises(InvalidRequest, match="by a column of text; got none; name one, and similarity="):
        _near_rows(["a"], DropNearDuplicates(distance=3))


@pytest.mark.parametrize("fields", [{"similarity": 0.5}, {"column": "text", "distance": 3}, {"distance": None}])
def test_a_step_is_for_pictures_or_for_a_column_of_text(fields: dict) -> None:
    with pytest.raises(InvalidRequest, match="pictures are near by distance=, and texts of a column by similarity="):
        DropNearDuplicates(**fields)


def test_a_step_says_its_default_and_reads_back() -> None:
    for step in (DropNearDuplicates(), DropNearDuplicates("text"), DropNearDuplicates(distance=0)):
        assert DropNearDuplicates.model_validate(step.model_dump(mode="json")) == step
    assert (DropNearDuplicates().distance, DropNearDuplicates("text").similarity) == (4, 0.8)


@pytest.mark.parametrize("side", [48, 300])  # stored decoded, and as the bytes of the files
def test_pictures_that_look_like_one_of_the_folder_or_of_the_dataset_go(tmp_path, side: int) -> None:
    for number in range(4):
        write(tmp_path / "photos" / "a" / f"{number}.png", saved(_drawn(number, side)))
    write(tmp_path / "photos" / "a" / "5.png", saved(_drawn(2, side).convert("L").convert("RGB"), "JPEG", quality=70))
    step = DropNearDuplicates(distance=4)
    _, snapshot, report = ingested(tmp_path, tmp_path / "photos", clean=[step])
    assert (snapshot.rows, report.steps[0].dropped) == (4, 1)
    assert report.steps[0].examples[0].model_dump() == {"source": "a/5.png", "reason": "it looks like a/2.png"}

    again = saved(_drawn(1, side), "JPEG", quality=80)
    write(tmp_path / "photos" / "a" / "6.png", again)
    write(tmp_path / "photos" / "a" / "7.png", saved(_drawn(99, side)))
    _, snapshot, report = ingested(tmp_path, tmp_path / "photos", clean=[step])
    assert snapshot.rows == 5
    assert [example.reason for example in report.steps[0].examples] == [
        "it looks like a/2.png, which is in the dataset",
        "it looks like a/1.png, which is in the dataset",
    ]
