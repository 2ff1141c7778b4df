"""Near duplicates: pictures that look the same and texts that read nearly the same, without comparing all with all.

Whatever comes is reduced to a few bytes, and those to keys of which two that are near share at least one. Only what
shares a key is compared. The first of those that are near one another stays and leads; what comes later and is near a
leader goes, so everything that goes is near something that stays.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from itertools import combinations
from typing import Any, Protocol

import numpy as np
from PIL import Image

from mms_sdk.types import Array, Rows

HASHES = 128
"""Numbers in a text's signature: the similarity of two is told with a standard error of at most 0.045."""
SHINGLE = 5
_SIDE, _LOW = 32, 8  # pixels a side that a picture is brought to, and coefficients a side that are looked at
_BANDS, _BAND_BITS = 4, 16
_MISSED = 1e-4  # chance at most that two texts of exactly the similarity asked for share no key
_BLOCK = 64
_NONE = np.iinfo(np.int64).max


class Form(Protocol):
    """What near means for one sort of things, each reduced to one row of an array."""

    def keys(self, values: Array) -> Array:
        """What they are found by, uint64, shape (rows, keys)."""

    def probes(self, values: Array) -> Array:
        """Where things near to them are looked for, uint64, shape (rows, probes): any of their keys will do."""

    def near(self, values: Array, others: Array) -> Array:
        """Whether each is near the other in the same row, bool, shape (rows,)."""


class Leaders:
    """Those of which none is near an earlier one.

    Args:
        form: What near means.
    """

    def __init__(self, form: Form) -> None:
        self.count = 0
        self._form = form
        self._index = _Index()
        self._values: Array | None = None

    def place(self, values: Array) -> Rows:
        """For each row the number of its leader, in row order: an earlier one that is near, or a new one, itself.

        Args:
            values: Rows as the form reduces things to.

        Returns:
            int64, shape (rows,). Leaders are numbered from 0 as they come; those from the old `count` on are new.
        """
        blocks = [self._place(values[start : start + _BLOCK]) for start in range(0, len(values), _BLOCK)]
        return np.concatenate([np.empty(0, np.int64), *blocks])

    def _place(self, values: Array) -> Rows:
        before = self._led(values)
        leaders = np.full(len(values), _NONE)
        asking, found = self._index.find(self._form.probes(values))
        near = self._form.near(values[asking], before[found])
        np.minimum.at(leaders, asking[near], found[near])
        fresh: list[int] = []
        for row in np.flatnonzero(leaders == _NONE).tolist():
            near_fresh = np.flatnonzero(self._form.near(values[fresh], values[[row] * len(fresh)]))
            leaders[row] = self.count + (int(near_fresh[0]) if len(near_fresh) else len(fresh))
            if not len(near_fresh):
                fresh.append(row)
        self._lead(values[fresh])
        return leaders

    def _led(self, values: Array) -> Array:
        if self._values is None:
            self._values = np.empty((_BLOCK, *values.shape[1:]), values.dtype)
        return self._values

    def _lead(self, values: Array) -> None:
        kept = self._led(values)
        end = self.count + len(values)
        if end > len(kept):
            kept = np.concatenate([kept, np.empty_like(kept)])
            self._values = kept
        kept[self.count : end] = values
        self._index.add(self._form.keys(values), np.arange(self.count, end))
        self.count = end


class NamedLeaders:
    """Leaders by name.

    Args:
        form: What near means.
        dtype: Of what things are reduced to.
    """

    def __init__(self, form: Form, dtype: str) -> None:
        self._leaders = Leaders(form)
        self._dtype = dtype
        self._names: list[str] = []

    def firsts(self, names: Sequence[str], values: Sequence[Any]) -> list[str | None]:
        """For each thing the name of the earlier one that it is near.

        Args:
            names: Of the things.
            values: What each is reduced to; None for one that is near nothing.

        Returns:
            Names; None for what stays.
        """
        at = [place for place, value in enumerate(values) if value is not None]
        firsts: list[str | None] = [None] * len(values)
        if not at:
            return firsts
        leaders = self._leaders.place(np.array([values[place] for place in at], self._dtype))
        for place, leader in zip(at, leaders.tolist(), strict=True):
            if leader == len(self._names):
                self._names.append(names[place])
            else:
                firsts[place] = self._names[leader]
        return firsts


