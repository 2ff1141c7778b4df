"""Which packages there are, by the names of their folders: a thousand times as fast as reading what they say."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import Literal

_INFO = (".dist-info", ".egg-info")


class RequirementsFailed(Exception):
    """Packages could not be installed.

    Args:
        message: What pip said last.
        reason: Whose doing it was: `user`, or `infra`.
    """

    def __init__(self, message: str, reason: Literal["user", "infra"]) -> None:
        super().__init__(message)
        self.reason = reason


def installed(paths: Sequence[str] | None = None) -> dict[str, str]:
    """Versions of the packages that an import finds, by name as PEP 503 spells it, sorted.

    Args:
        paths: Where they are looked for; `sys.path` if left out. Of one that is there twice, the first counts.
    """
    found: dict[str, str] = {}
    for path in sys.path if paths is None else paths:
        try:
            names = os.listdir(path or ".")
        except OSError:  # not there, or an archive
            continue
        for name in names:
            if name.endswith(_INFO):
                package, _, rest = name.rpartition(".")[0].partition("-")
                found.setdefault(normalised(package), rest.partition("-")[0])
    return dict(sorted(found.items()))


def normalised(name: str) -> str:
    """A package's name as all spellings of it are compared: PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()
