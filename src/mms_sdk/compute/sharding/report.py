"""The sharding report: where every parameter lies, who decided it, and what stayed whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mms_sdk import html
from mms_sdk.compute.sharding.mesh import describe
from mms_sdk.compute.sharding.rules import LARGE_BYTES, Placement, listed

if TYPE_CHECKING:
    from jax.sharding import Mesh

_COLUMNS = ("parameter", "shape", "divided over", "decided by", "bytes per device", "note")


@dataclass(frozen=True, kw_only=True)
class ShardingReport:
    """Where the parameters of a model lie on a mesh. Shows itself as text and in notebooks.

    Attributes:
        mesh: In words.
        devices: Their number.
        placements: One for each parameter.
    """

    mesh: str
    devices: int
    placements: tuple[Placement, ...]

    @property
    def bytes(self) -> int:
        """Of all parameters together."""
        return sum(each.bytes for each in self.placements)

    @property
    def bytes_per_device(self) -> int:
        """What each device holds of them."""
        return sum(each.bytes_per_device for each in self.placements)

    @property
    def whole(self) -> tuple[Placement, ...]:
        """Parameters above 1 MiB that stay whole on every device although the mesh divides parameters."""
        return tuple(
            each
            for each in self.placements
            if each.note and each.bytes_per_device == each.bytes and each.bytes > LARGE_BYTES
        )

    def to_json(self) -> dict[str, Any]:
        """The report as JSON."""
        return {
            "mesh": self.mesh,
            "devices": self.devices,
            "bytes": self.bytes,
            "bytes_per_device": self.bytes_per_device,
            "whole": [each.path for each in self.whole],
            "parameters": [
                {**asdict(each), "shape": list(each.shape), "spec": [listed(entry) for entry in each.spec]}
                for each in self.placements
            ],
        }

    def __str__(self) -> str:
        rows = [_COLUMNS, *(tuple(map(str, row)) for row in self._rows())]
        widths = [max(len(row[at]) for row in rows) for at in range(len(_COLUMNS))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([self._summary(), *self._warnings(), "", *lines])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        warnings = "".join(map(html.line, self._warnings()))
        table = html.table("parameters", _COLUMNS, self._rows(), level=4)
        return html.titled("sharding", html.line(self._summary()), warnings, table)

    def _summary(self) -> str:
        return (
            f"{self.mesh}; {len(self.placements)} parameters, {self.bytes:,} bytes, of which each device holds "
            f"{self.bytes_per_device:,}"
        )

    def _warnings(self) -> list[str]:
        return [f"{each.path} stays whole, {each.bytes:,} bytes on each device: {each.note}" for each in self.whole]

    def _rows(self) -> list[tuple[Any, ...]]:
        return [
            (each.path, str(each.shape), _spec(each), each.decided_by, each.bytes_per_device, each.note)
            for each in self.placements
        ]


def report(placements: Sequence[Placement], mesh: Mesh) -> ShardingReport:
    """The report of a mesh."""
    return ShardingReport(mesh=describe(mesh), devices=mesh.devices.size, placements=tuple(placements))


def _spec(placement: Placement) -> str:
    entries = [entry if isinstance(entry, str) else "+".join(entry or ()) or "–" for entry in placement.spec]
    return ", ".join(entries) if any(placement.spec) else "whole"