class _Index:
    """Rows by their keys: sorted runs, each more than twice as long as the next, so that adding stays cheap."""

    def __init__(self) -> None:
        self._runs: list[tuple[Array, Array]] = []

    def add(self, keys: Array, rows: Rows) -> None:
        flat, owners = keys.ravel(), np.repeat(rows.astype(np.uint32), keys.shape[1])
        while self._runs and len(self._runs[-1][0]) <= 2 * len(flat):
            earlier, earlier_owners = self._runs.pop()
            flat, owners = np.concatenate([earlier, flat]), np.concatenate([earlier_owners, owners])
        order = np.argsort(flat, kind="stable")
        self._runs.append((flat[order], owners[order]))

    def find(self, probes: Array) -> tuple[Rows, Rows]:
        """Pairs: a row of the probes, and a row that has one of them as a key."""
        wanted = probes.ravel()
        asking, found = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for keys, rows in self._runs:
            start, end = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
            counts = end - start
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            asking.append(np.repeat(np.arange(len(wanted)) // probes.shape[1], counts))
            found.append(rows[np.repeat(start, counts) + within].astype(np.int64))
        return np.concatenate(asking), np.concatenate(found)


# Pictures ---------------------------------------------------------------------------------------------------------


def picture_hash(pixels: Array) -> int | None:
    """64 bits that stay nearly the same when a picture is scaled, compressed, or made lighter or darker.

    Brought to 32×32 grey values; of their discrete cosine transform the 8×8 coefficients of the lowest frequencies
    above the constant ones, each compared with their median (C. Zauner, Implementation and Benchmarking of Perceptual
    Image Hash Functions, 2010, section 3.2.1).

    Args:
        pixels: Grey values, uint8, shape (height, width, 1).

    Returns:
        The bits; None for a picture without structure, which looks like every other of those.
    """
    grey = Image.fromarray(pixels[:, :, 0])
    small = np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)).astype(np.float64)
    cosines = _cosines()
    # Rounded, since sums of another order on another machine must not turn a bit.
    coefficients = np.round(cosines @ small @ cosines.T, 6).ravel()
    if not coefficients.any():
        return None
    bits = coefficients > np.median(coefficients)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


@cache
def _cosines() -> Array:
    frequencies, places = np.arange(1, _LOW + 1)[:, None], np.arange(_SIDE)
    cosines: Array = np.sqrt(2 / _SIDE) * np.cos(np.pi * frequencies * (2 * places + 1) / (2 * _SIDE))
    return cosines


class NearPictures:
    """Hashes of pictures, uint64, shape (rows,), near if they differ in few bits. See `Form`.

    Of the four 16-bit quarters of two hashes at least one differs in no more than a quarter of the bits that all differ
    in, so that is how far around each quarter one looks (M. Norouzi, A. Punjani and D. Fleet, Fast Search in Hamming
    Space with Multi-Index Hashing, CVPR 2012).

    Args:
        distance: Bits.
    """

    def __init__(self, distance: int) -> None:
        self._distance = distance
        radius = distance // _BANDS
        flips = [
            sum(1 << bit for bit in bits) for n in range(radius + 1) for bits in combinations(range(_BAND_BITS), n)
        ]
        self._flips = np.array(flips, np.uint64)

    def keys(self, values: Array) -> Array:
        """The quarters, each with its number."""
        bands = np.arange(_BANDS, dtype=np.uint64)
        quarters = values[:, None] >> bands * np.uint64(_BAND_BITS) & np.uint64(2**_BAND_BITS - 1)
        keys: Array = quarters | bands << np.uint64(_BAND_BITS)
        return keys

    def probes(self, values: Array) -> Array:
        """The quarters with every choice of few enough bits turned."""
        return (self.keys(values)[:, :, None] ^ self._flips).reshape(len(values), -1)

    def near(self, values: Array, others: Array) -> Array:
        """Whether few enough bits differ."""
        near: Array = np.bitwise_count(values ^ others) <= self._distance
        return near


