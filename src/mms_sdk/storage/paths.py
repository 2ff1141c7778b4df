"""Paths that come from elsewhere and become paths below a folder of ours."""

from __future__ import annotations

from mms_sdk.errors import InvalidRequest
from mms_sdk.storage import files

_MAX_PATH_BYTES = 1000  # so that it has room below the folder
_MAX_NAME_BYTES = 255  # of a name in it, as file systems have it


def check_path(path: str, *, of: str) -> str:
    """A path, if it leads below whatever folder it is put to, on every system.

    Args:
        path: Names with `/` between them.
        of: What the files belong to, e.g. `a bundle`.

    Raises:
        InvalidRequest: It leads elsewhere, or is too long.
    """
    try:
        encoded = path.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"names of files in {of} are UTF-8; {path!r} is not; rename it") from error
    if not files.is_below(path) or "\\" in path or ":" in path:
        raise InvalidRequest(
            f"files of {of} lie below its own folder, by names without \\, : and byte 0, e.g. 'models/net.py'; "
            f"got {path[:200]!r}; rename it, or leave it out"
        )
    if len(encoded) > _MAX_PATH_BYTES or max(map(len, encoded.split(b"/"))) > _MAX_NAME_BYTES:
        raise InvalidRequest(
            f"a path in {of} has at most {_MAX_PATH_BYTES} bytes, and each name in it {_MAX_NAME_BYTES}; got "
            f"{path[:60]!r}… of {len(encoded):,}; make it shorter"
        )
    return path
