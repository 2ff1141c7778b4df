from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms_sdk.compute.engines.masking import Log, Mask, hidden

SECRETS = [b"hunter2-hunter2", b"aaaab", b"hunter2", b"ter2-x", b"-----BEGIN-----\nMIIE\n-----END-----\n"]


def masked(text: bytes, values: list[bytes], cuts: list[int]) -> bytes:
    mask, told, places = Mask(values), b"", [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    for start, end in pairwise(places):
        told += mask(text[start:end])
    return told + mask.rest()


@given(
    pieces=st.lists(st.sampled_from([*SECRETS, b"a", b"aa", b"hunter2-", b"-x", b"-----", b"\n", b"\xff\x00", b"MII"])),
    cuts=st.lists(st.integers(0, 1000), max_size=20),
)
def test_wherever_a_text_is_cut_it_is_masked_as_if_it_came_at_once(pieces: list[bytes], cuts: list[int]) -> None:
    text = b"".join(pieces)
    assert masked(text, SECRETS, cuts) == masked(text, SECRETS, [])
    assert not any(secret in masked(text, SECRETS, cuts) for secret in SECRETS)


def test_every_byte_may_come_by_itself() -> None:
    text = b"a token: hunter2-hunter2, and hunter2-h, aaaaaab."
    assert masked(text, SECRETS, list(range(len(text)))) == b"a token: ***, and ***-h, aa***."


def test_each_line_of_a_secret_is_masked_and_what_is_short_is_not() -> None:
    assert hidden([b"abc", b"key\nlonger line\n", b""]) == [b"longer line"]
    assert masked(b"abc longer line key", [b"abc", b"key\nlonger line\n"], []) == b"abc *** key"
    assert masked(b"0123456789" * 250, [b"0123456789" * 250], [7, 1800]) == b"*********"


def test_what_is_no_beginning_is_shown_at_once() -> None:
    mask = Mask([b"secret"])
    assert mask(b"loss 0.5, s") == b"loss 0.5, "
    assert mask(b"eed 3\n") == b"seed 3\n"
    assert mask.rest() == b""


def test_many_megabytes_are_masked_in_moments() -> None:
    mask, line = Mask([b"a" * 50_000, *(b"value-%d" % number for number in range(50))]), b"a" * 2**16
    assert sum(len(mask(line)) for _ in range(100)) < 100 * 2**16


@pytest.mark.parametrize("values", [[], [b"abc"], [b"secret"]])
def test_a_log_has_what_was_printed_into_it(tmp_path: Path, values: list[bytes]) -> None:
    log = Log(tmp_path / "log.txt", values)
    os.write(log.writes, b"first sec")
    os.write(log.writes, b"ret\nlast s")
    log.started()
    log.finish()
    shown = b"first ***\nlast s" if values == [b"secret"] else b"first secret\nlast s"
    assert (tmp_path / "log.txt").read_bytes() == shown
    assert (tmp_path / "log.txt").stat().st_mode & 0o777 == 0o600
