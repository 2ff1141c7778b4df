"""What a job may require: packages by name and version, PEP 508."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from mms_sdk.errors import InvalidRequest

MAX_REQUIREMENTS = 100
_MAX_CHARS = 500
_SCHEMES = ("https", "git+https")


def check_requirements(asked: Sequence[str]) -> tuple[str, ...]:
    """Requirements, each as all of its spellings are compared.

    Raises:
        InvalidRequest: One is none, is an option or a path, or has a password in its URL.
    """
    return tuple(_checked(each) for each in asked)


def _checked(text: str) -> str:
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    if len(text) > _MAX_CHARS or not text.isprintable():
        raise _refused(text, f"it has {len(text):,} signs, or some that cannot be printed")
    if text.strip().startswith("-"):
        raise _refused(text, "options are settings of pip, and stand in its configuration file")
    try:
        found = Requirement(text)
    except InvalidRequirement as error:
        path = "; name the folder of your own wheels in pip's configuration file" if ".whl" in text else ""
        raise _refused(text, f"{str(error).splitlines()[0]}{path}") from error
    if found.url is not None:
        _check_url(found.url, found.name)
    found.name = canonicalize_name(found.name)
    return str(found)


def _check_url(url: str, name: str) -> None:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise _refused(name, "its URL is none") from error
    if "@" in parts.netloc or parts.query:
        raise InvalidRequest(
            f"what a job requires is kept and shown, and holds no password; the URL of {name} may have one; put it "
            f"into ~/.netrc, where pip finds it by the name of the host"
        )
    if parts.scheme not in _SCHEMES:
        raise _refused(name, f"its URL begins with {parts.scheme[:20]!r}, and not with one of {', '.join(_SCHEMES)}")


def _refused(text: str, why: str) -> InvalidRequest:
    # What is behind '://' may hold a password.
    shown = text.partition("://")[0][:60]
    return InvalidRequest(f"a requirement is a package by name and version, e.g. 'einops>=0.8'; got {shown!r}: {why}")
