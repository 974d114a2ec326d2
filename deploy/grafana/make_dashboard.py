#!/usr/bin/env python3
"""Writes dashboard.json (the archiver) and jobs.json (stream processors). Panels are data here; the JSON that Grafana wants is mostly repetition.

usage: make_dashboard.py            write;     make_dashboard.py --check   fail where the file is not what this writes
"""

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
SOURCE = {"type": "prometheus", "uid": "prometheus"}
T = '{topic=~"$topic"}'
J = '{name=~"$name"}'


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

WHO = "{{name}} {{version}}"
JOB_STATS = [
    ("Jobs", "Versions of jobs that answer.", "none", f"count(everlog_processor_epoch{J}) or vector(0)", bad_when()),
    ("Most behind", "Records from a job's position to the end of the live log.", "short", f"max(everlog_processor_lag_records{J})", bad_when()),
    ("Event time behind", "How far the slowest job's event time is behind the clock.", "s", f"max(time() - everlog_processor_watermark_timestamp_seconds{J})", bad_when((600, "orange"), (3600, "red"))),
    ("Dead letters", "Since the versions began.", "none", f"sum(everlog_processor_dead{J})", bad_when((1, "orange"))),
    ("Late", "Since the versions began.", "none", f"sum(everlog_processor_late{J})", bad_when()),
    ("Gaps passed", "Recorded gaps of the archive that rows lack.", "none", f"sum(everlog_processor_gaps_total{J})", bad_when((1, "red"))),
]
JOB_GRAPHS = [
    ("Records per second", "Read, from either tier.", "short", [(f"rate(everlog_processor_records_total{J}[1m])", WHO)]),
    ("Rows per second", "Of the version.", "short", [(f"rate(everlog_processor_rows{J}[1m])", WHO)]),
    ("Lag in records", "To the end of the live log, history included.", "short", [(f"everlog_processor_lag_records{J}", WHO)]),
    ("Event time behind the clock", "A replay's falls until it is live.", "s", [(f"time() - everlog_processor_watermark_timestamp_seconds{J}", WHO)]),
    ("Who holds time back", "The slowest partition, while one is.", "none", [(f"everlog_processor_slowest_partition{J}", WHO)]),
    ("Partitions held", "Not read on for now: too far ahead of the slowest.", "none", [(f"everlog_processor_partitions_held{J}", WHO)]),
    ("State", "On disk and in changes that are not there yet.", "bytes", [(f"everlog_processor_state_bytes{J}", WHO)]),
    ("Commits", "What the last epoch took: file, outputs, local state.", "s", [(f"everlog_processor_commit_seconds{J}", WHO)]),
    ("Epochs per minute", "Committed.", "short", [(f"rate(everlog_processor_epochs_total{J}[5m]) * 60", WHO)]),
    ("Late and dead per minute", "Records that are in no row.", "short", [
        (f"rate(everlog_processor_late{J}[5m]) * 60", WHO + " late"),
        (f"rate(everlog_processor_dead{J}[5m]) * 60", WHO + " dead"),
    ]),
]
# file, uid, title, what is chosen from and by which metric, panels
DASHBOARDS = [
    ("dashboard.json", "everlog", "everlog archiver", ("topic", "Topic", "everlog_archiver_ledger_next_offset"), STATS, GRAPHS),
    ("jobs.json", "everlog-jobs", "everlog jobs", ("name", "Job", "everlog_processor_epoch"), JOB_STATS, JOB_GRAPHS),
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


def dashboard(uid, name, chosen, stats, graphs):
    label, shown, metric = chosen
    panels = []
    for i, (title, help_text, unit, expr, thresholds) in enumerate(stats):
        panels.append(panel(len(panels) + 1, "stat", title, help_text, unit, [(expr, "")], {"x": 4 * i, "y": 0, "w": 4, "h": 4}, thresholds))
    for i, (title, help_text, unit, queries) in enumerate(graphs):
        place = {"x": 12 * (i % 2), "y": 4 + 8 * (i // 2), "w": 12, "h": 8}
        panels.append(panel(len(panels) + 1, "timeseries", title, help_text, unit, queries, place))
    return {
        "uid": uid,
        "title": name,
        "tags": ["everlog"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {
            "list": [
                {
                    "name": label,
                    "label": shown,
                    "type": "query",
                    "datasource": SOURCE,
                    "query": {"query": f"label_values({metric}, {label})", "refId": label},
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
    for file, *what in DASHBOARDS:
        out = HERE / file
        text = json.dumps(dashboard(*what), indent=1) + "\n"
        if "--check" not in sys.argv[1:]:
            out.write_text(text, encoding="utf-8")
        elif not out.exists() or out.read_text(encoding="utf-8") != text:
            sys.exit(f"error: {out.name} is not what make_dashboard.py writes: run it")


if __name__ == "__main__":
    main()
