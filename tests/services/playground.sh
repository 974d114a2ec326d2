#!/usr/bin/env bash
# Kafka, S3 and a REST catalog to play with by hand.
#   playground.sh start DIR [PORT]    Kafka on PORT (29092), S3 on PORT+10, catalog on PORT+20; prints how to use them
#   playground.sh stop DIR
set -euo pipefail
. "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/lib.sh"

stop() {
  local s
  for s in catalog s3 kafka; do
    if [ -d "$1/$s" ]; then "$HERE/$s.sh" stop "$1/$s" && echo "$s stopped"; fi
  done
}
config() {
  cat <<T
[kafka]
"bootstrap.servers" = "127.0.0.1:$1"

[catalog]
type = "rest"
uri = "http://127.0.0.1:$(($1 + 20))"
warehouse = "s3://warehouse/everlog"
namespace = "everlog"
"s3.endpoint" = "http://127.0.0.1:$(($1 + 10))"
"s3.access-key-id" = "testkey"
"s3.secret-access-key" = "testsecret"
"s3.region" = "us-east-1"
"s3.path-style-access" = "true"

[archive]
topics = ["clickstream.raw"]
T
}
start() {
  local d p=${2:-29092} k c
  d=$(mkdir -p "$1" && cd "$1" && pwd)
  if [ -s "$d/port" ] && [ "$(cat "$d/port")" != "$p" ]; then
    die "$d holds services on port $(cat "$d/port"): use that PORT, or stop them and remove the folder"
  fi
  echo "$p" > "$d/port"
  trap 'echo "starting failed; stopping what was started" >&2; stop "$d" >&2' ERR
  note "starting Kafka, S3 and the catalog ..."
  "$HERE/kafka.sh" start "$d/kafka" "$p" --set auto.create.topics.enable=true --set num.partitions=4 >/dev/null
  "$HERE/s3.sh" start "$d/s3" $((p + 10)) warehouse >/dev/null
  "$HERE/catalog.sh" start "$d/catalog" $((p + 20)) s3://warehouse/everlog s3.endpoint="http://127.0.0.1:$((p + 10))" \
    s3.access-key-id=testkey s3.secret-access-key=testsecret s3.path-style-access=true >/dev/null
  config "$p" > "$d/everlog.toml"
  k="tests/services/kafka.sh tool"
  c="--bootstrap-server 127.0.0.1:$p"
  cat <<T

  Kafka     127.0.0.1:$p            (topics are made on first use, with 4 partitions)
  S3        http://127.0.0.1:$((p + 10))     bucket warehouse, keys testkey / testsecret, region us-east-1, path style
  catalog   http://127.0.0.1:$((p + 20))     Iceberg REST; faults and counts: tests/services/catalog.sh
  config    $d/everlog.toml

Try:
  seq 1000 | $k console-producer $c --topic clickstream.raw
  everlog --config $d/everlog.toml archive --until-caught-up
  everlog --config $d/everlog.toml replay clickstream.raw --output count
  everlog --config $d/everlog.toml status
  $k topics $c --describe
Stop:
  make services-stop     (what they hold stays in $d; remove the folder to begin anew)
T
}
cmd=${1:-}
[ $# -eq 0 ] || shift
case "$cmd" in
  start) start "$@" ;;
  stop) stop "$1" ;;
  *) usage "${BASH_SOURCE[0]}" ;;
esac
