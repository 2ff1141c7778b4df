"""A run's metrics in Weights & Biases; `mms.loggers.WandB`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mms_sdk.compute.training.callbacks import Begun, Ending, Record
from mms_sdk.compute.training.loggers.records import numbers
from mms_sdk.compute.training.loggers.sending import Sending
from mms_sdk.errors import InvalidRequest, MissingExtra

_OPEN_WITHIN_S = 30.0


@dataclass
class WandB:
    """A run of Weights & Biases, whose id is that of the job that the run began as.

    A run that is continued goes on in the same run. Steps cannot be taken back there, so that those that are done again
    are not written again. Options are its configuration. All of it is sent by a thread of its own: a server that is
    away is tried again while the run goes on, and waited for at its end. `offline` writes a folder that `wandb sync`
    sends later; one of a continued run has all of it.

    Attributes:
        project: Its name.
        entity: User or team; None for the one that is logged in.
        mode: `online`, `offline` or `disabled`; None for `$WANDB_MODE`, or online.
        folder: Where `wandb/` is made, with what is not sent yet.
        wait_s: How long the end of a run waits for what is not sent yet.

    Raises:
        MissingExtra: wandb is not installed.
        InvalidRequest: There is no such mode, the project has no name, or nobody is logged in.
    """

    project: str
    entity: str | None = field(default=None, kw_only=True)
    mode: Literal["online", "offline", "disabled"] | None = field(default=None, kw_only=True)
    folder: str | Path = field(default=".", kw_only=True)
    wait_s: float = field(default=30.0, kw_only=True)
    _sending: Sending | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.project or not isinstance(self.project, str):
            raise InvalidRequest(f"a project of Weights & Biases has a name; got {self.project!r}")
        if self.mode not in (None, "online", "offline", "disabled"):
            raise InvalidRequest(f"mode is 'online', 'offline', 'disabled' or None; got {self.mode!r}")
        try:
            import wandb
        except ImportError as error:
            raise MissingExtra("wandb", extra="wandb") from error
        # Asked for now, because later a thread would ask the terminal for it.
        if (self.mode or wandb.setup().settings.mode) == "online" and not wandb.login(prompt=False):
            raise InvalidRequest(
                "Weights & Biases takes runs of those who are logged in, and there is no key; run: wandb login, set "
                "$WANDB_API_KEY, or write mode='offline'"
            )

    def begin(self, run: Begun) -> None:
        """Begins to send."""
        self._sending = Sending("Weights & Biases", _Run(self), run)

    def log(self, record: Record) -> None:
        """Nothing: what is sent is read from the metric log."""

    def end(self, state: Ending, why: str) -> None:
        """Sends the rest."""
        assert self._sending is not None
        self._sending.end(state, why, wait_s=self.wait_s)


class _Run:
    """A run of Weights & Biases."""

    def __init__(self, options: WandB) -> None:
        self._options = options
        self._from_step = 0

    def open(self, run: Begun) -> None:
        """Finds the run by its id and the step it has got to, or makes it."""
        import wandb

        folder = Path(self._options.folder).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        self._run: Any = wandb.init(
            project=self._options.project,
            entity=self._options.entity,
            mode=self._options.mode,
            dir=folder,
            id=run.run,
            resume="allow",
            # Neither prints nor takes what others print.
            settings=wandb.Settings(console="off", silent=True, init_timeout=_OPEN_WITHIN_S),
        )
        self._from_step = self._run.step
        about = {"mms": {"job": run.job, "dataset": run.dataset}}
        self._run.config.update({**run.options, **about}, allow_val_change=True)

    def write(self, records: Sequence[Record]) -> None:
        """Logs the steps it has not got yet."""
        for record in records:
            if record["step"] >= self._from_step:
                self._run.log(numbers(record), step=record["step"])

    def close(self, state: Ending, why: str) -> None:
        """Ends the run, and waits until all is sent."""
        self._run.summary.update({"mms.state": state, "mms.stopped": why})
        self._run.finish(exit_code=0 if state == "succeeded" else 1)
