#!/usr/bin/env bash
# A server in front of another one that takes TLS off. Needs Python.
#   tls.sh start DIR PORT UPSTREAMPORT CERTIFICATE      CERTIFICATE: key and certificate in one PEM, as certs.sh makes them
#   tls.sh stop DIR | status DIR
set -euo pipefail
. "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/lib.sh"
start() {
  local d
  d=$(mkdir -p "$1" && cd "$1" && pwd)
  if ! alive "$d/pid"; then
    if port_open "$2"; then die "port $2 is taken"; fi
    echo "$2" > "$d/port"
    : > "$d/server.log"
    spawn "$d/pid" "$d/server.log" "${EVERLOG_PYTHON:-python3}" "$HERE/tls.py" "$2" "$3" "$4"
    wait_until 20 "$d/pid" "$d/server.log" port_open "$2"
  fi
  echo "https://localhost:$(cat "$d/port")"
}
cmd=${1:-}
[ $# -eq 0 ] || shift
case "$cmd" in
  start) start "$@" ;;
  stop) stop_pid "$1/pid" 5 ;;
  status) show_status "$1" ;;
  *) usage "${BASH_SOURCE[0]}" ;;
esac
