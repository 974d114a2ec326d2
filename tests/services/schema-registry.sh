#!/usr/bin/env bash
# A schema registry with Confluent's API (Apicurio Registry) for tests. Needs curl; the first time also mvn and python3-venv.
#   schema-registry.sh fetch
#   schema-registry.sh start DIR PORT      waits until ready; prints the address for Confluent's clients (.../apis/ccompat/v7)
#   schema-registry.sh register DIR SUBJECT SCHEMA-FILE [NAME=SUBJECT:VERSION]...   Avro, with references; prints the schema's id
#   schema-registry.sh delete DIR SUBJECT  softly, all versions: new readers do not see it any more
#   schema-registry.sh stop DIR | kill DIR | status DIR
# The management port is PORT+1. State: DIR/registry.mv.db (survives restarts).
set -euo pipefail
. "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/lib.sh"
VERSION=3.3.3

unpack() {
  local dir=$1 temp
  [ -e "$dir/.complete" ] && return 0
  command -v mvn >/dev/null || die "mvn is needed: apt-get install -y maven ($SETUP_HINT)"
  temp=$(mktemp -d "$CACHE/apicurio.XXXXXX")
  fetched "fetching Apicurio Registry $VERSION" "$dir.log" mvn -B -f "$HERE/pom/empty.xml" dependency:copy \
    "-Dartifact=io.apicurio:apicurio-registry-app:$VERSION:tar.gz:all" "-DoutputDirectory=$temp" \
    || die "could not fetch Apicurio Registry from Maven Central: check the network (log: $dir.log)"
  rm -rf "$dir"
  mkdir -p "$dir"
  tar xzf "$temp"/*.tar.gz -C "$dir"
  rm -rf "$temp"
  touch "$dir/.complete"
}
use_registry() {
  APP="$CACHE/apicurio-$VERSION"
  locked apicurio unpack "$APP" >&2
  JAVA=$(jre25)
}
address() { echo "http://127.0.0.1:$(cat "$1/port" 2>/dev/null || die "no schema registry in $1")/apis/ccompat/v7"; }
ready() { curl -fsS -o /dev/null "http://127.0.0.1:$1/apis/ccompat/v7/subjects"; }
start() {
  local d p
  d=$(mkdir -p "$1" && cd "$1" && pwd) p=$2
  if ! alive "$d/pid"; then
    if port_open "$p"; then die "port $p is taken"; fi
    if port_open $((p + 1)); then die "port $((p + 1)) is taken"; fi
    use_registry
    echo "$p" > "$d/port"
    : > "$d/server.log"
    spawn "$d/pid" "$d/server.log" env QUARKUS_HTTP_HOST=127.0.0.1 QUARKUS_HTTP_PORT="$p" \
      QUARKUS_MANAGEMENT_HOST=127.0.0.1 QUARKUS_MANAGEMENT_PORT=$((p + 1)) \
      APICURIO_STORAGE_KIND=sql APICURIO_STORAGE_SQL_KIND=h2 "APICURIO_DATASOURCE_URL=jdbc:h2:file:$d/registry" \
      APICURIO_DATASOURCE_USERNAME=sa APICURIO_DATASOURCE_PASSWORD=sa \
      "$JAVA" -Xmx"${REGISTRY_HEAP:-384m}" -XX:+UseSerialGC -jar "$APP/quarkus-run.jar"
    wait_until 180 "$d/pid" "$d/server.log" ready "$p"
  fi
  address "$d"
}
# register DIR SUBJECT FILE [NAME=SUBJECT:VERSION]...
register() {
  local url subject=$2 body
  url=$(address "$1")
  body=$(python3 - "$3" "${@:4}" <<'PYTHON'
import json, sys
references = []
for text in sys.argv[2:]:
    name, rest = text.split("=", 1)
    subject, version = rest.rsplit(":", 1)
    references.append({"name": name, "subject": subject, "version": int(version)})
print(json.dumps({"schemaType": "AVRO", "schema": open(sys.argv[1]).read(), "references": references}))
PYTHON
  )
  curl -sS --fail-with-body -X POST -H 'Content-Type: application/vnd.schemaregistry.v1+json' \
    "$url/subjects/$subject/versions" -d "$body" | sed 's/.*"id":\([0-9]*\).*/\1/'; echo
}
cmd=${1:-}
[ $# -eq 0 ] || shift
case "$cmd" in
  fetch) use_registry; echo "$APP" ;;
  start) start "$@" ;;
  register) register "$@" ;;
  delete) curl -sS --fail-with-body -X DELETE "$(address "$1")/subjects/$2" ;;
  stop) stop_pid "$1/pid" 15 ;;
  kill) kill_pid "$1/pid" ;;
  status) show_status "$1" ;;
  *) usage "${BASH_SOURCE[0]}" ;;
esac
