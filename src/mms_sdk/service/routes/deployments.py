"""Deployments."""

from __future__ import annotations

from fastapi import APIRouter

from mms_sdk.schema.deployment import CreateDeployment, Deployment
from mms_sdk.schema.names import Name, parse_model_ref
from mms_sdk.service.routes import needs
from mms_sdk.service.state import Service

router = APIRouter(prefix="/v1/deployments", tags=["deployments"])


@router.get("", **needs("viewer"))
def list_deployments(service: Service) -> list[Deployment]:
    """What is served."""
    return service.deployments.list()


@router.get("/{name}", **needs("viewer"))
def get_deployment(service: Service, name: Name) -> Deployment:
    """One deployment."""
    return service.deployments.get(name).told()


@router.put("/{name}", **needs("editor"))
def put_deployment(service: Service, name: Name, asked: CreateDeployment) -> Deployment:
    """Serves a model version under a name; answers once it is warm."""
    return service.deployments.put(name, parse_model_ref(asked.model), max_batch=asked.max_batch)


@router.delete("/{name}", status_code=204, **needs("editor"))
def delete_deployment(service: Service, name: Name) -> None:
    """Serves it no more."""
    service.deployments.remove(name)
