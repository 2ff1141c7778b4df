"""A workspace folder: where everything lies, and the one place that decides it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import orjson

from mms_sdk.errors import Damaged, DatasetNotFound, InvalidRequest, ModelNotFound, NotFound, NotWritable
from mms_sdk.schema.names import check_name
from mms_sdk.settings import CATALOG_VARIABLE, DATASETS_VARIABLE, WORKSPACE_VARIABLE
from mms_sdk.storage import files, manifest
from mms_sdk.storage.audit import FOLDER as FOLDER_OF_AUDIT
from mms_sdk.storage.audit import AuditLog
from mms_sdk.storage.bundles import Bundles
from mms_sdk.storage.catalog import Catalog
from mms_sdk.storage.databases import database_at
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.ids import is_id, new_id, now
from mms_sdk.storage.remedies import RESTORE
from mms_sdk.storage.secrets import FOLDER, Secrets
from mms_sdk.storage.stores.base import Store
from mms_sdk.storage.stores.local import LocalStore
from mms_sdk.storage.stores.opening import refuse_shared_writing, store_at
from mms_sdk.storage.stores.remote import at_once
from mms_sdk.storage.uploads import Uploads

WORKSPACE_VERSION = 1


class Workspace:
    """Everything MMS keeps, in one private folder.

    ```
    workspace.json   format version, the workspace's id, and which database the catalog is
    catalog.sqlite   jobs, model versions, aliases, deployments, tokens, where they are not in PostgreSQL
    datasets/NAME/   see `docs/dataset-format.md`; where they are not in another store
    copies/          what was read from datasets in another store
    jobs/ID/         metrics.jsonl, checkpoints/, heartbeat.RANK, files the job made; attempts/N/ of one that an engine
                     runs, with what its code kept in artifacts/
    bundles/         code of jobs, by its SHA-256; bundles.lock is held while one is removed
    environments/    packages that jobs required; in no backup
    audit/           who changed what through a server, and who was refused; in no backup
    secrets/NAME     what jobs see as variables; in no backup
    artifacts/ID/    sealed model artefacts; a version is a catalog row that names one
    staging/ID/      artefacts on their way in
    uploads/ID/      files on their way in; in no backup
    ```

    Args:
        root: The folder; made, readable by its owner only, if it is not there.
        catalog: The URL of a PostgreSQL database of this workspace's own, e.g. `postgresql://mms@db.example/mms`; a
            SQLite file in the folder if left out. A workspace stays with the one it was made with.
        datasets: A folder or URL where the datasets lie, see `store_at`; the folder's `datasets` if left out. Likewise.
        make: Whether a folder that is not there becomes one.

    Raises:
        NotFound: There is none, and `make` is False.
        NotWritable: The folder cannot be made or written.
        InvalidRequest: There is something else at that path, or a workspace with another catalog.
    """

    def __init__(
        self, root: Path, *, catalog: str | None = None, datasets: str | None = None, make: bool = True
    ) -> None:
        self.root = root.expanduser().absolute()
        self.datasets = store_at(datasets or self.root / "datasets", copies=self.root / "copies")
        self._datasets_name = self.datasets.url if datasets else "datasets"
        self._catalog = catalog or self.root / "catalog.sqlite"
        # The folder's own file goes by its kind, since a folder may be moved.
        self._catalog_name = database_at(catalog).name if catalog else "sqlite"
        described = self.root / "workspace.json"
        with files.writing(self.root):
            if self.root.exists() and not self.root.is_dir():
                raise InvalidRequest(f"a workspace is a folder; {self.root} is a file; name another with workspace=")
            if not described.is_file():
                if not make:
                    raise NotFound(
                        f"what only looks at a workspace, or changes what is in it, makes none; there is none in "
                        f"{self.root}; name another with --workspace or $MMS_WORKSPACE, or make it by bringing "
                        f"something in: mms demo, mms datasets ingest NAME SOURCE, or mms.connect(workspace=...)"
                    )
                self._make(described)
        self._check(described)

    def __repr__(self) -> str:
        return f"<workspace {self.root}>"

    @cached_property
    def catalog(self) -> Catalog:
        """The catalog, opened and migrated on first use.

        Raises:
            Conflict: The database is the catalog of another workspace.
        """
        catalog = Catalog(self._catalog)
        try:
            if self._catalog_name != "sqlite":
                catalog.give_to(self.id)
        except BaseException:
            catalog.close()
            raise
        return catalog

    @property
    def audit(self) -> AuditLog:
        """Who changed what through a server, and who was refused."""
        return AuditLog(self.root / FOLDER_OF_AUDIT, self.catalog)

    def variables(self) -> dict[str, str]:
        """The environment in which `connect()` opens this very workspace, in a process that works for this one."""
        told = {WORKSPACE_VARIABLE: str(self.root)}
        if isinstance(self._catalog, str):
            told[CATALOG_VARIABLE] = self._catalog
        if self._datasets_name != "datasets":
            told[DATASETS_VARIABLE] = self._datasets_name
        return told

    def dataset_names(self) -> list[str]:
        """Datasets that have at least one snapshot, by name."""
        names = self.datasets.names("")
        held = at_once(lambda name: bool(Dataset(self.datasets.below(name), name).snapshots()), names)
        return [name for name, there in zip(names, held, strict=True) if there]

    def dataset(self, name: str) -> Dataset:
        """Opens a dataset.

        Raises:
            DatasetNotFound: There is none of that name, or nothing was ever committed to it.
        """
        try:
            dataset = Dataset.open(self._dataset_store(name), name)
            if dataset.snapshots():
                return dataset
        except DatasetNotFound:
            pass
        raise DatasetNotFound(
            f"no dataset {name!r} in {self.datasets.url}; there are {self.dataset_names() or 'none yet'}"
        )

    def open_or_create_dataset(self, name: str) -> Dataset:
        """Opens a dataset to write to, making it if it is not there."""
        return Dataset.open_or_create(self._dataset_store(name), name)

    @property
    def bundles(self) -> Bundles:
        """Code of jobs."""
        return Bundles(self.root / "bundles")

    @property
    def secrets(self) -> Secrets:
        """What jobs see as variables, by name."""
        return Secrets(self.root / FOLDER)

    @property
    def uploads(self) -> Uploads:
        """Files on their way in from elsewhere."""
        return Uploads(self.root / "uploads")

    def job_folder(self, job: str) -> Path:
        """The folder of a job's files."""
        return files.make_folder(self.root / "jobs" / job)

    def stage(self) -> tuple[str, Path]:
        """An empty folder in which an artefact is put together, and the id to register it by."""
        staged = new_id()
        return staged, files.make_folder(self.root / "staging" / staged)

    def staged(self, staged: str) -> Path:
        """The folder of something staged.

        Raises:
            ModelNotFound: Nothing is staged under that id.
        """
        folder = self.root / "staging" / staged
        if not is_id(staged) or not folder.is_dir():
            raise ModelNotFound(f"nothing is staged as {staged}; stage an artefact first, then register it once")
        return folder

    def keep_artifact(self, staged: str) -> tuple[str, Path, str]:
        """Verifies a staged artefact in full and moves it to where artefacts are kept.

        Nobody sees it until a catalog row names it.

        Returns:
            Artefact id, folder and manifest digest.

        Raises:
            Damaged: The artefact is not what its manifest says.
        """
        source = self.staged(staged)
        digest = manifest.check(LocalStore(source), what=f"staged artefact {staged}", content=True)
        kept = files.make_folder(self.root / "artifacts") / staged
        with files.writing(kept):
            source.rename(kept)
            files.fsync_folder(kept.parent)
        return staged, kept, digest

    def artifact(self, artifact: str, *, digest: str, what: str) -> Path:
        """The folder of an artefact, every byte of it verified.

        Raises:
            Damaged: It is not what was registered.
        """
        folder = self.root / "artifacts" / artifact
        manifest.check(LocalStore(folder), what=what, expected=digest, content=True)
        return folder

    def artifact_location(self, artifact: str) -> Path:
        """Where an artefact lies, for people; not verified."""
        return self.root / "artifacts" / artifact

    def close(self) -> None:
        """Closes the catalog."""
        if "catalog" in self.__dict__:
            self.catalog.close()

    def _dataset_store(self, name: str) -> Store:
        return self.datasets.below(check_name(name, what="dataset"))

    def _make(self, path: Path) -> None:
        files.make_folder(self.root)
        others = [found.name for found in self.root.iterdir() if not files.is_draft(found)]
        if others and not path.is_file():  # another process may have made the same workspace in this moment
            raise InvalidRequest(
                f"a new workspace is made in an empty or absent folder; {self.root} holds {others[0]!r}; name another "
                f"with workspace= or $MMS_WORKSPACE"
            )
        told = {
            "format": "mms-workspace",
            "format_version": WORKSPACE_VERSION,
            "id": new_id(),
            "created_at": now(),
            "catalog": self._catalog_name,
            "datasets": self._datasets_name,
        }
        if not self.datasets.local:
            refuse_shared_writing(self.datasets)
        try:
            files.publish(path, orjson.dumps(told, option=orjson.OPT_INDENT_2))
        except FileExistsError:
            return  # another process was first

    def _check(self, path: Path) -> None:
        try:
            told = orjson.loads(path.read_bytes())
            version, catalog, self.id = told["format_version"], told.get("catalog", "sqlite"), told.get("id", "")
            datasets = told.get("datasets", "datasets")
        except PermissionError as error:
            raise NotWritable(f"{path} cannot be read by this user; use another workspace folder") from error
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise Damaged(f"{path} is not a workspace description; {RESTORE}") from error
        if version != WORKSPACE_VERSION:
            raise Damaged(f"{path} has version {version}; this MMS reads {WORKSPACE_VERSION}; upgrade mms-sdk")
        if catalog != self._catalog_name:
            right = f"unset {CATALOG_VARIABLE}" if catalog == "sqlite" else f"set {CATALOG_VARIABLE} to its URL"
            raise InvalidRequest(
                f"a workspace stays with the catalog it was made with; that of {self.root} is {catalog}, asked for was "
                f"{self._catalog_name}; {right}, or, if the database has moved, write its new name into {path}"
            )
        if datasets != self._datasets_name:
            right = f"unset {DATASETS_VARIABLE}" if datasets == "datasets" else f"set {DATASETS_VARIABLE} to its URL"
            raise InvalidRequest(
                f"a workspace stays with the store of datasets it was made with; that of {self.root} is {datasets}, "
                f"asked for was {self._datasets_name}; {right}, or, if they have moved, write their URL into {path}"
            )
