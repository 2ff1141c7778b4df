"""Ranks: the processes that train together, and how each of them gets on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mms_sdk.schema.base import Schema

HoldsUp = Literal["data", "host"]
Phase = Literal["starting", "compiling", "training", "evaluating", "saving"]


class Beat(Schema):
    """What a process that trains said of itself last.

    Attributes:
        rank: Which of them it is, from 0.
        step: Steps taken.
        phase: What it did then.
        at: When, in seconds since 1970.
        step_s: How long a step usually takes; 0 while it is unknown.
        input_wait: Which share of that it usually waits for its own data, from 0 to 1.
        step_wait: Which share it usually waits for steps that it gave to the devices, in which it meets the others.
    """

    rank: int
    step: int
    phase: Phase
    at: float = Field(allow_inf_nan=False)
    step_s: float = Field(0.0, ge=0, allow_inf_nan=False)
    input_wait: float = Field(0.0, ge=0, allow_inf_nan=False)
    step_wait: float = Field(0.0, ge=0, allow_inf_nan=False)


class Rank(Schema):
    """How a process of a training gets on.

    Attributes:
        rank: Which of them it is, from 0.
        step: Steps taken.
        phase: What it does.
        since_s: Seconds since it last said so: about a second, or as long as its step or its phase takes.
        step_s: How long its steps usually take; 0 while it is unknown.
        ratio: That, over the median of all of them: more than 1 is slower than the others. None while it is unknown.
        input_wait: Which share of it the process usually waits for its own data, from 0 to 1. Where each step waits for
            all processes, all take as long as the slowest: which one that is, this tells, if data is what it lacks.
        step_wait: Which share of it the process usually waits for steps that it gave to the devices. Whoever comes late
            to where all meet waits least.
        holds_up: What it does while the others wait for it: `data`, or `host`, the code beside the steps, as callbacks.
            None if it comes as early as the others, which a device that itself is slow does.
    """

    rank: int
    step: int
    phase: Phase
    since_s: float
    step_s: float
    ratio: float | None = None
    input_wait: float = 0.0
    step_wait: float = 0.0
    holds_up: HoldsUp | None = None


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
