#!/usr/bin/env bash
# Starts every service through its script, proves its switches, stops it. usage: selftest.sh DIR [BASEPORT]
set -euo pipefail
. "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/lib.sh"
DIR=$(mkdir -p "${1:?usage: selftest.sh DIR [BASEPORT]}" && cd "$1" && pwd)
P=${2:-29000}
ok() { echo "  ok  $*"; }
is() { [ "$1" = "$2" ] || fail "$3: got $1, want $2"; ok "$3"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
chmod 711 "$DIR" # PostgreSQL does not run as root
cleanup() {
  for s in toxiproxy catalog s3 postgres schema-registry flink; do "$HERE/$s.sh" stop "$DIR/$s" || true; done
  "$HERE/catalog.sh" stop "$DIR/catalog-readers" || true
  for s in kafka kafka3; do "$HERE/kafka.sh" stop "$DIR/$s" 2>/dev/null || true; done
}
trap cleanup EXIT
# produce BOOTSTRAP N, count BOOTSTRAP N: N small records into topic t; wait until N are read back
produce() { seq "$2" | "$HERE/kafka.sh" tool console-producer --bootstrap-server "$1" --topic t --command-property acks=all; }
count() { "$HERE/kafka.sh" tool console-consumer --bootstrap-server "$1" --topic t --from-beginning --max-messages "$2" --timeout-ms 20000 2>/dev/null | wc -l; }
topic() { "$HERE/kafka.sh" tool topics --bootstrap-server "$1" --create --topic t --partitions 2 >/dev/null; }

echo "Kafka, one node"
b=$("$HERE/kafka.sh" start "$DIR/kafka" "$P" --set log.retention.ms=60000)
topic "$b"
produce "$b" 100
is "$(count "$b" 100)" 100 "100 records through $b"
"$HERE/kafka.sh" kill-node "$DIR/kafka" 1
if "$HERE/kafka.sh" status "$DIR/kafka" >/dev/null; then fail "killed, but up"; fi
"$HERE/kafka.sh" start-node "$DIR/kafka" 1
is "$(count "$b" 100)" 100 "the same after kill -9"

echo "Toxiproxy before it"
"$HERE/toxiproxy.sh" start "$DIR/toxiproxy" $((P + 10)) >/dev/null
"$HERE/toxiproxy.sh" proxy "$DIR/toxiproxy" web $((P + 11)) $((P + 10)) >/dev/null
web() { curl -s -o /dev/null -w '%{time_total}' "http://127.0.0.1:$((P + 11))/version"; }
"$HERE/toxiproxy.sh" toxic "$DIR/toxiproxy" web latency '{"latency":300}' >/dev/null
is "$(awk -v t="$(web)" 'BEGIN { print (t >= 0.3) }')" 1 "latency"
"$HERE/toxiproxy.sh" down "$DIR/toxiproxy" web
if web >/dev/null; then fail "down, but answers"; fi
"$HERE/toxiproxy.sh" reset "$DIR/toxiproxy"
web >/dev/null || fail "reset, but does not answer"
ok "down, reset"
"$HERE/toxiproxy.sh" stop "$DIR/toxiproxy"
"$HERE/kafka.sh" stop "$DIR/kafka"

echo "Kafka, three nodes"
b=$(KAFKA_HEAP=320m "$HERE/kafka.sh" start "$DIR/kafka3" $((P + 20)) --nodes 3)
topic "$b"
"$HERE/kafka.sh" kill-node "$DIR/kafka3" 1
produce "$b" 50
ok "one node killed: writes go on"
KAFKA_HEAP=320m "$HERE/kafka.sh" start-node "$DIR/kafka3" 1
"$HERE/kafka.sh" await-in-sync "$DIR/kafka3"
"$HERE/kafka.sh" pause-node "$DIR/kafka3" 2
produce "$b" 50
ok "another one paused: writes go on"
"$HERE/kafka.sh" resume-node "$DIR/kafka3" 2
is "$(count "$b" 100)" 100 "all are read"
"$HERE/kafka.sh" stop "$DIR/kafka3"

echo "S3"
eval "$("$HERE/s3.sh" start "$DIR/s3" $((P + 30)) warehouse | sed 's/^/export /')"
s3() { curl -s --aws-sigv4 "aws:amz:$AWS_REGION:s3" -u "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD' "${@:2}" "$AWS_ENDPOINT_URL/warehouse/$1"; }
s3 a -X PUT -d hello
is "$(s3 a)" hello "put, get"
is "$(s3 a -X PUT -d again -H 'If-None-Match: *' -o /dev/null -w '%{http_code}')" 412 "conditional put"
"$HERE/s3.sh" kill "$DIR/s3"
"$HERE/s3.sh" start "$DIR/s3" $((P + 30)) >/dev/null
is "$(s3 a)" hello "the same after kill -9"

python3 "$HERE/selftest.py" "$HERE/catalog.sh" "$DIR/catalog" $((P + 40)) $((P + 30))

echo "PostgreSQL"
url=$("$HERE/postgres.sh" start "$DIR/postgres" $((P + 60)))
is "$(psql "$url" -Atc 'CREATE TABLE t AS SELECT 7 AS n; SELECT n FROM t')" $'SELECT 1\n7' "a table through $url"
"$HERE/postgres.sh" kill "$DIR/postgres"
"$HERE/postgres.sh" start "$DIR/postgres" $((P + 60)) >/dev/null
is "$(psql "$url" -Atc 'SELECT n FROM t')" 7 "the same after kill -9"
"$HERE/postgres.sh" stop "$DIR/postgres"

echo "Schema registry"
url=$("$HERE/schema-registry.sh" start "$DIR/schema-registry" $((P + 70)))
echo '{"type":"enum","name":"a.B","symbols":["X"]}' > "$DIR/b.avsc"
echo '{"type":"record","name":"R","fields":[{"name":"b","type":"a.B"}]}' > "$DIR/r.avsc"
"$HERE/schema-registry.sh" register "$DIR/schema-registry" b "$DIR/b.avsc" >/dev/null
id=$("$HERE/schema-registry.sh" register "$DIR/schema-registry" r-value "$DIR/r.avsc" a.B=b:1)
"$HERE/schema-registry.sh" kill "$DIR/schema-registry"
"$HERE/schema-registry.sh" start "$DIR/schema-registry" $((P + 70)) >/dev/null
is "$(curl -s "$url/schemas/ids/$id" | grep -o '"subject":"b","version":1\|"version":1,"subject":"b"' | wc -l)" 1 "a schema and its reference, after kill -9"
is "$(curl -s -o /dev/null -w '%{http_code}' "$url/schemas/ids/999999")" 404 "an unknown id"
"$HERE/schema-registry.sh" stop "$DIR/schema-registry"

echo "Flink"
url=$("$HERE/flink.sh" start "$DIR/flink" $((P + 80)))
cat > "$DIR/program.sql" <<SQL
CREATE TABLE \`n\` (i BIGINT) WITH ('connector' = 'datagen', 'number-of-rows' = '7');
CREATE TABLE \`out\` (i BIGINT) WITH ('connector' = 'filesystem', 'path' = '$DIR/flink/out', 'format' = 'json');
INSERT INTO \`out\` SELECT i FROM n; -- the end
SQL
"$HERE/flink.sh" sql "$DIR/flink" "$DIR/program.sql" parallelism.default=2 | grep -q '"state":"FINISHED"'
is "$(cat "$DIR"/flink/out/* | wc -l)" 7 "rows of a program, through $url"
echo "SELECT nothing" > "$DIR/program.sql"
is "$("$HERE/flink.sh" sql "$DIR/flink" "$DIR/program.sql" 2>/dev/null | grep -o "Column 'nothing' not found" | sort -u)" "Column 'nothing' not found" "a program that is wrong says why"
"$HERE/flink.sh" stop "$DIR/flink"

echo "the readers"
PYTHON="$(py_env)/bin/python"
rm -rf "$DIR/readers" "$DIR/catalog-readers"
"$PYTHON" "$HERE/../scripts/read_tables_selftest.py" sqlite "$DIR/readers"
"$HERE/catalog.sh" start "$DIR/catalog-readers" $((P + 50)) s3://warehouse/readers s3.endpoint="$AWS_ENDPOINT_URL" \
  s3.access-key-id=testkey s3.secret-access-key=testsecret s3.path-style-access=true >/dev/null
"$PYTHON" "$HERE/../scripts/read_tables_selftest.py" rest "http://127.0.0.1:$((P + 50))" "$AWS_ENDPOINT_URL"

echo "all services proven in ${SECONDS} s"
