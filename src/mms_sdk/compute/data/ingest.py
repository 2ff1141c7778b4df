"""Ingest: from a source to a new snapshot, or to nothing at all.

Every file is looked at twice. The first time tells what it is, which cleaning and splitting decide by; the second time
brings it in. What is kept in between is a few hundred bytes a file, whatever the pictures weigh.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson

from mms_sdk.compute.data import clean
from mms_sdk.compute.data.bring import EXAMPLES, Tell, commit_part, told, tried
from mms_sdk.compute.data.clean import Looked, Present
from mms_sdk.compute.data.ingest_table import ingest_table
from mms_sdk.compute.data.media import Medium, Pictures, Recordings
from mms_sdk.compute.data.sources.folders import Entry, list_folder
from mms_sdk.compute.data.split import place
from mms_sdk.errors import DataError, InvalidInput, InvalidRequest, NothingToIngest
from mms_sdk.schema.dataset import (
    SPLITS,
    CleaningReport,
    CleaningStepReport,
    Column,
    DropDuplicates,
    DropUnreadable,
    IngestSpec,
    PictureStep,
    Reject,
    Snapshot,
)
from mms_sdk.schema.sources import AudioFolder, ImageFolder
from mms_sdk.storage import files
from mms_sdk.storage.changes import Addition
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.snapshots import OpenSnapshot

_WINDOW = 256  # files in flight: enough to keep every core busy, few enough to bound memory
_OWN = ("label", "source", "id", "split")

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What an ingest will write, decided before anything is written."""

    rows: list[Looked]
    columns: tuple[Column, ...]
    report: CleaningReport
    rejects: list[Reject]


def ingest(
    dataset: Dataset, spec: IngestSpec, *, job: str, folder: Path, tell: Tell
) -> tuple[Snapshot, CleaningReport]:
    """Brings what is new in a source into a dataset, as one snapshot.

    Files that are in the dataset already, with the same name and bytes, are passed over, so that ingesting a grown
    folder again adds what grew.

    Args:
        dataset: Where to.
        spec: Source, cleaning steps and split.
        job: Whose work it is; kept with the snapshot.
        folder: Where `rejects.jsonl` is written: every file left out, and why.
        tell: Called with the progress.

    Raises:
        NothingToIngest: The source has no usable row and the dataset has none either.
        DataError: A file is unreadable and no step drops such files; a class is too small to split; pictures that do
            not fit those in the dataset; a file that changed while it was read.
    """
    source = spec.source
    if not isinstance(source, ImageFolder | AudioFolder):
        return ingest_table(dataset, spec, source, job=job, folder=folder, tell=tell)
    medium: Medium = Pictures(source) if isinstance(source, ImageFolder) else Recordings(source)
    suited = PictureStep if isinstance(source, ImageFolder) else DropUnreadable | DropDuplicates
    if wrong := [step for step in spec.clean if not isinstance(step, suited)]:
        raise InvalidRequest(f"step {wrong[0].step} is not for {medium.noun}s; leave it out")
    entries, left_out = list_folder(source)
    looks = _in_threads(lambda entry: _look(entry, medium), entries)
    looked = list(told(looks, "files checked", len(entries), tell))

    def bring() -> tuple[Snapshot, CleaningReport]:
        base = dataset.snapshot() if dataset.snapshots() else None
        plan = _plan(looked, left_out, spec, medium, base, found=len(entries) + len(left_out))
        _write_rejects(folder, plan.rejects)
        return _write(dataset, plan, spec, medium, base, job, tell), plan.report

    return tried(bring)


def _look(entry: Entry, medium: Medium) -> Looked:
    try:
        data = entry.path.read_bytes()
        return Looked(entry=entry, id=_id(data), facts=medium.inspect(data))
    except InvalidInput as error:
        return Looked(entry=entry, id=_id(data), reason=error.message)
    except OSError as error:
        return Looked(entry=entry, reason=f"the file cannot be read: {error.strerror}")


