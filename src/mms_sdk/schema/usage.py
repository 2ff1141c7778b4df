"""Usage: what a job has had of the machines so far, and what that costs."""

from __future__ import annotations

from mms_sdk.schema.base import Schema


class Usage(Schema):
    """Of all attempts at a job, to their ends or until now.

    Attributes:
        seconds: How long they ran.
        cpu_s: Seconds times the cores that they were given; None where no engine gave any.
        gpu_s: Likewise of GPUs.
        cost: In the currency of the prices; None without prices for what it had.
    """

    seconds: float
    cpu_s: float | None = None
    gpu_s: float | None = None
    cost: float | None = None
