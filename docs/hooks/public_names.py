"""Fails the strict build when a public name of `mms_sdk` has no entry in the reference."""

from __future__ import annotations

import logging
import re
from typing import Any

import mms_sdk

# MkDocs counts the warnings of loggers below its own, and a strict build with a warning fails.
log = logging.getLogger("mkdocs.hooks.public_names")

documented: set[str] = set()


def on_page_content(html: str, **_: Any) -> None:
    documented.update(re.findall(r'<h\d id="mms_sdk\.([\w.]+)"', html))


def on_post_build(**_: Any) -> None:
    for name in sorted(set(mms_sdk.__all__) - documented):
        log.warning("public name without a page: mms_sdk.%s; add '::: mms_sdk.%s' in docs/reference/", name, name)
