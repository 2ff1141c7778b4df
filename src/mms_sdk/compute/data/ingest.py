"""Ingest: from a source to a new snapshot, or to nothing at all.

Every file is looked at twice. The first time tells what it is, which cleaning and splitting decide by; the second time
brings it in. What is kept in between is a few hundred bytes a file, whatever the pictures weigh.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson

from mms_sdk.compute.data import clean, stored
from mms_sdk.compute.data.bring import EXAMPLES, Tell, digest_of, told, tried, write_rows
from mms_sdk.compute.data.clean import Looked, Present
from mms_sdk.compute.data.ingest_table import as_before, ingest_table
from mms_sdk.compute.data.kinds.tabular import values_in
from mms_sdk.compute.data.media import Medium, medium_of
from mms_sdk.compute.data.sources.meant import folder_meant
from mms_sdk.compute.data.sources.open import open_source
from mms_sdk.compute.data.sources.rows import Table
from mms_sdk.compute.data.sources.samples import OWN, Collection, Entry
from mms_sdk.compute.data.split import place, refuse_by_column
from mms_sdk.errors import DataError, InvalidInput, InvalidRequest, NothingToIngest
from mms_sdk.schema.cleaning import CleaningReport, CleaningStepReport, DropNearDuplicates, Reject
from mms_sdk.schema.dataset import SPLITS, Column, Snapshot
from mms_sdk.schema.sources import AudioFolder, ImageFolder, VideoFolder
from mms_sdk.schema.specs import IngestSpec
from mms_sdk.storage import files
from mms_sdk.storage.changes import Addition
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.parts import laid_out
from mms_sdk.storage.snapshots import OpenSnapshot

_WINDOW = 256  # samples in flight: enough to keep every core busy, few enough to bound memory
_WINDOW_BYTES = 2**28
_PROBED = 16
_PROBE_S = 0.25
_WORTH_A_THREAD_S = 0.00025

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
        folder: Where `rejects.jsonl` is written: every file left out, and why; and what can be read only once, until it
            is in.
        tell: Called with the progress.

    Raises:
        NothingToIngest: The source has no usable row and the dataset has none either.
        DataError: A file is unreadable and no step drops such files; a class is too small to split; pictures that do
            not fit those in the dataset; a file that changed while it was read.
    """
    spool = files.make_folder(folder / "spool")
    opened = open_source(spec.source, spool=spool, tell=tell)
    done = ingest_opened(dataset, spec, opened, job=job, folder=folder, tell=tell)
    files.remove_tree(spool)  # after an error it stays: the job's next try need not fetch it again
    return done


def ingest_opened(
    dataset: Dataset,
    spec: IngestSpec,
    opened: Collection | Table,
    *,
    job: str,
    folder: Path,
    tell: Tell,
    if_nothing: bool = True,
) -> tuple[Snapshot, CleaningReport]:
    """`ingest` of a source that was looked through already, or of a part of it.

    Args, errors: See `ingest`; `if_nothing` says whether there is a snapshot too if there is no new row.
    """
    if isinstance(opened, Table):
        return ingest_table(dataset, spec, opened, job=job, folder=folder, tell=tell, if_nothing=if_nothing)
    return _ingest_samples(dataset, spec, opened, job=job, folder=folder, tell=tell, if_nothing=if_nothing)


def _ingest_samples(
    dataset: Dataset,
    spec: IngestSpec,
    samples: Collection,
    *,
    job: str,
    folder: Path,
    tell: Tell,
    if_nothing: bool,
) -> tuple[Snapshot, CleaningReport]:
    hashed = any(isinstance(step, DropNearDuplicates) for step in spec.clean)
    medium = medium_of(samples.taken, hashed=hashed)
    if wrong := [step for step in spec.clean if not isinstance(step, medium.steps)]:
        raise InvalidRequest(f"step {wrong[0].step} is not for {medium.noun}s; leave it out")
    looks = _in_threads(lambda entry: _look(entry, medium), samples.entries)
    looked = list(told(looks, "files checked", len(samples.entries), tell))

    def bring() -> tuple[Snapshot, CleaningReport]:
        base = dataset.snapshot() if dataset.snapshots() else None
        plan = _plan(looked, samples, spec, medium, base)
        if base is None:
            plan = replace(plan, columns=laid_out(plan.columns, spec.profile, remote=not dataset.store.local))
        _write_rejects(folder, plan.rejects)
        if base is not None and not plan.rows and not if_nothing:
            return base.record, plan.report
        return _write(dataset, plan, spec, medium, base, job, tell), plan.report

    return tried(bring)


