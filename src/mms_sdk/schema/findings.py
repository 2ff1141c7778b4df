"""What pydantic found, in MMS's words: the field, what it should be, and what it is."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

_MOST = 5
_SEEN_CHARS = 80
_TRIED = ("int", "float", "str", "bool", "bytes")
# What a validator of ours says tells the value already; a missing one has none, and one too many is not looked at.
_SEEN_BY_RULE = ("value_error", "missing", "extra_forbidden")
_RULES = {
    "missing": "it is missing; give it",
    "literal_error": "it is {expected}",
    "enum": "it is {expected}",
    "greater_than": "it is above {gt}",
    "greater_than_equal": "it is at least {ge}",
    "less_than": "it is below {lt}",
    "less_than_equal": "it is at most {le}",
    "multiple_of": "it is a multiple of {multiple_of}",
    "finite_number": "it is a finite number",
    "string_type": "it is a text",
    "string_pattern_mismatch": "it fits the pattern {pattern}",
    "string_too_short": "it has at least {min_length} characters",
    "string_too_long": "it has at most {max_length} characters",
    "bytes_type": "it is bytes",
    "too_short": "it has at least {min_length} of them, not {actual_length}",
    "too_long": "it has at most {max_length} of them, not {actual_length}",
    "int_type": "it is a whole number",
    "int_parsing": "it is a whole number",
    "int_from_float": "it is a whole number",
    "float_type": "it is a number",
    "float_parsing": "it is a number",
    "bool_type": "it is true or false",
    "bool_parsing": "it is true or false",
    "tuple_type": "it is a list",
    "list_type": "it is a list",
    "set_type": "it is a set",
    "dict_type": "it is a mapping of names to values",
    "model_type": "it is a {class_name}",
    "model_attributes_type": "it is a JSON object",
    "none_required": "it is left out",
    "json_invalid": "it is JSON: {error}",
    "union_tag_not_found": "it says by {discriminator} which it is",
    "union_tag_invalid": "its {discriminator} is one of {expected_tags}",
}


def reasons(errors: Sequence[Mapping[str, Any]], *, fields: Sequence[str] = ()) -> str:
    """Pydantic's findings in one line.

    Args:
        errors: What `ValidationError.errors()` gives.
        fields: Names that there are, where all are of one thing: a name like one of them is taken for a slip.
    """
    rules: dict[tuple[str, str], list[str]] = {}
    for error in errors:
        rules.setdefault((_where(error), _seen(error)), []).append(_rule(error, fields))
    told = [f"{where}{_any_of(found)}{seen}" for (where, seen), found in rules.items()]
    more = f"; and {len(told) - _MOST} more" if len(told) > _MOST else ""
    return "; ".join(told[:_MOST]) + more


def _any_of(rules: Sequence[str]) -> str:
    first, *others = dict.fromkeys(rules)
    return " or ".join([first, *(other.removeprefix("it is ") for other in others)])


def _where(error: Mapping[str, Any]) -> str:
    # Of what may be one of several types pydantic tells which of them was tried: its rule says that.
    # That it came in a request's body, and that a key is meant and not its value, are words of FastAPI and pydantic.
    parts = [str(part) for part in error["loc"] if part != "[key]"]
    if parts[:1] == ["body"] and len(parts) > 1:
        del parts[0]
    tried = len(parts) > 1 and (parts[-1] in _TRIED or parts[-1].startswith("literal["))
    return ".".join(parts[:-1] if tried else parts) + (": " if parts else "")


def _rule(error: Mapping[str, Any], fields: Sequence[str]) -> str:
    kind = error["type"]
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(error["loc"][-1]), fields, n=1)
        known = f"; there are {', '.join(fields)}" if fields else ""
        return "there is no such field; " + (f"did you mean {near[0]}?" if near else f"leave it out{known}")
    with contextlib.suppress(KeyError):  # one that is not known here, or tells other things by another version
        return _RULES[kind].format_map({name: _plain(told) for name, told in error.get("ctx", {}).items()})
    message = str(error["msg"]).removeprefix("Value error, ")
    return message if kind == "value_error" else message[:1].lower() + message[1:]


def _plain(told: Any) -> Any:
    return int(told) if isinstance(told, float) and told.is_integer() else told


def _seen(error: Mapping[str, Any]) -> str:
    if error["type"] in _SEEN_BY_RULE:
        return ""
    shown = repr(error["input"])
    return f", got {shown}" if len(shown) <= _SEEN_CHARS else f", got {shown[:_SEEN_CHARS]}…"
