#!/usr/bin/env bash
# Apache Spark (PySpark, local mode) with Iceberg's runtime. Needs Java 17 and python3-venv; the first time also mvn (about 600 MB).
#   spark.sh fetch
#   spark.sh run FILE.py [ARGUMENT]...     runs a Python program that finds pyspark, and Iceberg's jars in $SPARK_JARS (with commas)
# Env: SPARK_HEAP (1g), EVERLOG_SERVICES_CACHE
set -euo pipefail
. "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/lib.sh"
VERSION=4.0.0

install() {
  [ -e "$1/.complete" ] && return 0
  python3 -c 'import ensurepip, venv' 2>/dev/null || die "Python's venv is needed: apt-get install -y python3-venv ($SETUP_HINT)"
  rm -rf "$1"
  python3 -m venv "$1" || die "could not make a Python environment in $1"
  # (it comes as source alone, and its only dependency is py4j)
  fetched "fetching Spark $VERSION" "$1.log" "$1/bin/pip" install --disable-pip-version-check --no-cache-dir --progress-bar off "pyspark==$VERSION" \
    || die "could not fetch pyspark from PyPI (log: $1.log)"
  touch "$1/.complete"
}
use_spark() {
  use_java
  APP="$CACHE/pyspark-$VERSION"
  locked pyspark install "$APP" >&2
  LIBS=$(mvn_libs spark "$HERE/pom/spark.xml")
}
cmd=${1:-}
[ $# -eq 0 ] || shift
case "$cmd" in
  fetch) use_spark; echo "$APP $LIBS" ;;
  run)
    use_spark
    SPARK_JARS=$(printf '%s\n' "$LIBS"/*.jar | paste -sd,)
    export SPARK_JARS SPARK_LOCAL_IP=127.0.0.1 SPARK_HEAP="${SPARK_HEAP:-1g}"
    exec "$APP/bin/python" "$@"
    ;;
  *) usage "${BASH_SOURCE[0]}" ;;
esac
