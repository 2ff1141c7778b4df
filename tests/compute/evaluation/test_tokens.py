"""Texts, token by token, against SciPy; and reconstructions, against scikit-learn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.metrics import mean_absolute_error, mean_squared_error

from mms_sdk.compute.data.preprocess.text import Bytes
from mms_sdk.compute.evaluation.reconstructions import Reconstructions, errors_of
from mms_sdk.compute.evaluation.tokens import Tokens, sums_of

TEXTS = [b"honey", b"", b"a", "süß".encode(), b"much too long for the row"]


def made() -> tuple[Any, Any]:
    step = Bytes(12)
    rows = step.on_rows(TEXTS)
    logits = np.random.default_rng(0).normal(0, 5, (*rows.shape, step.vocabulary)).astype(np.float32)
    return rows, logits


def spelled_out(rows: Any, logits: Any, *, bytes_only: bool = False) -> list[tuple[int, float, bool]]:
    logs = log_softmax(logits.astype(np.float64), axis=-1)
    return [
        (row, -logs[row, at - 1, token], logs[row, at - 1].argmax() == token)
        for row, tokens in enumerate(rows)
        for at, token in enumerate(tokens)
        if at and token and (not bytes_only or token >= 3)
    ]


def test_the_loss_is_a_mean_over_tokens_under_any_row_counts() -> None:
    rows, logits = made()
    counts = np.array([2, 1, 0, 3, 1])
    said = [each for each in spelled_out(rows, logits) for _ in range(counts[each[0]])]

    told = Tokens(sums_of(rows, logits, pad_id=0, first_byte=3), of_bytes=True).measure(counts)

    loss = np.mean([each[1] for each in said])
    assert told["loss"] == pytest.approx(loss, rel=1e-6)
    assert told["perplexity"] == pytest.approx(math.exp(loss), rel=1e-6)
    assert told["token_accuracy"] == np.mean([each[2] for each in said])
    of_bytes = [each for each in spelled_out(rows, logits, bytes_only=True) for _ in range(counts[each[0]])]
    assert told["bits_per_byte"] == pytest.approx(np.mean([each[1] for each in of_bytes]) / math.log(2), rel=1e-6)


def test_a_model_that_knows_nothing_needs_the_logarithm_of_the_vocabulary() -> None:
    rows, logits = made()
    told = Tokens(sums_of(rows, np.zeros_like(logits), pad_id=0, first_byte=3), of_bytes=True).measure(np.ones(5, int))
    assert told["perplexity"] == pytest.approx(259)
    assert told["bits_per_byte"] == pytest.approx(math.log2(259))


def test_tokens_that_are_no_bytes_have_no_bits_a_byte() -> None:
    rows, logits = made()
    told = Tokens(sums_of(rows, logits, pad_id=0, first_byte=None), of_bytes=False).measure(np.ones(5, int))
    assert set(told) == {"loss", "perplexity", "token_accuracy"}


def test_rows_of_one_token_count_nowhere_and_say_so() -> None:
    rows, logits = made()
    sample = Tokens(sums_of(rows, logits, pad_id=0, first_byte=3), of_bytes=True)
    assert [*sample.notes()] == ["rows of one token have none to be said: 1 count nowhere"]
    empty = sample.take(np.array([1]))
    assert all(map(math.isnan, empty.measure(np.ones(1, int)).values()))
    assert (empty.parts(()), empty.worst(3, ())) == ({}, [])
    assert [each.place for each in sample.worst(9, ())].count(1) == 0
    assert sample.worst(9, ())[0].score == sample.parts(())["row_errors"]["100%"]


def test_logits_that_are_hopelessly_wrong_cost_much_and_overflow_nothing() -> None:
    rows, logits = made()
    told = Tokens(sums_of(rows, logits * 1e6, pad_id=0, first_byte=3), of_bytes=True).measure(np.ones(5, int))
    assert np.isfinite([*told.values()]).all()


def test_a_reconstruction_is_off_as_scikit_learn_says_under_any_row_counts() -> None:
    rng = np.random.default_rng(0)
    targets, given = rng.normal(size=(2, 20, 4, 3)).astype(np.float32)
    counts = rng.integers(0, 3, 20)
    so, said = (np.repeat(each, counts, 0).ravel() for each in (targets, given))

    sample = Reconstructions(errors_of(targets, given))

    told = sample.measure(counts)
    assert told["mae"] == pytest.approx(mean_absolute_error(so, said), rel=1e-6)
    assert told["rmse"] == pytest.approx(math.sqrt(mean_squared_error(so, said)), rel=1e-6)
    rows = np.sqrt(((given - targets).reshape(20, -1) ** 2).mean(1))
    assert sample.parts(())["row_errors"]["95%"] == pytest.approx(np.quantile(rows, 0.95), rel=1e-5)
    assert [each.place for each in sample.worst(2, ())] == np.argsort(-rows)[:2].tolist()
    assert [*sample.notes()] == []
