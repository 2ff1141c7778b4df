"""A run's metrics for TensorBoard; `mms.loggers.TensorBoard`."""

from __future__ import annotations

import textwrap
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from mms_sdk.compute.training.callbacks import Begun, Ending, Options, Record
from mms_sdk.compute.training.loggers.on_disk import OnDisk
from mms_sdk.compute.training.loggers.records import flat, numbers
from mms_sdk.errors import MissingExtra, NotWritable
from mms_sdk.storage import metric_log


@dataclass
class TensorBoard(OnDisk):
    """Event files in `folder/RUN`, where RUN is the id of the job that the run began as.

    Metrics are scalars, the options a text and what the HParams page shows, with how the run ended. A run that is
    continued goes on in the same folder, where TensorBoard forgets the steps after the checkpoint: they are done again.
    TensorBoard keeps float32.

    Attributes:
        folder: What `tensorboard --logdir` is given; runs side by side.

    Raises:
        MissingExtra: tensorboard is not installed.
    """

    folder: str | Path
    _file: _EventFile | None = field(default=None, init=False, repr=False)
    _step: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            import tensorboard  # noqa: F401
        except ImportError as error:
            raise MissingExtra("tensorboard", extra="tensorboard") from error

    def begin(self, run: Begun) -> None:
        """Goes on where an earlier part of the run ended, or writes what was logged before.

        Raises:
            NotWritable: The folder cannot be written.
        """
        self._run, self._missed, self._step = run, None, run.step
        try:
            self._at.mkdir(parents=True, exist_ok=True)
            if run.step and any(self._at.glob("*tfevents*")):
                self._open(from_step=run.step + 1)
            else:
                self._write_anew()
        except OSError as error:
            raise NotWritable(
                f"{self._at} cannot be written: {error.strerror}; give TensorBoard() another folder, or this user the "
                f"permission"
            ) from error

    @property
    def _at(self) -> Path:
        assert self._run is not None
        return Path(self.folder).expanduser() / self._run.run

    def _write_anew(self) -> None:
        assert self._run is not None
        self._open(from_step=0)
        assert self._file is not None
        for record in metric_log.records(self._run.log):
            self._write(self._file, record)
        self._file.flush()

    def _add(self, record: Record) -> None:
        if self._file is None:
            self._write_anew()
        else:
            self._write(self._file, record)
            self._file.flush()  # so that a kill loses nothing

    def _tell_end(self, state: Ending, why: str) -> None:
        if self._file is None:
            self._write_anew()
        assert self._file is not None
        self._file.ending(state, why, step=self._step)
        self._file.flush()

    def _write(self, file: _EventFile, record: Record) -> None:
        file.scalars(record)
        self._step = record["step"]

    def _open(self, *, from_step: int) -> None:
        assert self._run is not None
        self._close()
        self._file = _EventFile(self._at, self._run.job, from_step=from_step)
        self._file.options(self._run.options, step=self._run.step)
        self._file.flush()

    def _close(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # what could not be flushed is in the metric log
                self._file.close()
            self._file = None


class _EventFile:
    """One event file: framed records, each a protocol buffer.

    Args:
        folder: Where it lies, with those of earlier parts of the run; TensorBoard reads them in order of their names.
        job: Which writes it.
        from_step: What earlier files say of this step and later ones is forgotten.
    """

    def __init__(self, folder: Path, job: str, *, from_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        # Ids sort by time, so that what continues a run comes after it even within one second.
        now = time.time_ns()
        self._file = (folder / f"events.out.tfevents.{now // 10**9:010d}.{job}.{now}").open("xb")
        self._records = RecordWriter(self._file)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._write(Event(wall_time=time.time(), step=from_step, session_log=start))

    def scalars(self, record: Record) -> None:
        """Writes a record's numbers, at its step and time."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers(record).items()]
        self._summary(Summary(value=values), step=record["step"], at=record["time"])

    def options(self, options: Options, *, step: int) -> None:
        """Writes the options, to read and to compare."""
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.plugins.text.summary_v2 import text_pb

        told = orjson.dumps(dict(options), option=orjson.OPT_INDENT_2).decode()
        self._summary(text_pb("options", textwrap.indent(told, "    ")), step=step)
        self._summary(hparams_pb({name: _plain(value) for name, value in flat(options).items()}), step=step)

    def ending(self, state: Ending, why: str, *, step: int) -> None:
        """Writes how the run ended."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
        from tensorboard.plugins.text.summary_v2 import text_pb

        self._summary(text_pb("end", f"{state}: {why}"), step=step)
        if state == "cancelled":  # it may go on, and the HParams page keeps the first end it is told
            return
        status = api_pb2.STATUS_SUCCESS if state == "succeeded" else api_pb2.STATUS_FAILURE
        ended = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
        described = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=ended))
        value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=described, tensor=metadata.NULL_TENSOR)
        self._summary(Summary(value=[value]), step=step)

    def flush(self) -> None:
        """Gives all of it to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _summary(self, summary: Any, *, step: int, at: float | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._write(Event(wall_time=time.time() if at is None else at, step=step, summary=summary))

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())


def _plain(value: Any) -> bool | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)