# Texts ------------------------------------------------------------------------------------------------------------


def shingles(text: str) -> Array:
    """Hashes of all runs of five characters of a text, whatever its case, spaces and forms of characters.

    Returns:
        uint64, each once, ascending; of a shorter text the one of all of it, and none of an empty one.
    """
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    codes = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    width = min(SHINGLE, len(codes))
    if not width:
        return np.empty(0, np.uint64)
    mixed = np.zeros(len(codes) - width + 1, np.uint64)
    for place in range(width):
        mixed = _mixed(mixed + codes[place : place + len(mixed)] + np.uint64(1))
    return np.unique(mixed)


def signature(text: str) -> Array | None:
    """The least of a text's shingles in each of 128 random orders.

    Two texts agree in about as large a share of them as their sets of shingles have in common, of all in either (A.
    Broder, On the Resemblance and Containment of Documents, 1997).

    Returns:
        uint32, shape (128,), or None for a text without characters.
    """
    found = shingles(text)
    if not len(found):
        return None
    least = np.full(HASHES, 2**32 - 1, np.uint32)
    factors, terms = _orders()
    for start in range(0, len(found), 4096):  # bounds memory, whatever the length of the text
        hashed = (found[start : start + 4096, None] * factors + terms) >> np.uint64(32)
        least = np.minimum(least, hashed.min(axis=0).astype(np.uint32))
    return least


@cache
def _orders() -> tuple[Array, Array]:
    # Multiply-shift (M. Dietzfelbinger and others, 1997): odd factors, any terms. The same ones for ever.
    numbers = _mixed(np.arange(1, 2 * HASHES + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return numbers[:HASHES] | np.uint64(1), numbers[HASHES:]


class NearTexts:
    """Signatures of texts, uint32, shape (rows, 128), near if they agree in a share of their numbers. See `Form`.

    Signatures are cut into bands of as many numbers as possible while two texts of the similarity asked for still have
    an equal one but for one pair in ten thousand (J. Leskovec, A. Rajaraman and J. Ullman, Mining of Massive Datasets,
    section 3.4).

    Args:
        similarity: The share.
    """

    def __init__(self, similarity: float) -> None:
        self._agreeing = int(np.ceil(similarity * HASHES - 1e-9))
        fitting = [rows for rows in range(1, HASHES + 1) if (1 - similarity**rows) ** (HASHES // rows) <= _MISSED]
        self._rows = max(fitting, default=1)

    def keys(self, values: Array) -> Array:
        """A hash of each band."""
        bands = HASHES // self._rows
        parts = values[:, : bands * self._rows].reshape(len(values), bands, self._rows).astype(np.uint64)
        keys = np.broadcast_to(np.arange(1, bands + 1, dtype=np.uint64), parts.shape[:2])
        for place in range(self._rows):
            keys = _mixed(keys ^ parts[:, :, place])
        return keys

    def probes(self, values: Array) -> Array:
        """The same: what is near has an equal band."""
        return self.keys(values)

    def near(self, values: Array, others: Array) -> Array:
        """Whether they agree in enough numbers."""
        near: Array = np.count_nonzero(values == others, axis=1) >= self._agreeing
        return near


def _mixed(values: Array) -> Array:
    # The finaliser of SplitMix64 (G. Steele, D. Lea and C. Flood, OOPSLA 2014), but that it takes 0 elsewhere.
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    mixed: Array = values ^ values >> np.uint64(31)
    return mixed
