#!/usr/bin/env python3
"""Answers one question of `make bench` about the lake, several times, for whoever measures it (benches/src/sql.rs).

    bench_sql.py duckdb [--table NAME=METADATA_FILE]... [--view STATEMENT] --question STATEMENT
    bench_sql.py pyiceberg --catalog SQLITE_FILE --question NAME
    options: --threads N, --times N

A row is one JSON line, an object by the columns' names; behind an answer, and before the first when everything is loaded, comes the
line {"mark":"answered"}. Nothing is kept from one answer to the next but what the engine itself keeps: tables are looked up anew.

With pyiceberg a question is a function here: rows come as Arrow, and what is asked of them is worked out by PyArrow.
"""

import argparse
import json
import os
import pathlib
import sys
from importlib.util import find_spec

MARK = '{"mark":"answered"}'
# the hour that is asked about, and what times are counted from so that their sum fits
HOUR = ("2025-10-09T18:00:00+00:00", "2025-10-09T19:00:00+00:00")
START_MS = 1_760_000_000_000


def extension_file(name):
    """The extensions come as Python packages, so that nothing is downloaded at run time."""
    base = pathlib.Path(find_spec(f"duckdb_extension_{name}").origin).parent
    return next(base.rglob("*.duckdb_extension"))


def duckdb_asked(args):
    import duckdb

    connection = duckdb.connect(config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"})
    for extension in ("avro", "iceberg"):
        connection.execute(f"LOAD '{extension_file(extension)}'")
    connection.execute(f"SET threads = {args.threads}")
    connection.execute("SET TimeZone = 'UTC'")
    for table in args.table:
        name, _, file = table.partition("=")
        place = file.replace("'", "''")
        connection.execute(f"CREATE VIEW \"{name}\" AS SELECT * FROM iceberg_scan('{place}')")
    if args.view:
        connection.execute(args.view)

    def answer():
        result = connection.execute(args.question)
        columns = [column[0] for column in result.description]
        return [dict(zip(columns, row, strict=True)) for row in result.fetchall()]

    return answer


def pyiceberg_asked(args):
    os.environ["PYICEBERG_MAX_WORKERS"] = str(args.threads)  # read when it is first needed
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.json
    from pyiceberg.catalog import load_catalog

    pa.set_cpu_count(args.threads)
    pa.set_io_thread_count(args.threads)
    catalog = load_catalog("everlog", type="sql", uri=f"sqlite:///{pathlib.Path(args.catalog).resolve()}")

    def rows(table, *columns, **scan):
        return catalog.load_table(f"everlog.{table}").scan(selected_fields=columns, **scan).to_arrow()

    def parsed(values, **fields):
        """Fields of JSON values, by PyArrow's own reader of JSON lines."""
        schema = pa.schema(list(fields.items()))
        options = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
        tables = []
        for chunk in values.chunks:
            chunk = chunk.cast(pa.large_binary())
            one = pa.LargeListArray.from_arrays(pa.array([0, len(chunk)], pa.int64()), chunk)
            lines = pc.binary_join(one, pa.scalar(b"\n", pa.large_binary()))[0].as_buffer()
            tables.append(pyarrow.json.read_json(pa.BufferReader(lines), parse_options=options))
        table = pa.concat_tables(tables)
        if len(table) != len(values):
            sys.exit(f"error: {len(values)} values gave {len(table)} rows")
        return table

    def total(column):
        return pc.sum(column).as_py()

    def bytes_of(column):
        return total(pc.binary_length(column))

    def counted(table, by):
        """How often each value is there, in order of the values."""
        groups = table.group_by(by).aggregate([([], "count_all")]).sort_by(by)
        return groups.rename_columns({"count_all": "n"}).select([by, "n"]).to_pylist()

    def scan():
        day = rows("bench_day", "key", "value", "offset", "timestamp")
        return [
            {
                "n": len(day),
                "offsets": total(day["offset"]),
                "last": pc.max(day["timestamp"]).cast(pa.int64()).as_py() // 1000,
                "key_bytes": bytes_of(day["key"]),
                "value_bytes": bytes_of(day["value"]),
            }
        ]

    def hour():
        day = rows("bench_day", "value", row_filter=f"timestamp >= '{HOUR[0]}' and timestamp < '{HOUR[1]}'")
        return [{"n": len(day), "value_bytes": bytes_of(day["value"])}]

    def group():
        keys = rows("bench_day", "key", "offset").group_by("key").aggregate([([], "count_all"), ("offset", "max")])
        times = keys.group_by("count_all").aggregate([([], "count_all"), ("offset_max", "sum")])
        times = times.rename_columns(["times", "keys", "last"]).sort_by("times")
        return [row | {"n": row["times"] * row["keys"]} for row in times.to_pylist()]

    def extract():
        return counted(parsed(rows("bench_day", "value")["value"], event_type=pa.string()), "event_type")

    def join():
        users = rows("bench_users", "key", "value")
        users = users.select(["key"]).append_column("country", parsed(users["value"], country=pa.string())["country"])
        return counted(rows("bench_day", "key").join(users, keys="key", join_type="inner"), "country")

    def values():
        day = rows("bench_day", "value")
        return [{"n": len(day), "value_bytes": bytes_of(day["value"])}]

    def view():
        text = pa.string()
        columns = {"user_id": text, "product_id": text, "event_type": text, "timestamp_ms": pa.int64()}
        day = parsed(rows("bench_day", "value")["value"], **columns)
        return [
            {
                "n": len(day),
                "users": bytes_of(day["user_id"]),
                "products": bytes_of(day["product_id"]),
                "types": bytes_of(day["event_type"]),
                "times": total(pc.subtract(day["timestamp_ms"], START_MS)),
            }
        ]

    questions = (scan, hour, group, extract, join, values, view)
    return {question.__name__: question for question in questions}[args.question]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("engine", choices=["duckdb", "pyiceberg"])
    p.add_argument("--question", required=True)
    p.add_argument("--table", action="append", default=[], metavar="NAME=METADATA_FILE")
    p.add_argument("--view", help="a statement that makes a view of the tables")
    p.add_argument("--catalog", help="the SQLite file")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--times", type=int, default=1)
    args = p.parse_args()
    answer = {"duckdb": duckdb_asked, "pyiceberg": pyiceberg_asked}[args.engine](args)
    print(MARK, flush=True)
    for _ in range(args.times):
        lines = [json.dumps(row, separators=(",", ":")) for row in answer()]
        print("\n".join(lines), flush=True)
        print(MARK, flush=True)


if __name__ == "__main__":
    main()
