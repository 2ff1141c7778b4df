"""Texts: from the bytes of a file to characters."""

from __future__ import annotations

from dataclasses import dataclass

from mms_sdk.errors import InvalidInput

_BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a text is.

    Attributes:
        characters: How many.
        notes: What is to be said about it.
    """

    characters: int
    notes: tuple[str, ...] = ()


def inspect(data: bytes, *, encoding: str) -> Facts:
    """Decodes a text to see that it can be.

    Args:
        data: The bytes of a file.
        encoding: How characters are written.

    Raises:
        InvalidInput: They are not written so.
    """
    found = _decoded(data, encoding)
    notes = ("byte order mark left out",) if found.startswith(_BYTE_ORDER_MARK) else ()
    characters = len(found.removeprefix(_BYTE_ORDER_MARK))
    return Facts(characters=characters, notes=notes if characters else (*notes, "no character in it"))


def decode(data: bytes, *, encoding: str) -> str:
    """The characters of a text, without a byte order mark.

    Raises:
        InvalidInput: They are not written so.
    """
    return _decoded(data, encoding).removeprefix(_BYTE_ORDER_MARK)


def _decoded(data: bytes, encoding: str) -> str:
    try:
        found = data.decode(encoding)
        found.encode()  # some encodings spell halves of characters, which UTF-8 has none of
    except UnicodeError as error:
        raise InvalidInput(f"this is no text in {encoding}: {getattr(error, 'reason', error)}") from error
    return found
