#!/usr/bin/env python3
"""Checks that what the documents and deploy/ say fits together. Standard library only; prints every problem, ends with 1.

- relative links in *.md lead to a file, and their anchors to a heading;
- metrics named in deploy/ are described in docs/operations.md, and so is each alert (once that page exists);
- JSON in deploy/ parses;
- no file speaks of a path of somebody's machine.
"""

import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
METRIC = re.compile(r"\beverlog_(?:archiver|replayer|processor|build|process)_[a-z_]+[a-z]\b")
HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")
MACHINE = re.compile(r"(?<![\w.:/-])/(?:work|root|home/\w+)/\w+")
TEXT = {".md", ".rs", ".toml", ".sh", ".py", ".yaml", ".yml", ".json", ".java", ".xml", ""}


def tracked():
    """Files under version control, or every file where there is no git."""
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True)
    if listed.returncode == 0:
        return [p for p in (ROOT / name for name in listed.stdout.splitlines()) if p.is_file()]
    return [p for p in ROOT.rglob("*") if p.is_file() and "target" not in p.relative_to(ROOT).parts[:1]]


def without_code(text):
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.M | re.S))


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    found, seen = set(), {}
    text = re.sub(r"^(```|~~~).*?^\1", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for heading in re.findall(r"^#{1,6}\s+(.*?)\s*#*$", text, flags=re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        n = seen.get(slug, 0)
        seen[slug] = n + 1
        found.add(f"{slug}-{n}" if n else slug)
    found.update(re.findall(r'<a (?:id|name)="([^"]+)"', text))
    return found


def links(pages):
    for page in pages:
        for target in LINK.findall(without_code(page.read_text(encoding="utf-8"))):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            where = (page.parent / path).resolve() if path else page
            if not where.exists():
                yield f"{page.relative_to(ROOT)}: link to {target}: no such file"
            elif anchor and where.suffix == ".md" and anchor not in anchors(where):
                yield f"{page.relative_to(ROOT)}: link to {target}: no such heading"


def metrics(files):
    operations = ROOT / "docs" / "operations.md"
    if not operations.exists():
        return
    described = operations.read_text(encoding="utf-8")
    for path in files:
        text = path.read_text(encoding="utf-8")
        for name in sorted(set(METRIC.findall(text))):
            bare = next((name.removesuffix(s) for s in HISTOGRAM_PARTS if name.endswith(s)), name)
            if name not in described and bare not in described:
                yield f"{path.relative_to(ROOT)}: metric {name} is not in docs/operations.md"
        for alert in re.findall(r"^\s*-?\s*alert:\s*(\w+)", text, flags=re.M):
            if alert not in described:
                yield f"{path.relative_to(ROOT)}: alert {alert} is not in docs/operations.md"


def json_files(files):
    for path in files:
        if path.suffix == ".json":
            try:
                json.loads(path.read_text(encoding="utf-8"))
            except ValueError as e:
                yield f"{path.relative_to(ROOT)}: {e}"


def machine_paths(files):
    for path in files:
        if path.suffix not in TEXT or path == pathlib.Path(__file__).resolve():
            continue
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(lines, 1):
            if hit := MACHINE.search(line):
                yield f"{path.relative_to(ROOT)}:{number}: {hit.group(0)} is a path of one machine"


def main():
    files = tracked()
    deploy = [p for p in files if p.relative_to(ROOT).parts[0] == "deploy"]
    pages = [p for p in files if p.suffix == ".md"]
    problems = [*links(pages), *metrics(deploy), *json_files(deploy), *machine_paths(files)]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        return 1
    print(f"documents: {len(pages)} pages, {len(deploy)} files of deploy/, links and names fit")
    return 0


if __name__ == "__main__":
    sys.exit(main())
