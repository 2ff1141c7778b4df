"""What an evaluation looks like: text on a terminal, HTML in a notebook, and a page of its own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from mms_sdk import drawings, html, told
from mms_sdk.client.tables import aligned, pairs, terminal_width
from mms_sdk.schema.evaluation import Comparison, Estimate, Evaluation

_SHOWN_CLASSES = 30  # in a table of classes by classes
_SHOWN_STEPS = 24  # of a forecast
_NAMED = 8
_ROW_ERRORS = "rows by how far off they are, quantiles"
_INTERVALS = {"wilson": "Wilson", "bootstrap": "bootstrap", "none": ""}
_STYLE = (
    ":root{color-scheme:light dark}body{font:14px/1.45 system-ui,sans-serif;margin:24px auto;max-width:72em;"
    "padding:0 16px;background:Canvas;color:CanvasText}td,th{border-bottom:1px solid rgba(128,128,128,.25)}"
)


def text(record: Evaluation) -> str:
    """For a terminal: what was measured, the metrics, slices, the comparison and what to know of them."""
    width = terminal_width()
    sections = [pairs(_about(record), width=width), aligned(_metrics(record.metrics), width=width)]
    if record.classes:
        sections.append(aligned(_classes(record), width=width))
    if record.residuals:
        sections.append(aligned([_rounded_all(record.residuals)], width=width))
    if record.row_errors:
        sections.append(f"{_ROW_ERRORS}\n{aligned([_rounded_all(record.row_errors)], width=width)}")
    if record.steps:
        sections.append(f"by step ahead\n{aligned(_steps(record), width=width)}")
    sections += [f"by {column}\n{aligned(rows, width=width)}" for column, rows in _by_column(record).items()]
    if record.comparison is not None:
        sections.append(f"{told.on_one_line(_title(record, record.comparison))}\n")
        sections[-1] += aligned(_differences(record.comparison), width=width)
        sections[-1] += f"\n{_mcnemar(record, record.comparison)}".rstrip()
    sections += [told.on_one_line(f"note: {note}") for note in record.notes]
    return "\n\n".join(sections)


def page(record: Evaluation) -> str:
    """For a notebook: all of it."""
    sections = [html.pairs(_about(record)), *map(html.line, record.notes), _table("metrics", _metrics(record.metrics))]
    if record.comparison is not None:
        sections.append(_table(_title(record, record.comparison), _differences(record.comparison)))
        sections.append(html.line(_mcnemar(record, record.comparison)))
    sections += [_table(f"by {column}", rows) for column, rows in _by_column(record).items()]
    if record.classes:
        sections.append(_table("classes", _classes(record)))
    if record.confusion:
        sections.append(_confusion(record))
    if record.calibration:
        sections.append(_calibration(record))
    if record.residuals:
        sections.append(_table("residuals: predicted minus target, quantiles", [_rounded_all(record.residuals)]))
    if record.row_errors:
        sections.append(_table(_ROW_ERRORS, [_rounded_all(record.row_errors)]))
    if record.steps:
        sections.append(_by_step(record))
    if record.mistakes:
        title = "most confident mistakes" if record.classes else "furthest off"
        sections.append(_table(title, _mistakes(record)))
    return html.titled(f"evaluation of {record.model} on {record.data}", *sections)


def document(record: Evaluation) -> str:
    """A page of its own, which loads nothing and runs nothing."""
    title = escape(f"{record.model} on {record.data}")
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>{page(record)}</body></html>\n"
    )


def _about(record: Evaluation) -> dict[str, Any]:
    about = {
        "model": record.model,
        "data": record.data,
        "task": f"{record.task} of {record.target}" if record.target else record.task,
        "rows": f"{record.rows:,}",
        "left out": ", ".join(f"{count:,} {reason}" for reason, count in record.left_out.items()),
        "first unreadable": record.first_left_out or "",
        "classes without rows": _some(record.absent_classes),
        "intervals": f"{record.confidence:.4g}, each by itself; bootstrap of {record.resamples:,} resamples, seed "
        f"{record.seed}",
        "measured": f"{record.created_at[:19]}, job {record.job}",
    }
    return {name: value for name, value in about.items() if value}


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest:,} more" if rest > 0 else "")


def _metrics(metrics: Mapping[str, Estimate]) -> list[dict[str, Any]]:
    return [{"metric": name, **_spread(each), "interval": _INTERVALS[each.interval]} for name, each in metrics.items()]


def _spread(each: Estimate) -> dict[str, float | None]:
    return {name: _rounded(getattr(each, name)) for name in ("value", "low", "high")}


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _classes(record: Evaluation) -> list[dict[str, Any]]:
    return [
        {"class": each.label, "rows": each.rows, "predicted": each.predicted}
        | {name: _rounded(getattr(each, name)) for name in ("precision", "recall", "f1", "roc_auc")}
        for each in record.classes
    ]


def _rounded_all(values: Mapping[str, float]) -> dict[str, Any]:
    return {name: _rounded(value) for name, value in values.items()}


def _steps(record: Evaluation) -> list[dict[str, Any]]:
    # As many lines as fit a page: the first and the last step, and some between.
    shown = range(len(record.steps)) if len(record.steps) <= _SHOWN_STEPS else _spread_over(len(record.steps))
    return [
        {
            "step": each.step,
            "mae": _rounded(each.mae),
            "rmse": _rounded(each.rmse),
            "last value": _rounded(each.naive_mae),
        }
        for each in (record.steps[at] for at in shown)
    ]


def _spread_over(steps: int) -> list[int]:
    return sorted({round(at * (steps - 1) / (_SHOWN_STEPS - 1)) for at in range(_SHOWN_STEPS)})


def _by_step(record: Evaluation) -> str:
    words = "mean absolute error by step ahead: of the forecast, and of the last value repeated"
    series = [[each.mae for each in record.steps], [each.naive_mae for each in record.steps]]
    drawn = drawings.lines(series, words) if len(record.steps) > 1 else ""
    return html.titled(words, drawn, _table("by step", _steps(record)), level=4)


def _mistakes(record: Evaluation) -> list[dict[str, Any]]:
    rows = [each.model_dump() for each in record.mistakes]
    there = [name for name in rows[0] if any(row[name] != "" for row in rows)]
    return [{name: row[name] for name in there} for row in rows]


def _by_column(record: Evaluation) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for each in record.slices:
        row = {"slice": each.value, "rows": each.rows}
        found.setdefault(each.column, []).append({**row, **{name: str(told) for name, told in each.metrics.items()}})
    return found


def _title(record: Evaluation, comparison: Comparison) -> str:
    return f"{record.model} against {comparison.model}, on the same rows"


def _differences(comparison: Comparison) -> list[dict[str, Any]]:
    return [
        {
            "metric": name,
            comparison.model: _rounded(comparison.metrics.get(name)),
            "difference": _rounded(each.value),
            "low": _rounded(each.low),
            "high": _rounded(each.high),
            "differs": "" if each.low is None or each.high is None else "no" if each.low <= 0 <= each.high else "yes",
        }
        for name, each in comparison.differences.items()
    ]


def _mcnemar(record: Evaluation, comparison: Comparison) -> str:
    test = comparison.mcnemar
    if test is None:
        return ""
    return (
        f"right by {record.model} alone {test.only_first:,}, by {comparison.model} alone {test.only_second:,}; "
        f"McNemar's exact test: p = {test.p_value:.3g}"
    )


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    return html.table(title, list(rows[0]), [list(row.values()) for row in rows], level=4) if rows else ""


class _Shaded:
    """A number on a ground that is the stronger, the larger its share is."""

    def __init__(self, count: int, total: int) -> None:
        self._count = count
        self._share = count / total if total else 0.0

    def _repr_html_(self) -> str:
        return (
            f'<div style="text-align:right;padding:1px 6px;background:rgba(76,139,245,{0.75 * self._share:.2f})">'
            f"{self._count:,}</div>"
        )


def _confusion(record: Evaluation) -> str:
    labels = [each.label for each in record.classes]
    if len(labels) > _SHOWN_CLASSES:
        return _table(f"most frequent mistakes of {len(labels):,} classes", _pairs(labels, record.confusion))
    rows = (
        [label, *(_Shaded(count, sum(counts)) for count in counts)]
        for label, counts in zip(labels, record.confusion, strict=True)
    )
    return html.table("rows of a class, by the class that was said", ["class", *labels], rows, level=4)


def _pairs(labels: Sequence[str], confusion: Iterable[Sequence[int]]) -> list[dict[str, Any]]:
    found = [
        (count, labels[of], labels[said])
        for of, counts in enumerate(confusion)
        for said, count in enumerate(counts)
        if count and of != said
    ]
    found.sort(key=lambda each: -each[0])
    return [{"class": of, "said": said, "rows": count} for count, of, said in found[:_SHOWN_CLASSES]]


def _calibration(record: Evaluation) -> str:
    bins = [
        (math.nan, math.nan) if each.confidence is None or each.accuracy is None else (each.confidence, each.accuracy)
        for each in record.calibration
    ]
    words = "; ".join(
        f"confidence {sure:.2f}: {share:.2f} right of {each.rows:,}"
        for each, (sure, share) in zip(record.calibration, bins, strict=True)
        if each.rows
    )
    title = "calibration: share of right answers by confidence"
    return html.titled(title, drawings.reliability(bins, words), html.line(words), level=4)