def _id(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _plan(
    looked: Sequence[Looked],
    left_out: Sequence[Reject],
    spec: IngestSpec,
    medium: Medium,
    base: OpenSnapshot | None,
    found: int,
) -> _Plan:
    if base is not None:
        _refuse_other_columns(base, medium)
    held = _held(base)
    column = base.column(medium.column) if base else None
    new = [item for item in looked if (item.entry.source, item.id) not in held]
    present = Present(
        classes={content: label for (_, content), label in held.items()},
        size=column.fixed[:2] if column and not column.varies else None,
    )
    kept, steps, rejects = new, [], list(left_out)
    for step in spec.clean:
        kept, dropped = clean.apply(step, kept, present)
        rejects += dropped
        steps.append(CleaningStepReport(step=step.step, dropped=len(dropped), examples=tuple(dropped[:EXAMPLES])))
    _refuse_unreadable(kept, medium)
    if not kept and base is None:
        reasons = "; ".join(f"{reject.source}: {reject.reason}" for reject in rejects[:3])
        raise NothingToIngest(
            f"a dataset begins with at least one usable {medium.noun}; all {found} were left out: {reasons}; check the "
            f"folder, or the cleaning steps"
        )
    column = column or medium.describe([item.facts for item in kept])
    medium.refuse(kept, column)
    labels = _labels(kept, base)
    report = CleaningReport(
        found=found,
        already_present=len(looked) - len(new),
        kept=len(kept),
        steps=tuple(steps),
        notes=_notes(kept, left_out, labels, medium, column, clean.contradictions(new, present)),
    )
    return _Plan(rows=kept, columns=_columns(column, labels, base), report=report, rejects=rejects)


def _held(base: OpenSnapshot | None) -> dict[tuple[str, bytes], str]:
    # The class of each row by its source and content.
    if base is None:
        return {}
    labels = base.column("label").labels or ()
    sources = base.gather("source", np.arange(base.rows))
    rows = zip(sources, base.values("id"), base.values("label"), strict=True)
    return {(source.decode(), content.tobytes()): labels[code] for source, content, code in rows}


def _refuse_unreadable(kept: Sequence[Looked], medium: Medium) -> None:
    bad = [item for item in kept if item.facts is None]
    if bad:
        raise DataError(
            f"every file of an {medium.column} folder decodes; {len(bad)} of {len(kept)} do not, e.g. "
            f"{bad[0].entry.source}: {bad[0].reason}; mend them, or drop such files with clean=[mms.drop_unreadable()]"
        )


def _labels(kept: Sequence[Looked], base: OpenSnapshot | None) -> tuple[str, ...]:
    before = base.column("label").labels or () if base else ()
    return (*before, *sorted({item.entry.label for item in kept} - set(before)))


def _refuse_other_columns(base: OpenSnapshot, medium: Medium) -> None:
    there = [column.name for column in base.record.columns]
    brought = [medium.column, *_OWN]
    if there != brought:
        raise DataError(
            f"an ingest of {medium.noun}s brings the columns {brought}; {base.ref} has {there}; ingest into a new "
            f"dataset, and do there what was done to this one"
        )


def _columns(column: Column, labels: tuple[str, ...], base: OpenSnapshot | None) -> tuple[Column, ...]:
    if base is not None:
        return tuple(
            each.model_copy(update={"labels": labels}) if each.name == "label" else each for each in base.record.columns
        )
    return (
        column,
        Column(name="label", kind="label", dtype="int32", labels=labels),
        Column(name="source", kind="text", dtype="uint8", shape=None),
        Column(name="id", kind="id", dtype="uint8", shape=(16,)),
        Column(name="split", kind="split", dtype="uint8", labels=SPLITS),
    )


def _notes(
    kept: Sequence[Looked],
    left_out: Sequence[Reject],
    labels: Sequence[str],
    medium: Medium,
    column: Column,
    contradictions: Sequence[Reject],
) -> tuple[str, ...]:
    counts = medium.notes([item.facts for item in kept], column)
    notes = [f"{count} × {note}" for note, count in sorted(counts.items()) if count]
    if left_out:
        notes.append(f"{len(left_out)} × left out, e.g. {left_out[0].source}: {left_out[0].reason}")
    if contradictions:
        first = contradictions[0]
        notes.append(
            f"{len(contradictions)} × the same {medium.noun} in two classes, e.g. {first.source}: {first.reason}; only "
            f"one can be right"
        )
    if len(labels) == 1:
        notes.append(f"only one class, {labels[0]!r}; a classifier needs at least two")
    return tuple(notes)


def _write(
    dataset: Dataset,
    plan: _Plan,
    spec: IngestSpec,
    medium: Medium,
    base: OpenSnapshot | None,
    job: str,
    tell: Tell,
) -> Snapshot:
    column, label = plan.columns[:2]
    labels = label.labels or ()
    classes = np.array([labels.index(item.entry.label) for item in plan.rows], np.int32)
    ids = np.frombuffer(b"".join(item.id for item in plan.rows), np.uint8).reshape(-1, 16)
    splits = place(ids, classes, split=spec.split, before=_placed(base), labels=labels)
    addition = Addition(
        parts=(),
        columns=plan.columns,
        message=spec.message or f"ingest of {spec.source.told}",
        splits=Counter(SPLITS[code] for code in splits),
        classes=Counter(labels[code] for code in classes),
        split_rule=spec.split.model_dump(),
        provenance={
            "job": job,
            "ingest": spec.model_dump(mode="json"),
            "cleaning": plan.report.model_dump(mode="json"),
        },
    )
    record = base.record if base else None
    if not plan.rows:
        return dataset.commit(addition, base=record, rebase=False)
    with dataset.writer(plan.columns) as writer:
        at = 0
        values = _in_threads(lambda item: _bring(item, column, medium), plan.rows)
        for batch in _batches(told(values, f"{medium.noun}s stored", len(plan.rows), tell)):
            part = slice(at, at + len(batch))
            writer.write(
                {
                    medium.column: batch if column.varies else np.stack(batch),
                    "label": classes[part],
                    "source": [item.entry.source.encode() for item in plan.rows[part]],
                    "id": ids[part],
                    "split": splits[part],
                }
            )
            at += len(batch)
        return commit_part(dataset, writer, addition, base=record)


def _placed(base: OpenSnapshot | None) -> dict[int, Counter[str]]:
    if base is None:
        return {}
    placed: dict[int, Counter[str]] = defaultdict(Counter)
    for code, split in zip(base.values("label"), base.values("split"), strict=True):
        placed[int(code)][SPLITS[split]] += 1
    return placed


def _bring(item: Looked, column: Column, medium: Medium) -> Any:
    try:
        data = item.entry.path.read_bytes()
    except OSError as error:
        raise DataError(
            f"files stay where they are during an ingest; {item.entry.source} cannot be read any more "
            f"({error.strerror}); run the ingest again"
        ) from error
    if _id(data) != item.id:
        raise DataError(f"files stay as they are during an ingest; {item.entry.source} changed; run the ingest again")
    return medium.decode(data, column)


def _in_threads(work: Callable[[_In], _Out], items: Sequence[_In]) -> Iterator[_Out]:
    # A window at a time: `map` over everything would hold every result that nobody has taken yet.
    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="mms-ingest") as pool:
        for start in range(0, len(items), _WINDOW):
            yield from pool.map(work, items[start : start + _WINDOW])


def _batches(items: Iterable[_In]) -> Iterator[list[_In]]:
    waiting = iter(items)
    while batch := list(islice(waiting, _WINDOW)):
        yield batch


def _write_rejects(folder: Path, rejects: Sequence[Reject]) -> None:
    lines = b"".join(orjson.dumps(reject.model_dump()) + b"\n" for reject in rejects)
    files.replace(folder / "rejects.jsonl", lines)
