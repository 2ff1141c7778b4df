"""A stream of pictures into a dataset: `streams_pictures.py FOLDER [DIES_IN_BATCH]`.

Reads `FOLDER/in/*/*.png` two files at a time until there are no more, checkpoints in `FOLDER/checkpoint`, and notes
each batch it is given in `FOLDER/batches`. It kills itself once that batch is committed to the dataset, before Spark
has noted that it was.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from spark_session import spark_session

import mms_sdk as mms


def main() -> None:
    folder, dies_in = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else -1
    spark = spark_session(folder)
    ws = mms.connect(workspace=folder / "workspace")

    def land(frame: Any, batch: int) -> None:
        with (folder / "batches").open("a") as notes:
            notes.write(f"{batch} {frame.count()}\n")
        ws.datasets.write_spark("pets", frame, once=("camera", batch))
        if batch == dies_in:
            os.kill(os.getpid(), signal.SIGKILL)

    schema = "path string, modificationTime timestamp, length long, content binary"
    stream = spark.readStream.format("binaryFile").schema(schema).option("maxFilesPerTrigger", 2)
    query = (
        stream.load(str(folder / "in" / "*" / "*.png"))
        .writeStream.foreachBatch(land)
        .option("checkpointLocation", str(folder / "checkpoint"))
        .trigger(availableNow=True)
        .start()
    )
    query.awaitTermination()
    spark.stop()


if __name__ == "__main__":
    main()
