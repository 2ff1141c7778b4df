"""What a dataset looks like: HTML in a notebook, text on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mms_sdk import html, told
from mms_sdk.client.tables import aligned, pairs, wrapped
from mms_sdk.errors import MmsError
from mms_sdk.schema.cleaning import CleaningReport
from mms_sdk.schema.dataset import Column, DatasetInfo, Layout
from mms_sdk.told import on_one_line

if TYPE_CHECKING:
    from mms_sdk.client.dataset import Dataset

Counts = Mapping[str, Mapping[str, int]]
"""Rows of each class in each split; in one split without a name where those were not counted apart."""

_NAMED = 8  # classes and columns that one line names
_BARS = 20
_BAR_SIGNS = 24
_COUNTED_ROWS, _COUNTED_PARTS = 1_000_000, 1_000  # beyond them looking costs seconds; totals are told instead


def facts(dataset: Dataset) -> dict[str, Any]:
    """What matters about it, by name."""
    about = _about(dataset)
    about["classes"] = _some([f"{label} {rows:,}" for label, rows in dataset.classes.items()], dataset.num_classes)
    about["columns"] = _some([f"{each.name} ({each.kind})" for each in dataset.info.columns], len(dataset.info.columns))
    report = dataset.cleaning
    if report is not None:
        known = f"; {report.already_present:,} were known already" if report.already_present else ""
        what = "ingested" if "ingest" in dataset.info.provenance else "cleaned"
        about[what] = f"{report.kept:,} of {report.found:,}{known}"
        for step in report.steps:
            about[step.step] = step.outcome
        about["note"] = "; ".join(report.notes)
    return {name: value for name, value in about.items() if value}


def page(dataset: Dataset) -> str:
    """The whole of it for a notebook."""
    columns = _columns(dataset.info)
    sections = [
        html.pairs({name: value for name, value in _about(dataset).items() if name != "dataset"}),
        html.table("columns", list(columns[0]), [list(row.values()) for row in columns], level=4),
    ]
    if dataset.num_classes:
        counts, note = _counts(dataset)
        shown = _largest(counts, _BARS)
        notes = "; ".join(filter(None, [_rest(counts, shown), note]))
        sections.append(html.stacked("rows by class", shown, note=notes, level=4))
    if dataset.cleaning is not None:
        sections.append(dataset.cleaning._repr_html_())
    return html.titled(f"dataset {dataset.ref}", *sections)


def text(dataset: Dataset, *, width: int | None = None) -> str:
    """The whole of it for a terminal whose lines have so many signs."""
    sections = [pairs(_about(dataset), width=width), aligned(_columns(dataset.info), width=width)]
    if dataset.num_classes:
        counts = {label: {"": rows} for label, rows in dataset.classes.items()}
        shown = _largest(counts, _NAMED)
        sections.append(_bars(shown, _rest(counts, shown), width))
    if dataset.cleaning is not None:
        sections.append(_cleaning(dataset.cleaning, width))
    return "\n\n".join(sections)


def lies(layout: Layout) -> str:
    """How big it is, and in what pieces it lies."""
    rest = [
        told.counted(layout.layers, "layer") + " of columns that came later" if layout.layers else "",
        told.counted(layout.deleted, "deleted row") + " still in them" if layout.deleted else "",
        told.counted(layout.other_folders, "folder") + " besides, of other snapshots or of none"
        if layout.other_folders
        else "",
    ]
    return "; ".join([f"{told.size(layout.bytes)} in {told.counted(layout.parts, 'part')}", *filter(None, rest)])


def next_step(info: DatasetInfo) -> str:
    """What would make it lie better; nothing where little would change, or for a snapshot that is not the newest."""
    layout = info.layout
    if not layout.fragmented or info.snapshot != info.newest:
        return ""
    command = f"mms datasets compact {info.name}"
    if 2 * layout.parts_compacted <= layout.parts:
        average = told.counted(round((info.rows + layout.deleted) / layout.parts), "row")
        left = f"{layout.parts_compacted:,}" if layout.parts_compacted > 1 else "one"
        return f"{layout.parts:,} parts of {average} on average; {command} makes {left} of them"
    freed = f"{told.size(layout.freed_bytes)} of {told.size(layout.bytes)}"
    return f"{freed} belong to deleted rows or to columns that are gone; {command} leaves them out"


def _about(dataset: Dataset) -> dict[str, Any]:
    info = dataset.info
    newest = "the newest" if info.snapshot == info.newest else f"the newest is {info.newest}"
    about = {
        "dataset": dataset.ref,
        "rows": f"{dataset.rows:,}",
        "splits": ", ".join(f"{name} {rows:,}" for name, rows in dataset.splits.items()),
        "snapshot": f"{info.snapshot} of {info.created_at[:19].replace('T', ' ')} UTC; {newest}",
        "message": info.message,
        "size": lies(info.layout),
        "next step": next_step(info),
        "location": info.location,
    }
    return {name: value for name, value in about.items() if value}


def _columns(info: DatasetInfo) -> list[dict[str, Any]]:
    return [
        {
            "column": column.name,
            "kind": column.kind,
            "values": f"{column.form}, nullable" if column.nullable else column.form,
            "profile": column.profile,
            "size": told.size(info.layout.columns.get(column.name, 0)),
            "about": _meaning(column),
        }
        for column in info.columns
    ]


def _meaning(column: Column) -> str:
    labels = column.labels or ()
    return "; ".join(
        filter(
            None,
            [
                f"called {column.title}" if column.title else "",
                column.color or "",
                f"in {column.unit}" if column.unit else "",
                f"{column.rate_hz:,g} Hz" if column.rate_hz else "",
                _some(labels, len(labels)),
            ],
        )
    )


def _some(names: tuple[str, ...] | list[str], count: int) -> str:
    if count <= _NAMED:
        return ", ".join(names)
    return f"{count:,}: {', '.join(names[:_NAMED])} and {count - _NAMED:,} more"


def _counts(dataset: Dataset) -> tuple[Counts, str]:
    totals = {label: {"": rows} for label, rows in dataset.classes.items()}
    info = dataset.info
    countable = info.rows <= _COUNTED_ROWS and info.layout.parts <= _COUNTED_PARTS
    if not dataset.embedded or not countable or all(column.name != "split" for column in info.columns):
        return totals, ""
    try:
        return dataset.classes_by_split(), ""
    except MmsError as error:  # a page that says what is wrong is worth more than none
        return totals, error.message


def _largest(counts: Counts, most: int) -> Counts:
    if len(counts) <= most:
        return counts
    return dict(sorted(counts.items(), key=lambda each: -sum(each[1].values()))[:most])


def _rest(counts: Counts, shown: Counts) -> str:
    rest = [sum(pieces.values()) for label, pieces in counts.items() if label not in shown]
    if not rest:
        return ""
    span = f"{max(rest):,}" if min(rest) == max(rest) else f"{min(rest):,} to {max(rest):,}"
    return f"the largest {len(shown)}; {len(rest):,} more have {span} rows{' each' if len(rest) > 1 else ''}"


def _bars(shown: Counts, rest: str, width: int | None) -> str:
    rows = {label: sum(pieces.values()) for label, pieces in shown.items()}
    top = max(1, *rows.values())
    table = [
        {"class": label, "rows": count, "": "█" * round(_BAR_SIGNS * count / top) or "▏" * bool(count)}
        for label, count in rows.items()
    ]
    return "\n".join(filter(None, [aligned(table, width=width), rest]))


def _cleaning(report: CleaningReport, width: int | None) -> str:
    sections = list(wrapped(on_one_line(report.summary), width))
    if report.steps:
        sections.append(aligned(report.table(), width=width))
    return "\n".join([*sections, *(line for note in report.notes for line in wrapped(on_one_line(note), width))])


def by_split(codes: Any, splits: Any, labels: tuple[str, ...], names: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Rows of each class in each split.

    Args:
        codes: Of the classes, masked where a row has none. One that names nothing counts as none.
        splits: Codes of the splits, likewise.
        labels: Names of the classes.
        names: Names of the splits.
    """
    there = ~(np.ma.getmaskarray(codes) | np.ma.getmaskarray(splits))
    there &= (np.asarray(codes) >= 0) & (np.asarray(codes) < len(labels)) & (np.asarray(splits) < len(names))
    pairs_of = np.asarray(codes)[there].astype(np.int64) * len(names) + np.asarray(splits)[there]
    counts = np.bincount(pairs_of, minlength=len(labels) * len(names)).reshape(-1, len(names)).tolist()
    return {label: dict(zip(names, row, strict=True)) for label, row in zip(labels, counts, strict=False)}
