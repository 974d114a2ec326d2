#!/usr/bin/env bash
# Apache Flink with its Kafka connector: a session cluster in one process, that runs SQL programs. Needs JDK 17 and curl; the first time also mvn.
#   flink.sh fetch [--iceberg]
#   flink.sh start DIR PORT [--slots N] [--heap SIZE] [--iceberg] [KEY=VALUE]...   options of Flink, as parallelism.default=2; waits
#                                                        until ready; prints the address of Flink's REST server. --iceberg: with
#                                                        Iceberg's runtime for Flink (150 MB more the first time)
#   flink.sh sql DIR FILE [KEY=VALUE]...                 runs the program as Flink's SQL client does (-f FILE), in a session of its own with
#                                                        these options, and waits for its INSERTs; prints a line of JSON for each
#   flink.sh text DIR FILE [KEY=VALUE]...                the same, and prints what the SQL client would, the rows of SELECTs too
#   flink.sh stop DIR | kill DIR | status DIR
# Programs are taken on PORT+1 (see java/FlinkSession.java). Nothing is kept but DIR/server.log.
# Env: FLINK_LOG (warn), EVERLOG_SERVICES_CACHE
set -euo pipefail
. "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/lib.sh"

compile() { # javac once per source and jar set
  [ -e "$1/.complete" ] && return 0
  command -v javac >/dev/null || die "a JDK is needed: apt-get install -y openjdk-17-jdk-headless ($SETUP_HINT)"
  rm -rf "$1"
  mkdir -p "$1"
  javac -nowarn -cp "$LIBS/*" -d "$1" "$HERE/java/FlinkSession.java" >&2 || die "javac failed"
  touch "$1/.complete"
}
use_flink() {
  use_java
  LIBS=$(mvn_libs flink "$HERE/pom/flink.xml")
  CLS="$LIBS-classes-$(cat "$HERE/java/FlinkSession.java" <(java -version 2>&1) | sha256sum | cut -c1-8)"
  locked flink-javac compile "$CLS"
}
address() { echo "http://127.0.0.1:$(cat "$1/port" 2>/dev/null || die "no Flink in $1")"; }
# ours answers once the cluster runs, to GET with a program of nothing
ready() { curl -fsS -o /dev/null "http://127.0.0.1:$(($1 + 1))/sql" && curl -fsS "http://127.0.0.1:$1/overview" | grep -q '"taskmanagers":1'; }
start() {
  local d p slots=4 heap=1g more="" module opens=() settings=()
  d=$(mkdir -p "$1" && cd "$1" && pwd) p=$2
  shift 2
  while [ $# -gt 0 ]; do
    case "$1" in
      --slots) slots=$2; shift 2 ;;
      --heap) heap=$2; shift 2 ;;
      --iceberg) more=iceberg; shift ;;
      *=*) settings+=("$1"); shift ;;
      *) die "unknown option $1" ;;
    esac
  done
  if ! alive "$d/pid"; then
    if port_open "$p"; then die "port $p is taken"; fi
    if port_open $((p + 1)); then die "port $((p + 1)) is taken"; fi
    use_flink
    [ -z "$more" ] || more=":$(mvn_libs flink-iceberg "$HERE/pom/flink-iceberg.xml")/*"
    for module in lang lang.reflect net io nio math text time util util.concurrent util.concurrent.atomic util.concurrent.locks; do
      opens+=("--add-opens=java.base/java.$module=ALL-UNNAMED")
    done
    echo "$p" > "$d/port"
    : > "$d/server.log"
    mkdir -p "$d/tmp"
    spawn "$d/pid" "$d/server.log" java -Xmx"$heap" "-Djava.io.tmpdir=$d/tmp" \
      "-Dorg.slf4j.simpleLogger.defaultLogLevel=${FLINK_LOG:-warn}" "${opens[@]}" -cp "$CLS:$LIBS/*$more" \
      FlinkSession "$p" "$slots" "io.tmp.dirs=$d/tmp" ${settings[@]+"${settings[@]}"}
    wait_until 120 "$d/pid" "$d/server.log" ready "$p"
  fi
  address "$d"
}
sql() { # sql sql|text DIR FILE [KEY=VALUE]...
  local what=$1 d=$2 file=$3 p
  shift 3
  [ -r "$file" ] || die "cannot read $file"
  alive "$d/pid" || die "no Flink runs in $d"
  p=$(cat "$d/port")
  curl -sS --fail-with-body "http://127.0.0.1:$((p + 1))/$what$(query "$@")" --data-binary "@$file"
}
query() { # KEY=VALUE... as the query of an address
  [ $# -eq 0 ] || python3 -c 'import sys, urllib.parse; print("?" + "&".join(map(urllib.parse.quote, sys.argv[1:])), end="")' "$@"
}
cmd=${1:-}
[ $# -eq 0 ] || shift
case "$cmd" in
  fetch)
    use_flink
    echo "$LIBS"
    if [ "${1:-}" = --iceberg ]; then mvn_libs flink-iceberg "$HERE/pom/flink-iceberg.xml"; fi
    ;;
  start) start "$@" ;;
  sql | text) sql "$cmd" "$@" ;;
  stop) stop_pid "$1/pid" 10 ;;
  kill) kill_pid "$1/pid" ;;
  status) show_status "$1" ;;
  *) usage "${BASH_SOURCE[0]}" ;;
esac