def _look(entry: Entry, medium: Medium) -> Looked:
    try:
        sample = entry.read()
    except InvalidInput as error:
        return Looked(entry=entry, reason=error.message)
    except OSError as error:
        return Looked(entry=entry, reason=f"the file cannot be read: {error.strerror or error}")
    content = content_id(sample.data)
    if sample.label != entry.label:
        entry = replace(entry, label=sample.label)
    looked = Looked(entry=entry, id=content, size=len(sample.data), values=_digest(sample.values))
    try:
        return replace(looked, facts=medium.inspect(sample.data))
    except InvalidInput as error:
        return replace(looked, reason=error.message)


def _digest(values: Mapping[str, Any]) -> bytes:
    told = orjson.dumps(values, default=repr, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY)
    return content_id(told) if values else b""


def content_id(data: bytes) -> bytes:
    """What a row of a file is known by: BLAKE2b of the file's bytes, 16 bytes."""
    return hashlib.blake2b(data, digest_size=16).digest()


def _plan(
    looked: Sequence[Looked], samples: Collection, spec: IngestSpec, medium: Medium, base: OpenSnapshot | None
) -> _Plan:
    beside = (*medium.beside, *samples.columns)
    found = len(samples.entries) + len(samples.rejects)
    if base is not None:
        refuse_other_columns(base, medium, labelled=samples.labelled, beside=beside)
    held = _held(base)
    column = base.column(medium.column) if base else None
    new = [item for item in looked if (item.entry.source, item.id) not in held]
    present = Present(
        classes={content: label for (_, content), label in held.items()},
        size=column.fixed[:2] if column and not column.varies else None,
        hashes=lambda: stored.picture_hashes(base) if base else (),
    )
    kept, steps, rejects = new, [], list(samples.rejects)
    for step in spec.clean:
        kept, dropped = clean.apply(step, kept, present)
        rejects += dropped
        steps.append(CleaningStepReport(step=step.step, dropped=len(dropped), examples=tuple(dropped[:EXAMPLES])))
    _refuse_unreadable(kept, medium, samples)
    if not kept and base is None:
        reasons = "; ".join(f"{reject.source}: {reject.reason}" for reject in rejects[:3])
        raise NothingToIngest(
            f"a dataset begins with at least one usable {medium.noun}; all {found} were left out: {reasons}; check the "
            f"folder, or the cleaning steps{_meant(samples)}"
        )
    column = column or medium.describe([item.facts for item in kept])
    medium.refuse(kept, column)
    labels = _labels(kept, samples, base) if samples.labelled else None
    report = CleaningReport(
        found=found,
        already_present=len(looked) - len(new),
        kept=len(kept),
        steps=tuple(steps),
        notes=_notes(kept, samples, labels, medium, column, clean.contradictions(new, present)),
    )
    columns = columns_of(column, labels, base, beside=beside)
    return _Plan(rows=kept, columns=columns, report=report, rejects=rejects)


def _held(base: OpenSnapshot | None) -> dict[tuple[str, bytes], str]:
    # The class of each row by its source and content.
    if base is None:
        return {}
    label = base.record.column("label")
    labels = (label.labels or () if label else None) or ("",)
    codes = base.values("label") if label else np.zeros(base.rows, np.int32)
    sources = base.gather("source", np.arange(base.rows))
    rows = zip(sources, base.values("id"), codes, strict=True)
    return {(source.decode(), content.tobytes()): labels[code] for source, content, code in rows}


def _meant(samples: Collection) -> str:
    taken = samples.taken
    return folder_meant(taken) if isinstance(taken, ImageFolder | AudioFolder | VideoFolder) else ""


def _refuse_unreadable(kept: Sequence[Looked], medium: Medium, samples: Collection) -> None:
    bad = [item for item in kept if item.facts is None]
    if bad:
        meant = _meant(samples) if len(bad) == len(kept) else ""
        raise DataError(
            f"every {medium.noun} of a source decodes; {len(bad)} of {len(kept)} do not, e.g. "
            f"{bad[0].entry.source}: {bad[0].reason}; mend them, or drop such files with "
            f"clean=[mms.drop_unreadable()]{meant}"
        )


