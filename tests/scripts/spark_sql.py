#!/usr/bin/env python3
"""Runs SQL in Spark (by tests/services/spark.sh run) and prints what it answers.

    spark_sql.py CONF FILE

CONF is a spark-defaults.conf; spark.jars.packages in it stands for the jars in $SPARK_JARS. Statements end with a semicolon at a line's
end. Of each that answers, one JSON line is printed: {"columns": [...], "rows": [[...]...]}; numbers that are no whole ones, and
times, as text.
"""

import json
import os
import pathlib
import re
import sys

from pyspark.sql import Row, SparkSession


def plain(value):
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (list, tuple, Row)):
        return [plain(item) for item in value]
    return str(value)


builder = SparkSession.builder.master("local[2]")
settings = {
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.memory": os.environ["SPARK_HEAP"],
    "spark.ui.enabled": "false",
    "spark.sql.shuffle.partitions": "2",
    "spark.jars": os.environ["SPARK_JARS"],
}
for line in pathlib.Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
    if line.strip() and not line.startswith("#"):
        key, _, value = line.partition("=")
        if key.strip() != "spark.jars.packages":
            settings[key.strip()] = value.strip()
for key, value in settings.items():
    builder = builder.config(key, value)
session = builder.getOrCreate()
session.sparkContext.setLogLevel("ERROR")
text = re.sub(r"^--.*\n?", "", pathlib.Path(sys.argv[2]).read_text(encoding="utf-8"), flags=re.M)
for statement in re.split(r";[ \t]*(?:--.*)?$", text, flags=re.M):
    if not statement.strip():
        continue
    try:
        answer = session.sql(statement.strip())
        rows = answer.collect()
    except Exception as error:  # whatever Spark has to say
        sys.exit(f"error: {error}\n{statement.strip()}")
    if answer.columns:
        print(json.dumps({"columns": answer.columns, "rows": [plain(row) for row in rows]}), flush=True)
session.stop()
