"""Whether the server is alive, and its metrics."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response

from mms_sdk.service import metrics
from mms_sdk.service.routes import ROLE_KEY, needs

router = APIRouter(tags=["health"])


@router.get("/healthz", openapi_extra={ROLE_KEY: "open"})
def healthz() -> dict[str, str]:
    """Whether the process answers at all."""
    return {"status": "ok"}


@router.get("/readyz", openapi_extra={ROLE_KEY: "open"})
def readyz() -> dict[str, str]:
    """Whether it is ready for traffic: deployments are warm before the server listens."""
    return {"status": "ready"}


@router.get("/metrics", **needs("viewer"))
def get_metrics() -> Response:
    """Prometheus metrics."""
    return Response(metrics.exposition(), media_type="text/plain; version=0.0.4")
