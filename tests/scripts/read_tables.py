#!/usr/bin/env python3
"""Reads an everlog table with another engine and prints what it holds as one JSON line.

    read_tables.py --engine pyiceberg|duckdb --catalog sqlite --uri catalog.db --table ns.topic
    read_tables.py --engine pyiceberg|duckdb --catalog rest --uri http://127.0.0.1:8181 --table ns.topic \
        [--token T] -p s3.endpoint=http://127.0.0.1:9000 -p s3.access-key-id=K -p s3.secret-access-key=S
    options: --snapshot ID (default: current), --name CATALOG (sqlite; default everlog), --dump FILE (the canonical lines)

    {"engine":"duckdb","snapshot":123,"rows":3,"sha256":"..."}

The hash is SHA-256 over one line per row, in the order of (generation, partition, offset), each ended by a newline:

    generation,partition,offset,timestamp,timestamp_type,key,value,headers

    timestamp       milliseconds: `timestamp` in whole milliseconds, else `timestamp_raw`, else the word null
    key, value      lower-case hexadecimal; nothing where empty, the word null where null
    headers         [[key,value],[key,value]...] in their order, both as hexadecimal, null as above; [] without headers;
                    from `headers_raw` where that is set
    example         0,3,17,1700000000123,0,6b31,null,[[61,],[61,null],[62,ff]]

Two engines that agree print the same hash; so does whoever forms the same lines from the broker's log.
"""

import argparse
import hashlib
import json
import pathlib
import sqlite3
import struct
import sys
import urllib.request

import pyarrow as pa

COLUMNS = [
    "generation",
    "partition",
    "offset",
    "timestamp",
    "timestamp_type",
    "key",
    "value",
    "headers",
    "timestamp_raw",
    "headers_raw",
]


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--engine", required=True, choices=["pyiceberg", "duckdb"])
    p.add_argument("--catalog", required=True, choices=["sqlite", "rest"])
    p.add_argument("--uri", required=True, help="the SQLite file, or the REST catalog's address")
    p.add_argument("--table", required=True, help="namespace.table")
    p.add_argument("--snapshot", type=int)
    p.add_argument("--name", default="everlog", help="the catalog's name in SQLite")
    p.add_argument("--token", help="bearer token for the REST catalog")
    p.add_argument("-p", "--property", action="append", default=[], metavar="KEY=VALUE")
    p.add_argument("--dump", help="also write the canonical lines to this file")
    args = p.parse_args()
    args.properties = dict(item.split("=", 1) for item in args.property)
    args.namespace, args.leaf = args.table.rsplit(".", 1)
    return args


def with_pyiceberg(args):
    from pyiceberg.catalog import load_catalog

    properties = {"s3.region": "us-east-1", **args.properties}
    if args.catalog == "sqlite":
        catalog = load_catalog(args.name, type="sql", uri=f"sqlite:///{pathlib.Path(args.uri).resolve()}", **properties)
    else:
        if args.token:
            properties["token"] = args.token
        catalog = load_catalog("rest", type="rest", uri=args.uri, **properties)
    table = catalog.load_table(args.table)
    if args.snapshot is None and table.current_snapshot() is None:
        return None, None
    snapshot = args.snapshot if args.snapshot is not None else table.current_snapshot().snapshot_id
    present = {f.name for f in table.schema().fields}
    scan = table.scan(snapshot_id=snapshot, selected_fields=tuple(c for c in COLUMNS if c in present))
    return snapshot, scan.to_arrow()


