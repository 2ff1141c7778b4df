"""Which type the texts of a column spell, so that nothing is altered by reading them as that type."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

NO_VALUE = ("NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", "#N/A")
"""How people write that a number, a truth value or a time is missing. In a text they are what they say."""

_TIME = pa.timestamp("us")
_TIME_UTC = pa.timestamp("us", "UTC")
# No leading zeros, which a number would lose; and no more digits than a float keeps.
_FITS = {
    pa.int64(): r"^[+-]?(0|[1-9][0-9]{0,17})$",
    pa.float64(): r"^[+-]?((0|[1-9][0-9]{0,14})(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$|^[+-]?inf$",
    pa.bool_(): r"^(true|false|True|False|TRUE|FALSE)$",
    _TIME: r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9:.]+)?$",
    _TIME_UTC: r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9:.]+(Z|[+-][0-9]{2}:?[0-9]{2})$",
}


class TextType:
    """The narrowest type that spells every text seen."""

    def __init__(self) -> None:
        self._left = list(_FITS)
        self._any = False

    def see(self, texts: pa.Array) -> None:
        """Looks at more texts."""
        values = _without_no_value(texts).drop_null()
        self._any = self._any or len(values) > 0
        self._left = [kind for kind in self._left if _spells(values, kind)]

    @property
    def chosen(self) -> pa.DataType:
        """The type; text if no other fits, and null if there was no value."""
        if not self._any:
            return pa.null()
        return self._left[0] if self._left else pa.string()

    @staticmethod
    def both(one: pa.DataType, other: pa.DataType) -> pa.DataType:
        """The type that fits what two types fit."""
        if one == other or pa.types.is_null(other):
            return one
        if pa.types.is_null(one):
            return other
        return pa.float64() if {one, other} == {pa.int64(), pa.float64()} else pa.string()


def as_type(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    """Texts as values of a type that spells them."""
    if pa.types.is_string(kind):
        return texts
    values = _without_no_value(texts)
    return pa.nulls(len(values), kind) if pa.types.is_null(kind) else _cast(values, kind)


def _spells(values: pa.Array, kind: pa.DataType) -> bool:
    if not pc.all(pc.match_substring_regex(values, _FITS[kind]), min_count=0).as_py():
        return False
    try:
        _cast(values, kind)
    except pa.ArrowInvalid:  # such as the 31st of February
        return False
    return True


def _cast(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_boolean(kind):
        return pc.equal(pc.utf8_lower(values), "true")
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        values = pc.replace_substring_regex(values, r"^\+", "")
    return values.cast(kind)


def _without_no_value(texts: pa.Array) -> pa.Array:
    return pc.if_else(pc.is_in(texts, pa.array(NO_VALUE)), pa.scalar(None, pa.string()), texts)
