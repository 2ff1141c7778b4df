"""Whether the server is alive, what it is, and its metrics."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response

import mms_sdk
from mms_sdk.service import metrics
from mms_sdk.service.oip import EXTENSIONS
from mms_sdk.service.routes import ROLE_KEY, needs
from mms_sdk.service.state import Service

router = APIRouter(tags=["health"])


@router.get("/healthz", openapi_extra={ROLE_KEY: "open"})
def healthz() -> dict[str, str]:
    """Whether the process answers at all."""
    return {"status": "ok"}


@router.get("/readyz", openapi_extra={ROLE_KEY: "open"})
def readyz() -> dict[str, str]:
    """Whether it is ready for traffic: deployments are warm before the server listens."""
    return {"status": "ready"}


@router.get("/v2", **needs("predict"))
def get_server() -> dict[str, object]:
    """What this server is, in the words of the Open Inference Protocol."""
    return {"name": "mms", "version": mms_sdk.__version__, "extensions": list(EXTENSIONS)}


@router.get("/v2/health/live", **needs("predict"))
def is_live() -> dict[str, bool]:
    """`/healthz`, in the words of the Open Inference Protocol."""
    return {"live": True}


@router.get("/v2/health/ready", **needs("predict"))
def is_ready() -> dict[str, bool]:
    """`/readyz`, in the words of the Open Inference Protocol."""
    return {"ready": True}


@router.get("/metrics", **needs("viewer"))
def get_prometheus_metrics(service: Service) -> Response:
    """Prometheus metrics."""
    return Response(metrics.exposition(service.deployments.served()), media_type="text/plain; version=0.0.4")
