"""The base of everything that crosses the wire."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.findings import reasons


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
            known = ", ".join(f"{field}=" for field in self._told_fields())
            raise InvalidRequest(f"the fields of {name} are given by name: {known}; got {values}")
        try:
            super().__init__(**placed, **fields)
        except ValidationError as error:
            found = reasons(error.errors(), fields=self._told_fields())
            raise InvalidRequest(f"{name} does not fit: {found}") from error

    # What comes over the wire is validated past it, as it would be without it: there each finding keeps its place.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def _told_fields(cls) -> list[str]:
        return [field for field in cls.model_fields if field not in ("type", "step")]
