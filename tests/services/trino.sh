#!/usr/bin/env bash
# Trino (one node) with its Iceberg connector. Needs curl and python3-venv; the first time also mvn (about 600 MB).
#   trino.sh fetch
#   trino.sh start DIR PORT NAME FILE      with the file as etc/catalog/NAME.properties; waits until it takes queries, prints its address
#   trino.sh query DIR FILE                runs the statements of the file, each ended by a semicolon at a line's end; of each that
#                                          asks, one line of JSON: {"columns": [...], "rows": [[...]...]}
#   trino.sh stop DIR | kill DIR | status DIR
# Env: TRINO_HEAP (1200m), EVERLOG_SERVICES_CACHE
set -euo pipefail
. "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/lib.sh"
VERSION=476

unpack() {
  local dir=$1 temp part
  [ -e "$dir/.complete" ] && return 0
  command -v mvn >/dev/null || die "mvn is needed: apt-get install -y maven ($SETUP_HINT)"
  temp=$(mktemp -d "$CACHE/trino.XXXXXX")
  for part in "trino-server-core:$VERSION:tar.gz" "trino-iceberg:$VERSION:zip"; do
    fetched "fetching ${part%%:*} $VERSION" "$dir.log" mvn -B -f "$HERE/pom/empty.xml" dependency:copy \
      "-Dartifact=io.trino:$part" "-DoutputDirectory=$temp" \
      || die "could not fetch Trino from Maven Central: check the network (log: $dir.log)"
  done
  rm -rf "$dir"
  mkdir -p "$dir/plugin"
  tar xzf "$temp"/*.tar.gz -C "$dir" --strip-components 1
  (cd "$temp" && python3 -m zipfile -e "trino-iceberg-$VERSION.zip" unzipped)
  mv "$temp/unzipped/trino-iceberg-$VERSION" "$dir/plugin/iceberg"
  rm -rf "$temp"
  touch "$dir/.complete"
}
use_trino() {
  APP="$CACHE/trino-$VERSION"
  locked trino unpack "$APP" >&2
  JAVA=$(jre25)
}
address() { echo "http://127.0.0.1:$(cat "$1/port" 2>/dev/null || die "no Trino in $1")"; }
query() { # query ADDRESS FILE
  python3 - "$1" "$2" <<'PYTHON'
import json, re, sys, time, urllib.error, urllib.request
def ask(address, body=None):
    request = urllib.request.Request(address, data=body, headers={"X-Trino-User": "test", "X-Trino-Time-Zone": "UTC"})
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code not in (502, 503, 504):
                raise
            time.sleep(0.1)
text = open(sys.argv[2], encoding="utf-8").read()
text = re.sub(r"^--.*\n?", "", text, flags=re.M)
patience = time.monotonic() + 30
for statement in re.split(r";[ \t]*(?:--.*)?$", text, flags=re.M):
    if not statement.strip():
        continue
    answer, columns, rows = ask(sys.argv[1] + "/v1/statement", statement.strip().encode()), [], []
    asks = "updateType" not in answer
    while True:
        if answer.get("error", {}).get("errorName") == "NO_NODES_AVAILABLE" and time.monotonic() < patience:
            time.sleep(0.5)  # a server that has just started is not a node of its own yet; nothing of the statement has run
            answer = ask(sys.argv[1] + "/v1/statement", statement.strip().encode())
            continue
        if "error" in answer:
            sys.exit(f"error: {answer['error']['message']}\n{statement.strip()}")
        columns = [column["name"] for column in answer.get("columns", [])] or columns
        rows += answer.get("data", [])
        asks = asks and "updateType" not in answer
        if "nextUri" not in answer:
            break
        answer = ask(answer["nextUri"])
    if asks:
        print(json.dumps({"columns": columns, "rows": rows}))
PYTHON
}
ready() { query "http://127.0.0.1:$1" <(echo 'SELECT 1'); }
start() {
  local d p
  d=$(mkdir -p "$1" && cd "$1" && pwd) p=$2
  if ! alive "$d/pid"; then
    if port_open "$p"; then die "port $p is taken"; fi
    use_trino
    mkdir -p "$d/etc/catalog" "$d/data"
    cp "$4" "$d/etc/catalog/$3.properties"
    chmod 600 "$d/etc/catalog/$3.properties"
    echo "$p" > "$d/port"
    : > "$d/server.log"
    cat > "$d/etc/config.properties" <<PROPERTIES
coordinator=true
node-scheduler.include-coordinator=true
http-server.http.port=$p
discovery.uri=http://127.0.0.1:$p
query.max-memory=400MB
query.max-memory-per-node=400MB
memory.heap-headroom-per-node=200MB
catalog.management=static
PROPERTIES
    spawn "$d/pid" "$d/server.log" env -C "$d" "$JAVA" -Xmx"${TRINO_HEAP:-1200m}" --sun-misc-unsafe-memory-access=allow \
      --enable-native-access=ALL-UNNAMED --add-opens=java.base/java.nio=ALL-UNNAMED -Djdk.attach.allowAttachSelf=true \
      -XX:+UnlockDiagnosticVMOptions -Dnode.environment=test -Dnode.id=n1 -Dnode.data-dir="$d/data" -Dnode.bind-ip=127.0.0.1 \
      -Dnode.internal-address=127.0.0.1 -Dconfig="$d/etc/config.properties" -Dplugin.dir="$APP/plugin" \
      -Dcatalog.config-dir="$d/etc/catalog" -cp "$APP/lib/*" io.trino.server.TrinoServer
    wait_until 240 "$d/pid" "$d/server.log" ready "$p"
  fi
  address "$d"
}
cmd=${1:-}
[ $# -eq 0 ] || shift
case "$cmd" in
  fetch) use_trino; echo "$APP" ;;
  start) start "$@" ;;
  query) query "$(address "$1")" "$2" ;;
  stop) stop_pid "$1/pid" 20 ;;
  kill) kill_pid "$1/pid" ;;
  status) show_status "$1" ;;
  *) usage "${BASH_SOURCE[0]}" ;;
esac
