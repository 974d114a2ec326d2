#!/usr/bin/env python3
"""Another engine at work on an everlog table of a SQL catalog in SQLite: pyiceberg, with data files written by DuckDB and Arrow.

    foreign.py --uri catalog.db --table ns.topic VERB [ARGUMENT]...
    options: --name CATALOG (default everlog)

    snapshots            prints {"current":ID,"snapshots":[{"id":ID,"operation":"append","ms":T}...],"refs":{NAME:ID}}, oldest first
    tag NAME ID          makes a tag
    untag PREFIX         removes the tags whose names begin so
    rewrite              compaction: every live row into other files, in another order, with other row groups, encodings and
                         codecs, without field ids and key-value metadata; commits them as `replace`
    repartition          like rewrite, under a partition spec without fields
    overwrite            writes every row anew by the engine's own means (`overwrite` or `delete` and `append`)
    delete EXPRESSION    deletes rows (copy on write), as in "offset < 10"
    append N             appends N rows behind the last offset of partition 0
    double               appends a row that is there
    rollback ID          sets main back to an ancestor
    expire ID...         expires snapshots, and removes every file that no other snapshot needs

Verbs that commit print {"current":ID}.
"""

import argparse
import json
import os
import pathlib
import uuid

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyiceberg.catalog import load_catalog
from pyiceberg.io.pyarrow import compute_statistics_plan, data_file_statistics_from_parquet_metadata, parquet_path_to_id_mapping
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.table import TableProperties
from pyiceberg.table.snapshots import Operation, Summary
from pyiceberg.table.update.snapshot import _OverwriteFiles


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--uri", required=True, help="the SQLite file")
    p.add_argument("--table", required=True, help="namespace.table")
    p.add_argument("--name", default="everlog", help="the catalog's name in SQLite")
    p.add_argument("verb")
    p.add_argument("arguments", nargs="*")
    return p.parse_args()


def local(uri):
    return pathlib.Path(uri.removeprefix("file://"))


def rows_of(table):
    """Every live row, in an order that is nobody's."""
    rows = table.scan().to_arrow()
    keys = pc.bit_wise_xor(pc.multiply(pc.cast(rows["offset"], pa.int64()), 7919), 0x2A5A5)
    mixed = pc.add(pc.bit_wise_and(keys, 0xFFFF), pc.cast(rows["partition"], pa.int64()))
    return rows.take(pc.array_sort_indices(mixed))


def by_day(rows):
    """Rows of one day of archived_at each, as the default partition spec wants them."""
    days = pc.floor_temporal(rows["archived_at"], unit="day")
    for day in pc.unique(days):
        yield rows.filter(pc.equal(days, day))


def with_duckdb(rows, path):
    import duckdb

    c = duckdb.connect(config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"})
    c.execute("SET TimeZone = 'UTC'")
    c.register("rows", rows)
    c.execute(f"COPY rows TO '{path}' (FORMAT parquet, COMPRESSION snappy, ROW_GROUP_SIZE 2048)")


def with_arrow(rows, path):
    plain = pa.schema([f.remove_metadata() for f in rows.schema])
    pq.write_table(
        pa.Table.from_arrays(rows.columns, schema=plain),
        path,
        row_group_size=701,
        compression="gzip",
        data_page_version="2.0",
        use_dictionary=["topic", "key"],
        write_statistics=["partition", "offset", "archived_at"],
    )


def data_file(table, path):
    """Describes a file by its footer. The engine's own function takes no file whose columns may be null where the table's may not."""
    metadata = pq.read_metadata(path)
    schema = table.schema()
    statistics = data_file_statistics_from_parquet_metadata(
        parquet_metadata=metadata,
        stats_columns=compute_statistics_plan(schema, table.metadata.properties),
        parquet_column_mapping=parquet_path_to_id_mapping(schema),
    )
    return DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=path.as_uri(),
        file_format=FileFormat.PARQUET,
        partition=statistics.partition(table.spec(), schema),
        file_size_in_bytes=path.stat().st_size,
        sort_order_id=None,
        spec_id=table.spec().spec_id,
        equality_ids=None,
        key_metadata=None,
        **statistics.to_serialized_dict(),
    )


