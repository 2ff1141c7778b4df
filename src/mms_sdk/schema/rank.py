"""Ranks: the processes that train together, and how each of them gets on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mms_sdk.schema.base import Schema

Phase = Literal["starting", "compiling", "training", "evaluating", "saving"]


class Beat(Schema):
    """What a process that trains said of itself last.

    Attributes:
        rank: Which of them it is, from 0.
        step: Steps taken.
        phase: What it did then.
        at: When, in seconds since 1970.
        step_s: How long a step usually takes; 0 while it is unknown.
    """

    rank: int
    step: int
    phase: Phase
    at: float = Field(allow_inf_nan=False)
    step_s: float = Field(0.0, ge=0, allow_inf_nan=False)


class Rank(Schema):
    """How a process of a training gets on.

    Attributes:
        rank: Which of them it is, from 0.
        step: Steps taken.
        phase: What it does.
        since_s: Seconds since it last said so: about a second, or as long as its step or its phase takes.
        step_s: How long its steps usually take; 0 while it is unknown.
        ratio: That, over the median of all of them: more than 1 is slower than the others. None while it is unknown.
    """

    rank: int
    step: int
    phase: Phase
    since_s: float
    step_s: float
    ratio: float | None = None


class Ranks(Schema):
    """The processes of a job's training.

    Attributes:
        job: The training; None if there is none.
        ranks: By rank.
        alarm: What seems wrong with it, in words; None if nothing does, or it does not run.
    """

    job: str | None = None
    ranks: tuple[Rank, ...] = ()
    alarm: str | None = None
