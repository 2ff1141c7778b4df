"""How much one token, or one address without a good one, may ask. Each server process counts for itself."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Hashable
from typing import Any, Generic, TypeVar

from mms_sdk.errors import RateLimited
from mms_sdk.schema.access import Principal

_MOST_KEYS = 4096
_K = TypeVar("_K", bound=Hashable)


class Buckets(Generic[_K]):
    """Token buckets by key: each fills at a rate up to its burst, and whatever is asked takes one.

    Those that were not asked for longest are forgotten, which leaves them full.
    """

    def __init__(self) -> None:
        self._left: dict[_K, tuple[float, float]] = {}

    def take(self, key: _K, *, per_s: float, burst: float) -> float:
        """Takes one.

        Returns:
            0, or the seconds after which there is one again, if there is none.
        """
        now = time.monotonic()
        left, at = self._left.pop(key, (burst, now))
        left = min(burst, left + (now - at) * per_s)
        if len(self._left) >= _MOST_KEYS:
            del self._left[next(iter(self._left))]
        enough = left >= 1
        self._left[key] = (left - 1 if enough else left, now)
        return 0.0 if enough else (1 - left) / per_s


class TokenUse:
    """What is asked with tokens that have limits."""

    def __init__(self) -> None:
        self._buckets: Buckets[str] = Buckets()
        self._running: dict[str, int] = {}

    def begin(self, who: Principal) -> None:
        """Counts a request in, if there is room for it; `end` counts it out.

        Raises:
            RateLimited: There is none.
        """
        limits = who.limits
        if limits is None:
            return
        running = self._running.get(who.id, 0)
        if limits.concurrent is not None and running >= limits.concurrent:
            raise RateLimited(
                f"with the token {who.name!r} at most {limits.concurrent} requests are answered at a time; wait for one"
            )
        if limits.requests_per_s is not None:
            burst = limits.burst or max(1.0, 2 * limits.requests_per_s)
            wait_s = self._buckets.take(who.id, per_s=limits.requests_per_s, burst=burst)
            if wait_s:
                raise RateLimited(
                    f"with the token {who.name!r} {limits.requests_per_s:g} requests a second may be made; try again "
                    f"in {wait_s:.3g} s",
                    retry_after_s=wait_s,
                )
        self._running[who.id] = running + 1

    def end(self, who: Principal) -> None:
        """Counts a request out that was counted in."""
        if who.limits is None:
            return
        running = self._running.pop(who.id, 1) - 1
        if running:
            self._running[who.id] = running


class WrongTokens:
    """Requests without a good token, by where they come from.

    Whoever is told to wait is one who has none: a good token is let in from any address, at any time.
    """

    def __init__(self, *, per_s: float, burst: int) -> None:
        self._per_s = per_s
        self._burst = burst
        self._buckets: Buckets[str] = Buckets()

    def note(self, client: str) -> None:
        """Counts one.

        Raises:
            RateLimited: There were too many.
        """
        wait_s = self._buckets.take(network_of(client), per_s=self._per_s, burst=self._burst)
        if wait_s:
            raise RateLimited(
                f"from one address {self._per_s:g} requests a second may come without a valid token; try again in "
                f"{wait_s:.3g} s with one: Authorization: Bearer mms_…",
                retry_after_s=wait_s,
            )


def network_of(client: str) -> str:
    """The address that stands for all that one person has: of IPv6, 2^64 of them."""
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return client
    if isinstance(address, ipaddress.IPv6Address):
        mapped: Any = address.ipv4_mapped
        return str(mapped or ipaddress.ip_network((address, 64), strict=False))
    return str(address)
