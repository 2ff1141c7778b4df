from __future__ import annotations

from mms_sdk.testing.stores import StoreConformance


class TestStore(StoreConformance):
    """On each store that the fixture `store` makes."""
