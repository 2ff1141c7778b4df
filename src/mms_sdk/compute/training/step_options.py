"""How a step is taken: everything between the loss and the new parameters that the optimiser does not decide."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from mms_sdk.compute.training.lora import LoRA, compiled
from mms_sdk.compute.training.precision import Precision
from mms_sdk.errors import InvalidRequest

OnNan = Literal["stop", "skip", "rollback"]
Remat = Literal["none", "dots", "all"]


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """How a step is taken.

    Attributes:
        precision: In what numbers the model computes.
        accumulate: Micro-batches that a batch is cut into; their gradients are added up exactly.
        ema: Decay of the averaged parameters; None for none.
        freeze: Parameters that are not learnt, regular expressions searched for in their paths.
        lora: Low-rank adaptation.
        remat: What the backward pass computes again instead of keeping: nothing, all but matrix products, or all.
        on_nan: What becomes of a step whose loss or gradient is not finite.
    """

    precision: Precision = field(default_factory=Precision)
    accumulate: int = 1
    ema: float | None = None
    freeze: tuple[str, ...] = ()
    lora: LoRA | None = None
    remat: Remat = "none"
    on_nan: OnNan = "stop"

    def __post_init__(self) -> None:
        if isinstance(self.accumulate, bool) or not isinstance(self.accumulate, int) or self.accumulate < 1:
            raise InvalidRequest(f"accumulate is a whole number from 1; got accumulate={self.accumulate!r}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise InvalidRequest(f"ema is a decay in (0, 1), e.g. 0.999; got ema={self.ema}")
        for name, value, choice in (
            ("remat", self.remat, ("none", "dots", "all")),
            ("on_nan", self.on_nan, ("stop", "skip", "rollback")),
        ):
            if value not in choice:
                raise InvalidRequest(f"{name} is one of {', '.join(choice)}; got {name}={value!r}")
        for pattern in self.freeze:
            compiled("freeze", pattern)

    @property
    def guarded(self) -> bool:
        """Whether a step that is not finite leaves the state as it was."""
        return self.on_nan == "skip" or self.precision.name == "fp16"

    def learnt(self, paths: Iterable[str]) -> tuple[str, ...]:
        """Which parameters are learnt, in order.

        Raises:
            InvalidRequest: A pattern of `freeze` finds nothing, or nothing is left to learn.
        """
        paths = tuple(paths)
        for pattern in self.freeze:
            if not any(re.search(pattern, path) for path in paths):
                raise InvalidRequest(
                    f"freeze finds at least one parameter; {pattern!r} finds none among {list(paths)[:8]}; change it"
                )
        learnt = tuple(path for path in paths if not self.is_frozen(path))
        if not learnt:
            raise InvalidRequest(f"at least one parameter is learnt; freeze={list(self.freeze)} leaves none; narrow it")
        return learnt

    def is_frozen(self, path: str) -> bool:
        """Whether what lies at a path stays as it is."""
        if self.lora is not None and not self.lora.trains(path):
            return True
        return any(re.search(pattern, path) for pattern in self.freeze)

    def rematerialised(self, forward: Any) -> Any:
        """The forward pass, with what the backward pass is to compute again."""
        import jax

        if self.remat == "none":
            return forward
        return jax.checkpoint(forward, policy=jax.checkpoint_policies.dots_saveable if self.remat == "dots" else None)
