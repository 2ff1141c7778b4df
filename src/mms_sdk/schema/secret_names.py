"""What secrets may be called: as the variable by which a job sees one."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mms_sdk.errors import InvalidName

MAX_SECRETS = 50
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")


def check_secret_name(name: str) -> str:
    """Returns `name` if a secret may be called so.

    Raises:
        InvalidName: It has other characters, is too long, or is one of the engine's variables.
    """
    shown = str(name).partition("=")[0][:60]  # what is behind that may be the value
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidName(
            f"a secret is named as the variable that holds it: 1 to 100 of a-z A-Z 0-9 _, and no digit first; got "
            f"{shown!r}; its value is given by: mms secrets set NAME"
        )
    if name.startswith("MMS_"):
        raise InvalidName(f"variables that begin with MMS_ are the engine's; got {shown!r}; name it otherwise")
    return name


def check_secret_names(names: Sequence[str]) -> tuple[str, ...]:
    """Returns names of secrets if each is one and none is there twice.

    Raises:
        InvalidName: They are not.
    """
    for name in names:
        check_secret_name(name)
        if names.count(name) > 1:
            raise InvalidName(f"a secret is named once; {name!r} is there {names.count(name)} times")
    return tuple(names)
