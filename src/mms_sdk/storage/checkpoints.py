"""Checkpoints: Orbax writes the arrays, a manifest makes them complete, a rename makes them visible.

Orbax alone may name a step as saved that never reached the disk, and restores a flipped bit without a word. So a
checkpoint counts only once its sealed folder has its final name, and is verified in full before it is restored.

Where several processes train together each writes its arrays, the first does the rest, and for all of them a checkpoint
is saved when the first has given it its name.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from mms_sdk.errors import CheckpointNotFound, Damaged, NotWritable
from mms_sdk.storage import fence, files, manifest, processes
from mms_sdk.storage.stores.local import LocalStore

STEP = re.compile(r"\d{10}")
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")
_TELLING = ("position", "history", "best_step", "stopped")
_LEFT_BEHIND = re.compile(r"\.\d{10}\.(partial|retired)")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk.

    Attributes:
        folder: `state/` is a plain Orbax checkpoint; `meta.json` says what it belongs to.
        step: Optimiser steps taken.
        meta: Reader position, metrics, stopping state and options, as JSON.
    """

    folder: Path
    step: int
    meta: dict[str, Any]

    def load(self, target: Any) -> Any:
        """Restores the arrays onto the target's shardings, after checking every byte.

        Args:
            target: Tree of `jax.ShapeDtypeStruct` with shardings.

        Raises:
            Damaged: The bytes are not those that were saved.
        """
        from orbax.checkpoint import v1 as ocp

        self.verify()
        return ocp.load(self.folder / "state", target)

    def verify(self) -> None:
        """Checks every byte against the manifest.

        Raises:
            Damaged: Something is missing or altered.
        """
        manifest.check(LocalStore(self.folder), what=f"checkpoint {self.folder.name}", content=True)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Opens a checkpoint folder without reading its arrays.

    Raises:
        CheckpointNotFound: There is none, or it was never completed.
        Damaged: Its `meta.json` is not readable.
    """
    if not manifest.is_sealed(folder):
        raise CheckpointNotFound(f"{folder} is not a complete checkpoint; it has no {manifest.NAME}")
    try:
        meta = orjson.loads((folder / "meta.json").read_bytes())
        return Checkpoint(folder, meta["step"], meta)
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise Damaged(f"checkpoint {folder} is damaged: its meta.json is not readable") from error


class CheckpointFolder:
    """The checkpoints of one job; saving goes on while training does.

    Args:
        root: Their folder.
        keep: How many of the newest to keep; the best is kept besides.
    """

    def __init__(self, root: Path, *, keep: int) -> None:
        self.root = files.make_folder(root)
        self._keep = keep
        self._best: int | None = None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="mms-checkpoint")
        self._pending: Future[None] | None = None
        self._saves = 0

    def save(self, step: int, arrays: Mapping[str, Any], meta: Mapping[str, Any], *, best: bool) -> None:
        """Starts saving; returns once the arrays may be changed. Waits for the save before, if that still runs.

        Args:
            step: Optimiser steps taken.
            arrays: Tree of JAX arrays.
            meta: JSON to keep beside them.
            best: Whether this is the best checkpoint so far.

        Raises:
            StorageFull, NotWritable: The save before this one failed; what was complete earlier stays.
            Conflict: This process is of an attempt at a job that is over.
        """
        fence.check()
        from orbax.checkpoint import v1 as ocp

        self.wait()
        if best:
            self._best = step
        first = processes.is_first()
        if processes.agreed(first and self._holds(step, meta)):
            return
        draft = self.root / f".{step:010d}.partial"
        with files.writing(self.root), _os_errors():
            if first:
                files.remove_tree(draft)
                draft.mkdir(mode=files.FOLDER_MODE)
            response = ocp.save_async(draft / "state", arrays)  # the processes wait for one another before they write
        self._saves += 1
        self._pending = self._worker.submit(self._complete, draft, step, {**meta, "step": step}, response)

    def adopt(self, checkpoint: Checkpoint, *, best: bool) -> None:
        """Takes over a verified copy of another job's checkpoint, so that a continued run lacks nothing.

        Raises:
            Damaged: The copy is not what was saved.
            StorageFull, NotWritable: It could not be written.
        """
        if best:
            self._best = checkpoint.step
        try:
            if processes.is_first():
                self._copy(checkpoint)
        finally:
            processes.wait_for_all(f"adopted {self._folder(checkpoint.step)}")
        self._check_named(checkpoint.step)

    def wait(self) -> None:
        """Waits until what was saved is on disk.

        Raises:
            StorageFull, NotWritable: It could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Waits, and ends the writing thread."""
        try:
            self.wait()
        finally:
            self._worker.shutdown()

    def all(self) -> list[Checkpoint]:
        """Complete checkpoints, oldest first; not verified."""
        names = sorted(path.name for path in self.root.iterdir() if STEP.fullmatch(path.name))
        return [open_checkpoint(self.root / name) for name in names]

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of one step.

        Raises:
            CheckpointNotFound: There is none.
        """
        return open_checkpoint(self._folder(step))

    def newest_good(self) -> tuple[Checkpoint, list[str]]:
        """The newest checkpoint whose every byte is right.

        Returns:
            The checkpoint, and what was wrong with newer ones.

        Raises:
            CheckpointNotFound: None is good.
        """
        faults: list[str] = []
        names = sorted((path.name for path in self.root.iterdir() if STEP.fullmatch(path.name)), reverse=True)
        for name in names:
            try:
                checkpoint = open_checkpoint(self.root / name)
                checkpoint.verify()
            except (Damaged, CheckpointNotFound) as error:
                faults.append(error.message)
            else:
                return checkpoint, faults
        raise CheckpointNotFound(f"no good checkpoint in {self.root}; found: {faults or 'none'}")

    def _copy(self, checkpoint: Checkpoint) -> None:
        draft = self.root / f".{checkpoint.step:010d}.partial"
        files.remove_tree(draft)
        with files.writing(self.root):
            shutil.copytree(checkpoint.folder, draft)
            manifest.check(LocalStore(draft), what=f"the copy of checkpoint {checkpoint.folder}", content=True)
            files.fsync_tree(draft)
            draft.rename(self._folder(checkpoint.step))
            files.fsync_folder(self.root)

    def _complete(self, draft: Path, step: int, meta: Mapping[str, Any], response: Any) -> None:
        saved = f"saved {self._folder(step)} {self._saves}"
        try:
            if processes.is_first():
                self._seal(draft, step, meta, response)
                self._retire()
            else:
                with files.writing(draft), _os_errors():
                    response.result()
        finally:
            processes.wait_for_all(saved)
        self._check_named(step)

    def _seal(self, draft: Path, step: int, meta: Mapping[str, Any], response: Any) -> None:
        try:
            with files.writing(draft):
                with _os_errors():
                    response.result()
                files.write_durable(draft / "meta.json", orjson.dumps(meta, option=orjson.OPT_INDENT_2))
                manifest.seal(draft)
                if self._folder(step).exists():
                    self._remove(step)
                draft.rename(self._folder(step))
                files.fsync_folder(self.root)
        except BaseException:
            files.remove_tree(draft)
            raise

    def _check_named(self, step: int) -> None:
        # What went wrong in the first process is raised there; the others must not go on as if it had not.
        if not manifest.is_sealed(self._folder(step)):
            raise NotWritable(
                f"checkpoint {self._folder(step)} was not completed by the first process; its own error says why"
            )

    def _holds(self, step: int, meta: Mapping[str, Any]) -> bool:
        if not self._folder(step).exists():
            return False
        try:
            held = self.at(step)
            held.verify()
        except (Damaged, CheckpointNotFound):  # a run that went back past it comes by again, and saves it anew
            self._remove(step)
            return False
        # The same step at the end of an epoch and behind it: what was measured in between is not in the first.
        return all(held.meta.get(name) == meta.get(name) for name in _TELLING)

    def _retire(self) -> None:
        steps = sorted(int(path.name) for path in self.root.iterdir() if STEP.fullmatch(path.name))
        for step in steps[: -self._keep]:
            if step != self._best:
                self._remove(step)
        for path in self.root.iterdir():
            if _LEFT_BEHIND.fullmatch(path.name):  # by a process that was killed; nothing else is under way now
                files.remove_tree(path)

    def _remove(self, step: int) -> None:
        # Renamed first, so that a kill half-way leaves no folder that looks complete.
        doomed = self.root / f".{step:010d}.retired"
        files.remove_tree(doomed)
        with files.writing(self.root):
            self._folder(step).rename(doomed)
        files.remove_tree(doomed)

    def _folder(self, step: int) -> Path:
        return self.root / f"{step:010d}"


def _not_raised(record: logging.LogRecord) -> bool:
    return _OS_ERROR.search(f"{record.getMessage()} {record.exc_info}") is None


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    # TensorStore, which writes for Orbax, names what the operating system refused only in the text of a ValueError.
    # Orbax logs it with two hundred lines of its threads' frames; whoever waits for the save is told by what we raise.
    logging.getLogger("absl").addFilter(_not_raised)  # a filter that is there already is not added again
    try:
        yield
    except ValueError as error:
        told = _OS_ERROR.search(str(error))
        if told is None:
            raise
        raise OSError(int(told[1]), os.strerror(int(told[1]))) from error
