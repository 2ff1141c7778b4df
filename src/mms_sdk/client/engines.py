"""Where a piece of work is done that is not code of one's own."""

from __future__ import annotations

from typing import Any, get_args

from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.job import EngineName, On, Resources

Where = EngineName | Resources | On
"""What does a piece of work: an engine by name; what of this machine it takes; or both and more, as `mms.On`."""


def asked_on(on: Where | None) -> dict[str, Any] | None:
    """What is asked of the service; None for its own process.

    Raises:
        InvalidRequest: It is no such thing.
    """
    if on is None:
        return None
    if isinstance(on, Resources):
        on = On(resources=on)
    elif isinstance(on, str) and on in get_args(EngineName):
        on = On(engine=on)
    if not isinstance(on, On):
        engines = ", ".join(map(repr, get_args(EngineName)))
        raise InvalidRequest(f"on= is one of {engines}, mms.Resources(...), or mms.On(...); got {on!r}")
    return on.model_dump(mode="json")