def _labels(kept: Sequence[Looked], samples: Collection, base: OpenSnapshot | None) -> tuple[str, ...]:
    before = base.column("label").labels or () if base else ()
    named = tuple(label for label in samples.labels if label not in before)
    return (*before, *named, *sorted({item.entry.label for item in kept} - {*before, *named}))


def refuse_other_columns(
    base: OpenSnapshot, medium: Medium, *, labelled: bool = True, beside: Sequence[Column] = ()
) -> None:
    """Refuses a dataset whose columns are not those that an ingest of the medium brings.

    Args:
        base: The dataset's newest snapshot.
        medium: What is brought.
        labelled: Whether it has classes.
        beside: What else is brought.

    Raises:
        DataError: They are not.
    """
    there = [column.name for column in base.record.columns]
    label = ["label"] if labelled else []
    brought = [medium.column, *label, *(column.name for column in beside), *OWN]
    if there != brought:
        raise DataError(
            f"an ingest of {medium.noun}s brings the columns {brought}; {base.ref} has {there}; ingest into a new "
            f"dataset, and do there what was done to this one"
        )
    for column in beside:
        as_before(column, base.record.column(column.name), base)


def columns_of(
    column: Column, labels: tuple[str, ...] | None, base: OpenSnapshot | None, *, beside: Sequence[Column] = ()
) -> tuple[Column, ...]:
    """The columns that an ingest of samples brings: what they hold, and what is known of them, with new labels."""
    if base is not None:
        grown = {each.name: _grown(each, base.column(each.name)) for each in beside}
        return tuple(
            each.model_copy(update={"labels": labels}) if each.name == "label" else grown.get(each.name, each)
            for each in base.record.columns
        )
    return (
        column,
        *([] if labels is None else [Column(name="label", kind="label", dtype="int32", labels=labels)]),
        *beside,
        Column(name="source", kind="text", dtype="uint8", shape=None),
        Column(name="id", kind="id", dtype="uint8", shape=(16,)),
        Column(name="split", kind="split", dtype="uint8", labels=SPLITS),
    )


def _grown(column: Column, before: Column) -> Column:
    if column.kind != "category":
        return before
    known = before.labels or ()
    return before.model_copy(update={"labels": (*known, *(x for x in column.labels or () if x not in known))})


def _notes(
    kept: Sequence[Looked],
    samples: Collection,
    labels: Sequence[str] | None,
    medium: Medium,
    column: Column,
    contradictions: Sequence[Reject],
) -> tuple[str, ...]:
    counts = medium.notes([item.facts for item in kept], column)
    notes = [f"{count} × {note}" for note, count in sorted(counts.items()) if count]
    if left_out := samples.rejects:
        notes.append(f"{len(left_out)} × left out, e.g. {left_out[0].source}: {left_out[0].reason}")
    if contradictions:
        first = contradictions[0]
        notes.append(
            f"{len(contradictions)} × the same {medium.noun} in two classes, e.g. {first.source}: {first.reason}; only "
            f"one can be right"
        )
    if labels is not None and len(labels) == 1:
        notes.append(f"only one class, {labels[0]!r}; a classifier needs at least two")
    return (*notes, *samples.notes)


