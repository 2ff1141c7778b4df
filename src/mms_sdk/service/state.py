"""What the routes work with: one object, handed over by the app."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from mms_sdk.errors import Forbidden
from mms_sdk.service.deployments import Deployments
from mms_sdk.service.jobs import JobRunner
from mms_sdk.settings import ServerSettings
from mms_sdk.storage.workspace import Workspace


@dataclass(frozen=True)
class ServiceState:
    """Workspace, running jobs and deployments of one app."""

    workspace: Workspace
    settings: ServerSettings
    jobs: JobRunner
    deployments: Deployments

    def check_source(self, path: str) -> None:
        """Refuses a folder that callers may not have read.

        Raises:
            Forbidden: It lies outside the declared roots, links followed.
        """
        roots = self.settings.source_roots
        if roots is None:
            return
        asked = Path(path).expanduser().resolve()
        if not any(asked.is_relative_to(root.resolve()) for root in roots):
            raise Forbidden(
                f"this server reads sources only below {[str(root) for root in roots] or 'no folder at all'}; got "
                f"{path!r}; start it with mms serve --source-root FOLDER, or ingest with an embedded workspace"
            )


def service_state(request: Request) -> ServiceState:
    """The app's state, for a route."""
    state: ServiceState = request.app.state.service
    return state


Service = Annotated[ServiceState, Depends(service_state)]