class Replace(_OverwriteFiles):
    """An overwrite that says what it is: the same rows in other files."""

    def _summary(self, snapshot_properties={}):
        summary = super()._summary(snapshot_properties)
        return Summary(operation=Operation.REPLACE, **summary.additional_properties)


def rewrite(table):
    folder = local(table.location()) / "data" / "rewritten"
    folder.mkdir(parents=True, exist_ok=True)
    new = []
    groups = [rows_of(table)] if not table.spec().fields else by_day(rows_of(table))
    for rows in groups:
        half = rows.num_rows // 2
        for write, part in ((with_duckdb, rows.slice(0, half)), (with_arrow, rows.slice(half))):
            path = folder / f"{uuid.uuid4()}.parquet"
            write(part, path)
            new.append(data_file(table, path))
    with table.transaction() as transaction:
        # as `add_files` does for files without field ids
        transaction.set_properties(**{TableProperties.DEFAULT_NAME_MAPPING: table.schema().name_mapping.model_dump_json()})
        producer = Replace(operation=Operation.OVERWRITE, transaction=transaction, io=table.io)
        for task in table.scan().plan_files():
            producer.delete_data_file(task.file)
        for file in new:
            producer.append_data_file(file)
        producer.commit()


def repartition(table):
    with table.update_spec() as spec:
        for field in table.spec().fields:
            spec.remove_field(field.name)
    rewrite(table.refresh())


def beyond(table, count):
    """Rows behind the last offset of partition 0, otherwise like its last row."""
    rows = table.scan(row_filter="partition = 0").to_arrow()
    last = rows.take(pc.array_sort_indices(rows["offset"], order="descending")[:1])
    at = last.schema.get_field_index("offset")
    field = last.schema.field(at)
    made = [last.set_column(at, field, pa.array([last["offset"][0].as_py() + 1 + i], field.type)) for i in range(count)]
    return pa.concat_tables(made)


def files_of(table):
    """Every file that a snapshot of the table needs."""
    files = set()
    for snapshot in table.snapshots():
        files.add(snapshot.manifest_list)
        for manifest in snapshot.manifests(table.io):
            files.add(manifest.manifest_path)
            files.update(e.data_file.file_path for e in manifest.fetch_manifest_entry(table.io, discard_deleted=True))
    return files


def expire(table, ids):
    before = files_of(table)
    table.maintenance.expire_snapshots().by_ids([int(i) for i in ids]).commit()
    for uri in sorted(before - files_of(table.refresh())):
        os.remove(local(uri))


def show(table):
    snapshots = sorted(table.snapshots(), key=lambda s: s.sequence_number)
    print(
        json.dumps(
            {
                "current": table.current_snapshot().snapshot_id,
                "snapshots": [{"id": s.snapshot_id, "operation": s.summary.operation.value, "ms": s.timestamp_ms} for s in snapshots],
                "refs": {name: ref.snapshot_id for name, ref in table.metadata.refs.items()},
            }
        )
    )


def main():
    args = parse()
    catalog = load_catalog(args.name, type="sql", uri=f"sqlite:///{pathlib.Path(args.uri).resolve()}")
    table = catalog.load_table(args.table)
    verb, given = args.verb, args.arguments
    if verb == "tag":
        table.manage_snapshots().create_tag(int(given[1]), given[0]).commit()
    elif verb == "untag":
        for name in [n for n in table.metadata.refs if n.startswith(given[0])]:
            table.manage_snapshots().remove_tag(name).commit()
    elif verb == "rewrite":
        rewrite(table)
    elif verb == "repartition":
        repartition(table)
    elif verb == "overwrite":
        table.overwrite(rows_of(table))
    elif verb == "delete":
        table.delete(given[0])
    elif verb == "append":
        table.append(beyond(table, int(given[0])))
    elif verb == "double":
        table.append(table.scan(limit=1).to_arrow())
    elif verb == "rollback":
        table.manage_snapshots().rollback_to_snapshot(int(given[0])).commit()
    elif verb == "expire":
        expire(table, given)
    elif verb != "snapshots":
        raise SystemExit(f"error: unknown verb {verb}; see foreign.py --help")
    table = catalog.load_table(args.table)
    if verb == "snapshots":
        show(table)
    else:
        print(json.dumps({"current": table.current_snapshot().snapshot_id}))


if __name__ == "__main__":
    main()
