"""Models, their versions and aliases."""

from __future__ import annotations

import threading
from typing import Any

from fastapi import APIRouter

from mms_sdk.errors import InvalidName
from mms_sdk.schema.model import ModelCard, ModelVersion, RegisterVersion, SetAlias
from mms_sdk.schema.names import ModelRef, Name, parse_model_ref
from mms_sdk.service.routes import needs
from mms_sdk.service.state import Service, ServiceState
from mms_sdk.storage import files, manifest
from mms_sdk.storage.stores.local import LocalStore

router = APIRouter(prefix="/v1/models", tags=["models"])
NEWEST = "newest"
_registering = threading.Lock()


@router.get("", **needs("viewer"))
def list_models(service: Service) -> list[ModelVersion]:
    """All versions of all models, newest first within each."""
    return [_version(service, row) for row in service.workspace.catalog.models.list()]


@router.get("/{name}/versions", **needs("viewer"))
def list_versions(service: Service, name: Name) -> list[ModelVersion]:
    """All versions of a model, newest first."""
    service.workspace.catalog.models.resolve(ModelRef(name=name))
    return [_version(service, row) for row in service.workspace.catalog.models.list(name)]


@router.get("/{name}/versions/{version}", **needs("viewer"))
def get_version(service: Service, name: Name, version: str) -> ModelVersion:
    """One version, by number or alias, or the `newest`."""
    return _version(service, resolved(service, name, version))


@router.post("/{name}/versions", status_code=201, **needs("editor"))
def register_version(service: Service, name: Name, asked: RegisterVersion) -> ModelVersion:
    """Makes a staged artefact the next version, once every byte of it is verified and it loads."""
    from mms_sdk.compute.inference.export import read_card
    from mms_sdk.compute.inference.predictor import Predictor

    workspace = service.workspace
    with _registering:  # whoever registers the same one twice at once finds it gone, not half of it
        staged = workspace.staged(asked.staged)
        manifest.check(LocalStore(staged), what=f"staged artefact {asked.staged}", content=True)
        card = read_card(staged)
        Predictor(staged, buckets=(1,))  # what does not load here will not load in the night it is deployed
        artifact, folder, digest = workspace.keep_artifact(asked.staged)
    size = files.tree_bytes(folder)
    version = workspace.catalog.models.add(name, artifact=artifact, digest=digest, size=size, card=card)
    return _version(service, workspace.catalog.models.resolve(ModelRef(name=name, version=version)))


@router.put("/{name}/aliases/{alias}", **needs("editor"))
def set_alias(service: Service, name: Name, alias: Name, asked: SetAlias) -> ModelVersion:
    """Points an alias at a version."""
    ref = parse_model_ref(f"{name}@{alias}")
    if isinstance(ref.version, int) or alias == NEWEST:
        raise InvalidName(f"an alias is neither a number nor {NEWEST!r}, which name versions already; got {alias!r}")
    service.workspace.catalog.models.set_alias(name, alias, asked.version)
    return _version(service, service.workspace.catalog.models.resolve(ModelRef(name=name, version=asked.version)))


def resolved(service: ServiceState, name: str, version: str) -> dict[str, Any]:
    """The catalog's row of a version, by number or alias, or of the `newest`."""
    ref = ModelRef(name=name) if version == NEWEST else parse_model_ref(f"{name}@{version}")
    return service.workspace.catalog.models.resolve(ref)


def _version(service: ServiceState, row: dict[str, Any]) -> ModelVersion:
    aliases = service.workspace.catalog.models.aliases()
    return ModelVersion(
        model=row["model"],
        version=row["version"],
        created_at=row["created_at"],
        artifact=row["artifact"],
        bytes=row["bytes"],
        aliases=aliases.get((row["model"], row["version"]), ()),
        card=ModelCard.model_validate(row["card"]),
        location=str(service.workspace.artifact_location(row["artifact"])),
    )
