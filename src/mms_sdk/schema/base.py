"""The base of everything that crosses the wire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from mms_sdk.errors import InvalidRequest


class Schema(BaseModel):
    """Immutable, and strict about fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class Asked(Schema):
    """What a person writes in Python: fields by name, and what does not fit is refused in MMS's own words.

    Attributes:
        by_place: Names of the fields that may be given without their names.
    """

    by_place: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *values: Any, **fields: Any) -> None:
        name = type(self).__name__
        placed = dict(zip(self.by_place, values, strict=False))
        if len(values) > len(placed) or placed.keys() & fields.keys():
            known = ", ".join(f"{field}=" for field in type(self).model_fields if field not in ("type", "step"))
            raise InvalidRequest(f"the fields of {name} are given by name: {known}; got {values}")
        try:
            super().__init__(**placed, **fields)
        except ValidationError as error:
            raise InvalidRequest(f"{name} does not fit: {reasons(error.errors())}") from error

    # What comes over the wire is validated past it, as it would be without it: there each finding keeps its place.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


def reasons(errors: Sequence[Mapping[str, Any]]) -> str:
    """Pydantic's findings in one line: the field, what it should be, and what it is."""
    return "; ".join(_reason(error) for error in errors[:5])


def _reason(error: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in error["loc"])
    # What a validator of ours says tells the value already, and a missing one has none.
    seen = "" if error["type"] in ("value_error", "missing") else f", got {str(error['input'])[:80]!r}"
    return f"{where}: {error['msg']}{seen}" if where else f"{error['msg'].removeprefix('Value error, ')}{seen}"
