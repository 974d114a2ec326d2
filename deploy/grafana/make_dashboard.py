#!/usr/bin/env python3
"""Writes dashboard.json. Panels are data here; the JSON that Grafana wants is mostly repetition.

usage: make_dashboard.py            write;     make_dashboard.py --check   fail where the file is not what this writes
"""

import json
import pathlib
import sys

OUT = pathlib.Path(__file__).with_name("dashboard.json")
SOURCE = {"type": "prometheus", "uid": "prometheus"}
T = '{topic=~"$topic"}'


def bad_when(*steps, calm="green"):
    return {"mode": "absolute", "steps": [{"color": calm, "value": None}, *({"color": c, "value": v} for v, c in steps)]}


# title, help, unit, [(expression, legend)], thresholds
STATS = [
    ("Stopped", "Partitions and whole topics that wait for an operator.", "none", f"(sum(everlog_archiver_partition_stopped{T}) or vector(0)) + (sum(everlog_archiver_topic_stopped{T}) or vector(0))", bad_when((1, "red"))),
    ("Offsets lost", "Deleted by Kafka before they were archived, since the process started.", "none", f"sum(everlog_archiver_gap_offsets_total{T}) or vector(0)", bad_when((1, "red"))),
    ("Retention headroom", "The least time until Kafka deletes something unarchived.", "s", f"min(everlog_archiver_retention_headroom_seconds{T})", bad_when((21600, "orange"), (86400, "green"), calm="red")),
    ("Worst lag", "How far the slowest partition is behind Kafka.", "s", f"max(everlog_archiver_lag_seconds{T})", bad_when((300, "orange"), (900, "red"))),
    ("Since last commit", "Of the topic that waits longest.", "s", f"max(time() - everlog_archiver_last_commit_timestamp_seconds{T})", bad_when((120, "orange"), (600, "red"))),
    ("Archive rate", "Records committed per second.", "short", f"sum(rate(everlog_archiver_records_total{T}[1m]))", bad_when()),
]
GRAPHS = [
    ("Records per second", "Committed.", "short", [(f"sum by (topic) (rate(everlog_archiver_records_total{T}[1m]))", "{{topic}}")]),
    ("Bytes written per second", "Data files, compressed.", "Bps", [(f"sum by (topic) (rate(everlog_archiver_bytes_written_total{T}[1m]))", "{{topic}}")]),
    ("Lag in records", "Per topic; the ten partitions that lag most.", "short", [(f"topk(10, everlog_archiver_lag_records{T})", "{{topic}}-{{partition}}")]),
    ("Lag in time", "How long ago the log first held what is not archived yet.", "s", [(f"topk(10, everlog_archiver_lag_seconds{T})", "{{topic}}-{{partition}}")]),
    ("Open transactions", "How long the last stable offset has stood still before records that nobody may read yet.", "s", [(f"topk(10, everlog_archiver_open_transaction_seconds{T})", "{{topic}}-{{partition}}")]),
    ("Retention headroom", "Time until Kafka deletes something unarchived; the ten smallest.", "s", [(f"bottomk(10, everlog_archiver_retention_headroom_seconds{T} < Inf)", "{{topic}}-{{partition}}")]),
    ("Ledger moves", "Offsets per second by which each partition's ledger advances; the ten slowest.", "short", [(f"bottomk(10, rate(everlog_archiver_ledger_next_offset{T}[5m]))", "{{topic}}-{{partition}}")]),
    ("Commits per minute", "By outcome.", "short", [(f"sum by (outcome) (rate(everlog_archiver_commits_total{T}[5m])) * 60", "{{outcome}}")]),
    ("Commit time", "From the decision to commit to the snapshot.", "s", [
        (f"histogram_quantile({q}, sum by (le) (rate(everlog_archiver_commit_seconds_bucket{T}[5m])))", f"p{int(q * 100)}") for q in (0.5, 0.95, 0.99)
    ]),
    ("Files per minute", "Few, large files are good.", "short", [(f"sum by (topic) (rate(everlog_archiver_files_written_total{T}[5m])) * 60", "{{topic}}")]),
    ("Errors per minute", "By kind; each was retried or stopped a partition.", "short", [("sum by (kind) (rate(everlog_archiver_errors_total[5m])) * 60", "{{kind}}")]),
    ("Memory held", "Records in memory, the Kafka client's queues included.", "bytes", [("everlog_archiver_memory_held_bytes", "{{instance}}")]),
    ("Maintenance held back", "1 while maintenance leaves files that nothing needs; the archiver's warning says why.", "none", [(f"max by (topic) (everlog_archiver_maintenance_held_back{T})", "{{topic}}")]),
    ("Versions", "What runs.", "none", [("count by (version) (everlog_build_info)", "{{version}}")]),
]


def targets(queries):
    return [{"datasource": SOURCE, "expr": expr, "legendFormat": legend, "refId": chr(65 + i)} for i, (expr, legend) in enumerate(queries)]


def panel(number, kind, title, help_text, unit, queries, place, thresholds=None):
    defaults = {"unit": unit}
    if thresholds:
        defaults["thresholds"] = thresholds
        defaults["color"] = {"mode": "thresholds"}
    return {
        "id": number,
        "type": kind,
        "title": title,
        "description": help_text,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": targets(queries),
    }


def dashboard():
    panels = []
    for i, (title, help_text, unit, expr, thresholds) in enumerate(STATS):
        panels.append(panel(len(panels) + 1, "stat", title, help_text, unit, [(expr, "")], {"x": 4 * i, "y": 0, "w": 4, "h": 4}, thresholds))
    for i, (title, help_text, unit, queries) in enumerate(GRAPHS):
        place = {"x": 12 * (i % 2), "y": 4 + 8 * (i // 2), "w": 12, "h": 8}
        panels.append(panel(len(panels) + 1, "timeseries", title, help_text, unit, queries, place))
    return {
        "uid": "everlog",
        "title": "everlog archiver",
        "tags": ["everlog"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {
            "list": [
                {
                    "name": "topic",
                    "label": "Topic",
                    "type": "query",
                    "datasource": SOURCE,
                    "query": {"query": "label_values(everlog_archiver_ledger_next_offset, topic)", "refId": "topic"},
                    "refresh": 2,
                    "multi": True,
                    "includeAll": True,
                    "allValue": ".*",
                    "current": {"text": ["All"], "value": ["$__all"]},
                    "sort": 1,
                }
            ]
        },
        "panels": panels,
    }


def main():
    text = json.dumps(dashboard(), indent=1) + "\n"
    if "--check" in sys.argv[1:]:
        if OUT.read_text(encoding="utf-8") != text:
            sys.exit(f"error: {OUT.name} is not what make_dashboard.py writes: run it")
        return
    OUT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
