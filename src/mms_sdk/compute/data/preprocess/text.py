"""Preprocessing steps for texts; `mms.text`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mms_sdk.compute.data.preprocess.pipeline import register
from mms_sdk.errors import InvalidInput, InvalidRequest, MissingExtra
from mms_sdk.types import Array

_END, _FIRST = 1, 3  # of ByT5; 2 stands for what is unknown, which no byte is
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


class _Ids:
    """A step that makes ids of a text: int32, shape (length,), padded."""

    length: int

    def shape(self, _shape: tuple[int, ...] | None) -> tuple[int, ...]:
        """(length,)."""
        return (self.length,)


@register
@dataclass(frozen=True)
class Bytes(_Ids):
    """The bytes of each text as ids: 0 for padding, 1 for the end, byte + 3 for the rest (ByT5, Xue et al. 2022, §3.1).

    Needs no vocabulary and knows every language. A text that is too long is cut, at whatever byte, before its end.

    Attributes:
        length: Ids in a row, with the end.
    """

    name: ClassVar[str] = "text.bytes"
    dtype: ClassVar[str] = "int32"
    first_byte: ClassVar[int] = _FIRST
    length: int = 256

    def __post_init__(self) -> None:
        if self.length < 2:
            raise InvalidRequest(f"a text has room for a byte and its end; got Bytes({self.length}); use 2 or more")

    @property
    def vocabulary(self) -> int:
        """How many ids there are: 259."""
        return 256 + _FIRST

    def on_row(self, row: bytes) -> Array:
        """int32, shape (length,)."""
        ids = np.zeros(self.length, np.int32)
        data = np.frombuffer(row, np.uint8, count=min(len(row), self.length - 1))
        ids[: len(data)] = data.astype(np.int32) + _FIRST
        ids[len(data)] = _END
        return ids

    def on_rows(self, rows: Sequence[bytes]) -> Array:
        """int32, shape (rows, length)."""
        return np.stack([self.on_row(row) for row in rows]) if len(rows) else np.zeros((0, self.length), np.int32)


@register
@dataclass(frozen=True)
class Tokenize(_Ids):
    """Sub-words of each text as ids, by a vocabulary of the `tokenizers` library; 0 for padding.

    Without a vocabulary one is learned from the training rows: byte pairs (Sennrich et al. 2016) over bytes, of which
    the same texts make the same vocabulary. It puts `[CLS]` before each text and `[SEP]` behind. WordPiece and others
    come as the `tokenizer.json` they were published as; the library's own WordPiece training gives other ids each time.

    Attributes:
        vocab: A `tokenizer.json`: its content, or a `pathlib.Path` to it, whose content is kept, so that a version is
            complete.
        length: Ids in a row, with those put before and behind; a text that is too long is cut.
        size: Entries of a vocabulary that is learned, at most.
        pad_id: What a row is filled up with; that of the vocabulary.
    """

    name: ClassVar[str] = "text.tokenize"
    dtype: ClassVar[str] = "int32"
    vocab: str | Path | None = None
    length: int = 128
    size: int = 8192
    pad_id: int = 0

    def __post_init__(self) -> None:
        if self.length < 3 or self.size < 256 + len(_SPECIAL):
            raise InvalidRequest(
                f"a text has room for its beginning, a token and its end, and a vocabulary for every byte; got "
                f"length={self.length}, size={self.size}; use at least 3 and {256 + len(_SPECIAL)}"
            )
        # A text is never a path: steps are read from the JSON of versions that others made.
        if isinstance(self.vocab, Path):
            object.__setattr__(self, "vocab", _read(self.vocab))
        if self.vocab is not None:
            self._check_padding()

    def fit(self, batches: Iterable[Sequence[bytes]]) -> Tokenize:
        """With a vocabulary learned from the training rows, if none was given."""
        if self.vocab is not None:
            return self
        tokenizers = _tokenizers()
        learned = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="[UNK]"))
        learned.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        learned.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=self.size,
            special_tokens=list(_SPECIAL),
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        learned.train_from_iterator((_text(row) for rows in batches for row in rows), trainer)
        ends = [(token, learned.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
        learned.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
        return replace(self, vocab=learned.to_str())

    @property
    def vocabulary(self) -> int:
        """How many ids there are."""
        return int(self._tokenizer.get_vocab_size())

    def on_row(self, row: bytes) -> Array:
        """int32, shape (length,)."""
        ids: Array = self.on_rows([row])[0]
        return ids

    def on_rows(self, rows: Sequence[bytes]) -> Array:
        """int32, shape (rows, length)."""
        encoded = self._tokenizer.encode_batch([_text(row) for row in rows])
        return np.array([each.ids for each in encoded], np.int32).reshape(len(rows), self.length)

    @cached_property
    def _tokenizer(self) -> Any:
        if self.vocab is None:
            raise InvalidRequest("Tokenize() knows its vocabulary once it is fitted; call fit() first, or give vocab=")
        made = _parsed(str(self.vocab))
        made.enable_truncation(self.length)
        made.enable_padding(length=self.length, pad_id=self.pad_id)
        return made

    def _check_padding(self) -> None:
        told = _parsed(str(self.vocab))
        names = ("[PAD]", "<pad>", "<|pad|>")
        ids = {name: told.token_to_id(name) for name in names if told.token_to_id(name) is not None}
        own = (told.padding or {}).get("pad_id", next(iter(ids.values()), self.pad_id))
        if own != self.pad_id:
            raise InvalidRequest(f"rows are filled up with the vocabulary's own padding, {own}; say pad_id={own}")


def _text(row: bytes) -> str:
    try:
        return row.decode()
    except UnicodeError as error:
        raise InvalidInput(f"a text is UTF-8; this one is not: {error}; convert it first") from error


def _read(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeError, ValueError) as error:
        raise InvalidRequest(
            f"vocab is a tokenizer.json, as a Path or as its content; {str(path)!r} does not read: {error}; check the "
            f"path"
        ) from error


def _parsed(content: str) -> Any:
    tokenizers = _tokenizers()
    try:
        json.loads(content)
        return tokenizers.Tokenizer.from_str(content)
    except Exception as error:
        raise InvalidRequest(
            f"vocab is the content of a tokenizer.json, or a pathlib.Path to one; {content[:40]!r} is neither: {error}"
        ) from error


def _tokenizers() -> Any:
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.processors
        import tokenizers.trainers
    except ImportError as error:
        raise MissingExtra("tokenizers", extra="llm") from error
    return tokenizers


__all__ = ["Bytes", "Tokenize"]
