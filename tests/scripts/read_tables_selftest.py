#!/usr/bin/env python3
"""Proves read_tables.py: writes a little table with every awkward value, reads it back by both engines.

usage: read_tables_selftest.py sqlite DIR | rest URI S3_ENDPOINT
"""

import datetime
import hashlib
import json
import pathlib
import subprocess
import sys

import pyarrow as pa
from pyiceberg.catalog import load_catalog
from pyiceberg.schema import Schema
from pyiceberg.types import BinaryType, IntegerType, ListType, LongType, NestedField, StringType, StructType, TimestamptzType

READER = pathlib.Path(__file__).with_name("read_tables.py")
UTC = datetime.timezone.utc

SCHEMA = Schema(
    NestedField(1, "topic", StringType(), required=True),
    NestedField(2, "generation", IntegerType(), required=True),
    NestedField(3, "partition", IntegerType(), required=True),
    NestedField(4, "offset", LongType(), required=True),
    NestedField(5, "timestamp", TimestamptzType()),
    NestedField(6, "timestamp_type", IntegerType(), required=True),
    NestedField(7, "key", BinaryType()),
    NestedField(8, "value", BinaryType()),
    NestedField(
        9,
        "headers",
        ListType(12, StructType(NestedField(13, "key", StringType(), required=True), NestedField(14, "value", BinaryType())), element_required=True),
    ),
    NestedField(10, "leader_epoch", IntegerType()),
    NestedField(11, "archived_at", TimestamptzType(), required=True),
    NestedField(15, "timestamp_raw", LongType()),
    NestedField(16, "headers_raw", BinaryType()),
)

# two headers: key ff with an empty value, key a with null
RAW = b"\x02\0\0\0" + b"\x01\0\0\0\xff" + b"\0\0\0\0" + b"\x01\0\0\0a" + b"\xff\xff\xff\xff"

# generation, partition, offset, ms (None: none), raw ms, type, key, value, headers, raw headers, and the canonical line
ROWS = [
    (1, 0, 0, 0, None, 0, b"k", b"v", [("a", b""), ("a", None), ("b", b"\xff")], None, "1,0,0,0,0,6b,76,[[61,],[61,null],[62,ff]]"),
    (0, 1, 7, 1_700_000_000_123, None, 1, None, b"", [], None, "0,1,7,1700000000123,1,null,,[]"),
    (0, 0, 9, -86_400_001, None, 0, b"", None, [("é", b"x")], None, "0,0,9,-86400001,0,,null,[[c3a9,78]]"),
    (0, 0, 10, None, None, -1, b"\x00\xff", b"n", [], None, "0,0,10,null,-1,00ff,6e,[]"),
    (0, 0, 12, 253_402_300_799_999, None, 0, None, b"9999", [], None, "0,0,12,253402300799999,0,null,39393939,[]"),
    (0, 0, 13, None, 9_223_372_036_854_775_807, 0, None, b"wild", None, RAW, "0,0,13,9223372036854775807,0,null,77696c64,[[ff,],[61,null]]"),
]


def arrow(rows, schema):
    now = datetime.datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    micros = pa.array([None if r[3] is None else r[3] * 1000 for r in rows], pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    columns = {
        "topic": ["t"] * len(rows),
        "generation": [r[0] for r in rows],
        "partition": [r[1] for r in rows],
        "offset": [r[2] for r in rows],
        "timestamp": micros,
        "timestamp_type": [r[5] for r in rows],
        "key": [r[6] for r in rows],
        "value": [r[7] for r in rows],
        "headers": [None if r[8] is None else [{"key": k, "value": v} for k, v in r[8]] for r in rows],
        "leader_epoch": [0] * len(rows),
        "archived_at": [now] * len(rows),
        "timestamp_raw": [r[4] for r in rows],
        "headers_raw": [r[9] for r in rows],
    }
    arrays = [c if isinstance(c, pa.Array) else pa.array(c, schema.field(n).type) for n, c in columns.items()]
    return pa.Table.from_arrays(arrays, schema=schema)


def expected(rows):
    ordered = sorted(rows, key=lambda r: r[:3])
    return len(rows), hashlib.sha256("".join(r[-1] + "\n" for r in ordered).encode()).hexdigest()


def main():
    if sys.argv[1] == "sqlite":
        base = pathlib.Path(sys.argv[2]).resolve()
        (base / "warehouse").mkdir(parents=True, exist_ok=True)
        catalog = load_catalog("everlog", type="sql", uri=f"sqlite:///{base}/catalog.db", warehouse=f"file://{base}/warehouse")
        options = ["--catalog", "sqlite", "--uri", f"{base}/catalog.db"]
    else:
        store = {
            "s3.endpoint": sys.argv[3],
            "s3.access-key-id": "testkey",
            "s3.secret-access-key": "testsecret",
            "s3.region": "us-east-1",
        }
        catalog = load_catalog("rest", type="rest", uri=sys.argv[2], **store)
        options = ["--catalog", "rest", "--uri", sys.argv[2], *(x for k, v in store.items() for x in ("-p", f"{k}={v}"))]
    catalog.create_namespace_if_not_exists("readers")
    table = catalog.create_table("readers.t", SCHEMA)
    # creation reassigns the ids of nested and later columns
    schema = table.schema().as_arrow()
    table.append(arrow(ROWS[:3], schema))
    first = table.current_snapshot().snapshot_id
    table.append(arrow(ROWS[3:], schema))
    newest = table.current_snapshot().snapshot_id
    for engine in ("pyiceberg", "duckdb"):
        for label, extra, rows, snapshot in (
            ("newest", [], ROWS, newest),
            ("first snapshot", ["--snapshot", str(first)], ROWS[:3], first),
        ):
            command = [sys.executable, READER, "--engine", engine, "--table", "readers.t", *options, *extra]
            run = subprocess.run(command, capture_output=True, text=True)
            assert run.returncode == 0, run.stderr
            got = json.loads(run.stdout)
            count, digest = expected(rows)
            assert got == {"engine": engine, "snapshot": snapshot, "rows": count, "sha256": digest}, (got, count, digest)
            print(f"  ok  {engine} on {sys.argv[1]}, {label}: {count} rows, {digest[:12]}")


main()
