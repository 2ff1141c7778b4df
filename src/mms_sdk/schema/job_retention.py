"""How long what jobs left is kept."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field, field_validator

from mms_sdk.schema.base import Asked

_AGE = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(s|min|h|d|w)")
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_LONGEST_S = 1000 * 366 * 86400.0  # before that there was no time, as computers count it


class CleanJobs(Asked):
    """Asks for the files of old jobs to be removed.

    Attributes:
        older_than: Those that ended longer ago, e.g. `30d`, `2w`, `12h`, or seconds.
        keep: How many of the newest stay, however old they are.
        dry_run: Only count what would be removed.
    """

    older_than: Annotated[float, Field(ge=0, le=_LONGEST_S, allow_inf_nan=False)]
    keep: Annotated[int, Field(ge=0, le=2**31)] = 0
    dry_run: bool = False

    @field_validator("older_than", mode="before")
    @classmethod
    def _seconds(cls, asked: Any) -> Any:
        if not isinstance(asked, str):
            return asked
        found = _AGE.fullmatch(asked.replace(" ", ""))
        if found is None:
            raise ValueError(f"an age is seconds, or a number with s, min, h, d or w, e.g. 30d; got {asked[:60]!r}")
        return float(found[1]) * _SECONDS[found[2]]
