"""A Spark that nobody outside this machine reaches, and that keeps its files in one folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any


def spark_session(scratch: Path) -> Any:
    """Two cores, and four attempts at a task as on a cluster; on the loopback interface only."""
    from pyspark.sql import SparkSession

    os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
    os.environ["PYSPARK_PYTHON"] = sys.executable  # not whichever is first on PATH
    settings = {
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.driver.memory": "512m",
        "spark.local.dir": str(scratch / "local"),
        "spark.sql.warehouse.dir": str(scratch / "warehouse"),
        "spark.sql.shuffle.partitions": "3",
    }
    builder = SparkSession.builder.master("local[2,4]").appName("mms-tests")
    for name, value in settings.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("OFF")
    return spark
