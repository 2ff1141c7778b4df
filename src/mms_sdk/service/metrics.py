"""Prometheus metrics of the service; `GET /metrics`."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from mms_sdk.service.deployments import Served

REGISTRY = CollectorRegistry()
_REQUESTS = Counter("mms_requests_total", "Requests answered, by status class.", ["status"], registry=REGISTRY)
_SECONDS = Histogram(
    "mms_request_seconds",
    "Time from a request's headers to its last byte.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    registry=REGISTRY,
)
# Looking a child up by its label costs more than counting; there are five, so they are held.
_BY_STATUS = {status: _REQUESTS.labels(f"{status}xx") for status in range(1, 6)}


class Watched:
    """An ASGI `send` that remembers what was sent, and tells the request's id with it.

    Args:
        send: Where messages go.
        request: The request's id.

    Attributes:
        started: Whether the status line has gone out.
        finished: Whether the whole answer has.
        before: Awaited with the status before the status line goes out, once.
    """

    def __init__(self, send: Callable[[MutableMapping[str, Any]], Awaitable[None]], request: str) -> None:
        self._send = send
        self._header = (b"x-request-id", request.encode())
        self._began = time.perf_counter()
        self._status = 500
        self.before: Callable[[int], Awaitable[None]] | None = None
        self.started = False
        self.finished = False

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        """Sends a message on."""
        if message["type"] == "http.response.start":
            if self.before is not None:
                before, self.before = self.before, None
                await before(message["status"])
            self.started = True
            self._status = message["status"]
            message["headers"] = [*message.get("headers", ()), self._header]
        await self._send(message)
        self.finished = message["type"] == "http.response.body" and not message.get("more_body", False)

    def done(self) -> None:
        """Counts the request."""
        _BY_STATUS[self._status // 100].inc()
        _SECONDS.observe(time.perf_counter() - self._began)


class _Deployments(Collector):
    """What batchers count anyway, read when somebody asks."""

    def __init__(self, served: Sequence[Served]) -> None:
        self._served = served

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "mms_deployment_requests",
            "Requests by what became of them: answered, failed, refused (503), late (504), left (hung up).",
            labels=["deployment", "version", "end"],
        )
        counted = {
            name: CounterMetricFamily(f"mms_deployment_{name}", text, labels=["deployment", "version"])
            for name, text in _COUNTED.items()
        }
        queued = GaugeMetricFamily("mms_deployment_queued_rows", "Rows that wait.", labels=["deployment", "version"])
        compiled = GaugeMetricFamily(
            "mms_deployment_compiles_after_ready",
            "Programs compiled while serving; stays 0.",
            labels=["deployment", "version"],
        )
        for served in self._served:
            of, counts = [served.name, str(served.version)], served.batcher.counts
            ends = {
                "answered": counts.requests,
                "failed": counts.failed,
                "refused": counts.refused,
                "late": counts.late,
                "left": counts.left,
            }
            for end, count in ends.items():
                requests.add_metric([*of, end], count)
            for name, family in counted.items():
                family.add_metric(of, getattr(counts, name))
            queued.add_metric(of, served.batcher.queued_rows())
            compiled.add_metric(of, served.predictor.compiles_after_ready)
        yield from (requests, *counted.values(), queued, compiled)


_COUNTED = {
    "rows": "Rows in requests that were answered.",
    "batches": "Batches that the device computed.",
    "queue_s": "Seconds that requests waited before they were computed, added up.",
    "compute_s": "Seconds that the device was busy with them.",
}


def exposition(served: Sequence[Served] = ()) -> bytes:
    """All metrics in Prometheus' text format, those of deployments among them."""
    own = CollectorRegistry()
    own.register(_Deployments(served))
    return generate_latest(REGISTRY) + generate_latest(own)
