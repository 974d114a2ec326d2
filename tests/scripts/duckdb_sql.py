#!/usr/bin/env python3
"""Runs SQL in DuckDB and prints what it answers.

    duckdb_sql.py FILE

Statements end with a semicolon. Of each that answers, one JSON line is printed: {"columns": [...], "rows": [[...]...]}; numbers that
are no whole ones, and times, as text. Extensions come as Python packages, so INSTALL does nothing, and LOAD loads the package's file.
"""

import json
import pathlib
import re
import sys
from importlib.util import find_spec

import duckdb


def extension_file(name):
    base = pathlib.Path(find_spec(f"duckdb_extension_{name}").origin).parent
    return next(base.rglob("*.duckdb_extension"))


def plain(value):
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value)


connection = duckdb.connect(config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"})
connection.execute(f"LOAD '{extension_file('avro')}'")  # what iceberg would load by itself
for statement in connection.extract_statements(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")):
    text = statement.query.strip()
    if re.match(r"INSTALL\b", text, re.I):
        continue
    if extension := re.match(r"LOAD\s+(\w+)", text, re.I):
        connection.execute(f"LOAD '{extension_file(extension[1])}'")
        continue
    try:
        answer = connection.execute(text)
    except duckdb.Error as error:
        sys.exit(f"error: {error}\n{text}")
    if statement.type == duckdb.StatementType.SELECT:
        columns = [column[0] for column in answer.description]
        print(json.dumps({"columns": columns, "rows": [plain(row) for row in answer.fetchall()]}))