def _write(
    dataset: Dataset,
    plan: _Plan,
    spec: IngestSpec,
    medium: Medium,
    base: OpenSnapshot | None,
    job: str,
    tell: Tell,
) -> Snapshot:
    refuse_by_column(spec.split, what="files of a folder")
    columns = {column.name: column for column in plan.columns}
    column, label = columns[medium.column], columns.get("label")
    labels = (label.labels or () if label else None) or ("",)
    codes = {name: code for code, name in enumerate(labels)}
    classes = np.array([codes[item.entry.label] for item in plan.rows], np.int32)
    ids = np.frombuffer(b"".join(item.id for item in plan.rows), np.uint8).reshape(-1, 16)
    if given := [item.entry.split for item in plan.rows if item.entry.split]:
        splits = np.array([SPLITS.index(name) for name in given], np.uint8)
    else:
        splits = place(ids, classes, split=spec.split, before=_placed(base), labels=labels)
    addition = Addition(
        parts=(),
        columns=plan.columns,
        message=spec.message or f"ingest of {spec.source.told}",
        splits=Counter(SPLITS[code] for code in splits),
        classes=Counter(labels[code] for code in classes) if label else {},
        split_rule={"by": "source"} if given else spec.split.model_dump(exclude_none=True),
        provenance={
            "job": job,
            "ingest": spec.model_dump(mode="json"),
            "cleaning": plan.report.model_dump(mode="json"),
        },
    )
    record = base.record if base else None
    if not plan.rows:
        return dataset.commit(addition, base=record, rebase=False)
    beside = [each for each in plan.columns if each.name not in (column.name, "label", *OWN)]

    def rows(start: int) -> Iterator[Mapping[str, Any]]:
        left = plan.rows[start:]
        brought = _in_threads(lambda item: _bring(item, column, medium), left, size=attrgetter("size"))
        stored = told(brought, f"{medium.noun}s stored", len(plan.rows), tell, done=start)
        at = start
        for window in _windows(left, size=attrgetter("size")):
            batch = list(islice(stored, len(window)))
            part = slice(at, at + len(batch))
            decoded = [value for value, _ in batch]
            yield {
                medium.column: decoded if column.varies else np.stack(decoded),
                **({"label": classes[part]} if label else {}),
                **{each.name: values_in(each, [values[each.name] for _, values in batch]) for each in beside},
                "source": [item.entry.source.encode() for item in plan.rows[part]],
                "id": ids[part],
                "split": splits[part],
            }
            at += len(batch)

    names, values = [item.entry.source for item in plan.rows], [item.values.hex() for item in plan.rows]
    work = digest_of(spec, plan.report, plan.columns, ids, classes, splits, names, values)
    return write_rows(dataset, addition, rows, count=len(plan.rows), base=record, work=work)


def _placed(base: OpenSnapshot | None) -> dict[int, Counter[str]]:
    if base is None:
        return {}
    placed: dict[int, Counter[str]] = defaultdict(Counter)
    splits = base.values("split")
    codes = base.values("label") if base.record.column("label") else np.zeros(len(splits), np.int32)
    for code, split in zip(codes, splits, strict=True):
        placed[int(code)][SPLITS[split]] += 1
    return placed


def _bring(item: Looked, column: Column, medium: Medium) -> tuple[Any, dict[str, Any]]:
    try:
        sample = item.entry.read()
    except (OSError, InvalidInput) as error:
        raise DataError(
            f"files stay where they are during an ingest; {item.entry.source} cannot be read any more "
            f"({getattr(error, 'strerror', None) or error}); run the ingest again"
        ) from error
    now = content_id(sample.data), sample.label, _digest(sample.values)
    if now != (item.id, item.entry.label, item.values):
        raise DataError(f"files stay as they are during an ingest; {item.entry.source} changed; run the ingest again")
    return medium.decode(sample.data, column), {**sample.values, **medium.values(item.facts)}


def _in_threads(
    work: Callable[[_In], _Out], items: Sequence[_In], *, size: Callable[[_In], int] = lambda _: 0
) -> Iterator[_Out]:
    # The first few say what one takes. Threads that decode small pictures wait for one another's Python for longer than
    # they decode, so that one alone is twice as fast; what is large, or comes from far, is worth all of them.
    left = iter(items)
    took_s: list[float] = []
    for item in islice(left, _PROBED):
        began = time.perf_counter()
        done = work(item)
        took_s.append(time.perf_counter() - began)
        yield done
        if sum(took_s) > _PROBE_S:
            break
    if took_s and min(took_s) < _WORTH_A_THREAD_S:  # the first one also loads what decodes it
        yield from map(work, left)
        return
    # A window at a time: `map` over everything would hold every result that nobody has taken yet.
    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="mms-ingest") as pool:
        for window in _windows(left, size=size):
            yield from pool.map(work, window)


def _windows(items: Iterable[_In], *, size: Callable[[_In], int]) -> Iterator[list[_In]]:
    window: list[_In] = []
    room = _WINDOW_BYTES
    for item in items:
        if window and (len(window) == _WINDOW or size(item) > room):
            yield window
            window, room = [], _WINDOW_BYTES
        window.append(item)
        room -= size(item)
    if window:
        yield window


def _write_rejects(folder: Path, rejects: Sequence[Reject]) -> None:
    lines = b"".join(orjson.dumps(reject.model_dump()) + b"\n" for reject in rejects)
    files.replace(folder / "rejects.jsonl", lines)
