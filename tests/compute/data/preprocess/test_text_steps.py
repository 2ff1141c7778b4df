from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mms_sdk.compute.data.preprocess import text
from mms_sdk.compute.data.preprocess.pipeline import HostStep, Pipeline, RowsStep, from_json, to_json
from mms_sdk.errors import InvalidInput, InvalidRequest

TEXTS = [one.encode() for one in ("the cat sat on the mat", "the dog", "", "Füße, 北京 🙂", "the cat " * 40)]


def learned(**options: Any) -> text.Tokenize:
    pipeline = Pipeline.of([text.Tokenize(length=16, size=300, **options)])
    step = pipeline.fit_host(lambda: iter([TEXTS[:2], TEXTS[2:]])).host[0]
    assert isinstance(step, text.Tokenize)
    return step


def test_bytes_are_their_values_plus_three_then_the_end_then_padding() -> None:
    step = text.Bytes(8)

    np.testing.assert_array_equal(step.on_row(b"ab"), [100, 101, 1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(step.on_row(b"abcdefghijk"), [100, 101, 102, 103, 104, 105, 106, 1])
    np.testing.assert_array_equal(step.on_row(b""), [1, 0, 0, 0, 0, 0, 0, 0])
    assert step.on_row(b"\xff").dtype == np.int32
    assert step.on_row(b"\xff").max() < step.vocabulary == 259
    assert step.shape(None) == (8,)


def test_many_texts_come_out_as_one_by_one() -> None:
    step = text.Bytes(12)

    assert isinstance(step, HostStep)
    assert isinstance(step, RowsStep)
    np.testing.assert_array_equal(step.on_rows(TEXTS), np.stack([step.on_row(one) for one in TEXTS]))
    assert step.on_rows([]).shape == (0, 12)


@pytest.mark.parametrize("length", [1, 0, -3])
def test_no_room_for_a_byte_is_refused(length: int) -> None:
    with pytest.raises(InvalidRequest, match="use 2 or more"):
        text.Bytes(length)


@pytest.mark.slow
def test_bytes_are_those_of_byt5() -> None:
    from transformers import ByT5Tokenizer

    theirs = ByT5Tokenizer(extra_ids=0)
    for one in TEXTS:
        ids = theirs(one.decode(), max_length=20, truncation=True, padding="max_length")["input_ids"]
        np.testing.assert_array_equal(text.Bytes(20).on_row(one), ids)


@pytest.mark.slow
def test_a_vocabulary_is_learned_from_the_rows_the_same_each_time() -> None:
    one, again = learned(), learned()

    assert one == again
    assert one.vocab is not None
    assert 260 < one.vocabulary <= 300
    assert from_json(json.loads(json.dumps(to_json(one)))) == one


@pytest.mark.slow
def test_tokens_spell_the_text_between_a_beginning_and_an_end() -> None:
    from tokenizers import Tokenizer

    step = learned()
    vocabulary = Tokenizer.from_str(step.vocab)
    for one in TEXTS[:3]:
        ids = step.on_row(one)
        assert ids.shape == (16,)
        assert vocabulary.decode(ids.tolist()) == one.decode()
        tokens = [vocabulary.id_to_token(each) for each in ids if each != 0]
        assert (tokens[0], tokens[-1]) == ("[CLS]", "[SEP]")
    np.testing.assert_array_equal(step.on_rows(TEXTS), np.stack([step.on_row(one) for one in TEXTS]))
    assert vocabulary.id_to_token(step.on_row(TEXTS[4])[-1]) == "[SEP]"  # cut, and ended all the same


@pytest.mark.slow
def test_a_published_word_piece_vocabulary_gives_the_ids_of_its_own_tokenizer(tmp_path: Path) -> None:
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "dog", "sat", "##s", "on", "mat", ","]
    theirs: Any = BertTokenizer(vocab={word: code for code, word in enumerate(words)})
    theirs.save_pretrained(tmp_path)
    step = text.Tokenize(vocab=tmp_path / "tokenizer.json", length=10)

    for one in ("The cats sat on the mat, the dogs", "dog", "", "unheard"):
        ids = theirs(one, max_length=10, truncation=True, padding="max_length")["input_ids"]
        np.testing.assert_array_equal(step.on_row(one.encode()), ids)
    (tmp_path / "tokenizer.json").unlink()  # what it needs is within it
    again = from_json(json.loads(json.dumps(to_json(step))))
    np.testing.assert_array_equal(again.on_row(b"the cat"), step.on_row(b"the cat"))


@pytest.mark.slow
def test_a_vocabulary_that_is_none_or_pads_otherwise_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    with pytest.raises(InvalidRequest, match="does not read"):
        text.Tokenize(vocab=tmp_path / "nothing.json")
    for content in ("{}", "tokenizer.json", '{"model": 3}'):
        with pytest.raises(InvalidRequest, match="or a pathlib"):
            text.Tokenize(vocab=content)
    other = Tokenizer(models.WordLevel({"a": 0, "<pad>": 1}, unk_token="a")).to_str()
    with pytest.raises(InvalidRequest, match="say pad_id=1"):
        text.Tokenize(vocab=other)
    np.testing.assert_array_equal(text.Tokenize(vocab=other, length=3, pad_id=1).on_row(b"a"), [0, 1, 1])


@pytest.mark.slow
def test_bytes_that_are_no_text_are_refused_by_tokens() -> None:
    with pytest.raises(InvalidInput, match="a text is UTF-8; this one is not"):
        learned().on_row(b"\xff\xfe")


def test_tokens_before_the_vocabulary_is_known_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"Tokenize\(\) knows its vocabulary once it is fitted"):
        text.Tokenize().on_row(b"a")
    with pytest.raises(InvalidRequest, match="use at least 3 and 260"):
        text.Tokenize(length=2)