def with_duckdb(args):
    import duckdb

    c = duckdb.connect(config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"})
    for extension in ("httpfs", "avro", "iceberg"):
        c.execute(f"LOAD '{extension_file(extension)}'")
    c.execute("SET TimeZone = 'UTC'")
    if "s3.endpoint" in args.properties:
        secret(c, args.properties)
    source, snapshot = (duckdb_sqlite if args.catalog == "sqlite" else duckdb_rest)(c, args)
    present = [row[0] for row in c.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()]
    names = ", ".join(f'"{n}"' for n in COLUMNS if n in present)
    return snapshot, c.execute(f"SELECT {names} FROM {source}").to_arrow_table()


def extension_file(name):
    """The extensions come as Python packages, so that nothing is downloaded at run time."""
    from importlib.util import find_spec

    base = pathlib.Path(find_spec(f"duckdb_extension_{name}").origin).parent
    return next(base.rglob("*.duckdb_extension"))


def quoted(text):
    return "'" + text.replace("'", "''") + "'"


def secret(c, properties):
    scheme, _, host = properties["s3.endpoint"].partition("://")
    c.execute(
        f"CREATE SECRET (TYPE s3, KEY_ID {quoted(properties['s3.access-key-id'])}, "
        f"SECRET {quoted(properties['s3.secret-access-key'])}, ENDPOINT {quoted(host)}, URL_STYLE 'path', "
        f"USE_SSL {str(scheme == 'https').lower()}, REGION {quoted(properties.get('s3.region', 'us-east-1'))})"
    )


def duckdb_sqlite(c, args):
    """DuckDB knows no SQL catalog: the metadata file's place is read from it, the rest is DuckDB's."""
    database = sqlite3.connect(f"file:{pathlib.Path(args.uri).resolve()}?mode=ro", uri=True)
    row = database.execute(
        "SELECT metadata_location FROM iceberg_tables WHERE catalog_name = ? AND table_namespace = ? AND table_name = ?",
        (args.name, args.namespace, args.leaf),
    ).fetchone()
    database.close()
    if row is None:
        sys.exit(f"error: no table {args.table} in catalog {args.name} of {args.uri}")
    place = quoted(row[0].removeprefix("file://"))
    snapshot = args.snapshot
    if snapshot is None:
        snapshot = current_snapshot(json.loads(c.execute(f"SELECT content FROM read_text({place})").fetchone()[0]))
    at = "" if snapshot is None else f", snapshot_from_id => {snapshot}"
    return f"iceberg_scan({place}{at})", snapshot


def duckdb_rest(c, args):
    if args.token:
        c.execute(f"CREATE SECRET rest (TYPE iceberg, TOKEN {quoted(args.token)})")
        authorization = "SECRET rest"
    else:
        authorization = "AUTHORIZATION_TYPE 'none'"
    # with credentials of our own, as in the secret above, the server need not vend any
    mode = ", ACCESS_DELEGATION_MODE 'none'" if "s3.endpoint" in args.properties else ""
    c.execute(f"ATTACH '' AS ice (TYPE iceberg, ENDPOINT {quoted(args.uri)}, {authorization}{mode})")
    table = ".".join(f'"{part}"' for part in ("ice", args.namespace, args.leaf))
    snapshot = args.snapshot
    if snapshot is None:
        request = urllib.request.Request(f"{args.uri}/v1/namespaces/{args.namespace}/tables/{args.leaf}")
        if args.token:
            request.add_header("Authorization", f"Bearer {args.token}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            snapshot = current_snapshot(json.load(answer)["metadata"])
    at = "" if snapshot is None else f" AT (VERSION => {snapshot})"
    return f"{table}{at}", snapshot


def current_snapshot(metadata):
    """The snapshot id, or None for a table without one (older writers say -1)."""
    snapshot = metadata.get("current-snapshot-id")
    return None if snapshot in (None, -1) else snapshot


def hexadecimal(value):
    return "null" if value is None else value.hex()


def header_text(headers, raw):
    if raw is None:
        pairs = [(h["key"].encode(), h["value"]) for h in headers or ()]
    else:
        pairs = raw_headers(raw)
    return "[" + ",".join(f"[{key.hex()},{hexadecimal(value)}]" for key, value in pairs) + "]"


def raw_headers(raw):
    """A header list with a key that is not UTF-8: a count, then per header the lengths and bytes of key and value.

    Numbers are 4 bytes, little endian; a value's length is -1 where it is null.
    """
    at, pairs = 4, []

    def take():
        nonlocal at
        (length,) = struct.unpack_from("<i", raw, at)
        start, at = at + 4, at + 4 + max(length, 0)
        if at > len(raw):
            sys.exit("error: headers_raw ends too early")
        return None if length < 0 else raw[start:at]

    for _ in range(struct.unpack_from("<I", raw)[0]):
        key = take()
        pairs.append((key, take()))
    if at != len(raw):
        sys.exit("error: headers_raw does not end where it should")
    return pairs


def lines(table):
    """The canonical lines of an Arrow table, in order."""
    table = table.sort_by([("generation", "ascending"), ("partition", "ascending"), ("offset", "ascending")])
    for batch in table.to_batches(max_chunksize=65536):
        names = batch.schema.names
        absent = [None] * batch.num_rows

        def column(name, cast=None):
            if name not in names:
                return absent
            array = batch.column(name)
            return (array.cast(cast) if cast else array).to_pylist()

        stamps = column("timestamp", pa.int64())
        raws = column("timestamp_raw")
        for generation, partition, offset, stamp, raw, kind, key, value, headers, header_bytes in zip(
            column("generation"),
            column("partition"),
            column("offset"),
            stamps,
            raws,
            column("timestamp_type"),
            column("key"),
            column("value"),
            column("headers"),
            column("headers_raw"),
            strict=True,
        ):
            ms = raw if stamp is None else stamp // 1000
            yield (
                f"{generation},{partition},{offset},{'null' if ms is None else ms},{kind},"
                f"{hexadecimal(key)},{hexadecimal(value)},{header_text(headers, header_bytes)}\n"
            ).encode()


def microseconds(table):
    """Engines may hand out another time unit; the format's is microseconds."""
    i = table.schema.get_field_index("timestamp")
    return table.set_column(i, "timestamp", table.column(i).cast(pa.timestamp("us", tz="UTC")))


def main():
    args = parse()
    snapshot, table = (with_pyiceberg if args.engine == "pyiceberg" else with_duckdb)(args)
    digest, rows = hashlib.sha256(), 0
    dump = open(args.dump, "wb") if args.dump else None
    for line in lines(microseconds(table)) if table is not None else ():
        digest.update(line)
        rows += 1
        if dump:
            dump.write(line)
    if dump:
        dump.close()
    print(json.dumps({"engine": args.engine, "snapshot": snapshot, "rows": rows, "sha256": digest.hexdigest()}, separators=(",", ":")))


if __name__ == "__main__":
    main()
