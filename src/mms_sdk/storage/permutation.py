"""A keyed permutation: an order of any number of rows that is never written down.

A Feistel network walked until it lands inside the range (Black and Rogaway 2002, section 4) needs no shuffled index in
memory, can start anywhere in O(1), and gives the same order for any number of processes.
"""

from __future__ import annotations

import numpy as np

from mms_sdk.types import Array, Rows

_ROUNDS = 6


def permuted(positions: Rows, *, size: int, seed: int, epoch: int, window: int | None = None) -> Rows:
    """Where each position of an epoch's order lies.

    Args:
        positions: Positions in [0, size), int64, shape (n,).
        size: Number of rows.
        seed: Chooses the family of orders.
        epoch: Chooses the order within it.
        window: Chooses another one for each window of an epoch.

    Returns:
        Row indices in [0, size), int64, shape (n,); a bijection over all positions.
    """
    if size <= 1:
        return np.zeros_like(positions)
    bits = max(2, int(size - 1).bit_length())
    path = (epoch,) if window is None else (epoch, window + 1)  # a last 0 would not change the keys
    keys = _keys(seed, path, _ROUNDS if bits >= 8 else 2 * _ROUNDS)  # halves of a few bits mix slowly
    out = _feistel(positions.astype(np.uint64), bits, keys)
    outside = np.flatnonzero(out >= size)
    while len(outside):
        out[outside] = _feistel(out[outside], bits, keys)
        outside = outside[out[outside] >= size]
    return out.astype(np.int64)


def _keys(seed: int, path: tuple[int, ...], rounds: int) -> Array:
    return np.random.SeedSequence([seed & 2**63 - 1, *path]).generate_state(rounds, np.uint32)


def _feistel(values: Array, bits: int, keys: Array) -> Array:
    # Unbalanced halves that swap sizes each round cover any number of bits, so at most half the range is walked.
    low_bits, high_bits = bits // 2, bits - bits // 2
    low = (values & np.uint64((1 << low_bits) - 1)).astype(np.uint32)
    high = (values >> np.uint64(low_bits)).astype(np.uint32)
    for key in keys:
        mixed = _mix(high + key, low_bits)
        mixed ^= low
        low, high = high, mixed
        low_bits, high_bits = high_bits, low_bits
    joined: Array = high.astype(np.uint64) << np.uint64(low_bits) | low
    return joined


def _mix(values: Array, bits: int) -> Array:
    # The top bits of a product depend on all below: two products, with the multipliers of MurmurHash3 (public domain;
    # A. Appleby). In place and in 32 bits, because what this costs is the memory it goes through.
    values *= np.uint32(0x85EBCA6B)
    values ^= values >> np.uint32(15)
    values *= np.uint32(0xC2B2AE35)
    values >>= np.uint32(32 - bits)
    return values
