#!/usr/bin/env python3
"""Runs a view of `everlog schema view --engine duckdb` over values and prints what it gives.

    duckdb_view.py --sql FILE --values FILE --probe FILE

The SQL's table is `archive`. Values are JSON lines: a text in base64, or null; their offsets are their places. Probes are lines,
each an expression over the view's columns. Printed is one JSON line per value: the probes' texts, null where they are null.
"""

import argparse
import base64
import json

import duckdb

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--sql", required=True)
p.add_argument("--values", required=True)
p.add_argument("--probe", required=True)
args = p.parse_args()

connection = duckdb.connect()
connection.execute("SET TimeZone = 'UTC'")
connection.execute(
    'CREATE TABLE archive (topic VARCHAR, generation INT, "partition" INT, "offset" BIGINT, "timestamp" TIMESTAMPTZ, key BLOB, value BLOB)'
)
with open(args.values) as lines:
    for offset, line in enumerate(lines):
        value = json.loads(line)
        connection.execute(
            "INSERT INTO archive VALUES ('t', 0, 0, ?, NULL, NULL, ?)",
            [offset, None if value is None else base64.b64decode(value)],
        )
connection.execute(open(args.sql).read())
probes = [line.rstrip("\n") for line in open(args.probe)]
columns = ", ".join(f"CAST({probe} AS VARCHAR)" for probe in probes)
for row in connection.execute(f"SELECT {columns} FROM t_v ORDER BY _offset").fetchall():
    print(json.dumps(row))
