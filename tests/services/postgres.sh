#!/usr/bin/env bash
# PostgreSQL for tests of the SQL catalog. Needs its server programs (Debian: postgresql), and openssl for --tls.
#   postgres.sh start DIR PORT [--tls] [setting=value]...   waits until ready; prints postgres://everlog:secret@127.0.0.1:PORT/lake
#       --tls   takes only encrypted connections, with the certificate of DIR/tls/server.crt, signed by DIR/tls/ca.crt
#   postgres.sh stop DIR | kill DIR | pause DIR | resume DIR | status DIR      (data: DIR/data, survives restarts)
# It does not run as root; started by root it runs as the user postgres, or nobody. DIR must be reachable for that user.
set -euo pipefail
. "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/lib.sh"

use_postgres() {
  local dir
  for dir in "${POSTGRES_BIN:-}" /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /opt/homebrew/opt/postgresql*/bin ""; do
    dir=$(PATH="${dir:+$dir:}$PATH" command -v initdb) || continue
    # the one beside the real file: Debian's wrappers and links may stand elsewhere
    BIN=$(dirname "$(readlink -f "$dir")")
    if [ -x "$BIN/postgres" ]; then return 0; fi
  done
  die "PostgreSQL's server programs are needed: apt-get install -y postgresql ($SETUP_HINT)"
}
# as_user CMD...: run CMD as somebody who is not root
as_user() {
  if [ "$(id -u)" = 0 ]; then
    # cd: the current folder may be one that the user cannot enter
    # HOME: its clients look for certificates there, and may not look into root's
    (cd / && HOME=/ exec setpriv --reuid "$RUN_AS" --regid "$(id -g "$RUN_AS")" --clear-groups "$@")
  else
    "$@"
  fi
}
choose_user() {
  RUN_AS=$(id -un)
  if [ "$(id -u)" != 0 ]; then return; fi
  RUN_AS=nobody
  if id postgres >/dev/null 2>&1; then RUN_AS=postgres; fi
}
certificates() {
  local d=$1
  mkdir -p "$d"
  openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj "/CN=everlog test authority" \
    -addext "basicConstraints=critical,CA:TRUE" -keyout "$d/ca.key" -out "$d/ca.crt" 2>/dev/null
  openssl req -newkey rsa:2048 -nodes -subj "/CN=127.0.0.1" -keyout "$d/server.key" -out "$d/server.csr" 2>/dev/null
  openssl x509 -req -days 3650 -in "$d/server.csr" -CA "$d/ca.crt" -CAkey "$d/ca.key" -CAcreateserial -out "$d/server.crt" \
    -extfile <(printf 'subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\n') 2>/dev/null
  chmod 600 "$d/server.key"
}
make_cluster() {
  local d=$1 tls=$2
  mkdir -p "$d/data"
  printf 'secret\n' > "$d/password"
  if [ "$tls" = 1 ]; then certificates "$d/tls"; fi
  if [ "$(id -u)" = 0 ]; then chown -R "$RUN_AS" "$d/data" "$d/password"; fi
  if [ "$(id -u)" = 0 ] && [ "$tls" = 1 ]; then chown -R "$RUN_AS" "$d/tls"; fi
  as_user "$BIN/initdb" -D "$d/data" -U everlog --pwfile="$d/password" --auth=scram-sha-256 --encoding=UTF8 --locale=C \
    >"$d/initdb.log" 2>&1 || { tail -n 20 "$d/initdb.log" >&2; die "initdb failed (can $RUN_AS enter $d?)"; }
  if [ "$tls" = 1 ]; then
    sed -i 's/^host\b/hostssl/' "$d/data/pg_hba.conf"
    printf "ssl = on\nssl_cert_file = '%s'\nssl_key_file = '%s'\n" "$d/tls/server.crt" "$d/tls/server.key" >>"$d/data/postgresql.conf"
  fi
  touch "$d/.made"
}
ready() { as_user "$BIN/pg_isready" -q -h 127.0.0.1 -p "$1" -d postgres; }
start() {
  local d p tls=0 settings=()
  d=$(mkdir -p "$1" && cd "$1" && pwd) p=$2
  shift 2
  while [ $# -gt 0 ]; do
    case "$1" in
      --tls) tls=1 ;;
      *=*) settings+=(-c "$1") ;;
      *) die "unknown option $1" ;;
    esac
    shift
  done
  if ! alive "$d/pid"; then
    if port_open "$p"; then die "port $p is taken"; fi
    [ -e "$d/.made" ] || make_cluster "$d" "$tls"
    echo "$p" > "$d/port"
    : > "$d/server.log"
    # the folder for its socket is none: it listens on 127.0.0.1 only
    local server=("$BIN/postgres" -D "$d/data" -p "$p" -c listen_addresses=127.0.0.1 -c unix_socket_directories= ${settings[@]+"${settings[@]}"})
    if [ "$(id -u)" = 0 ]; then
      cd /
      server=(setpriv --reuid "$RUN_AS" --regid "$(id -g "$RUN_AS")" --clear-groups "${server[@]}")
    fi
    spawn "$d/pid" "$d/server.log" "${server[@]}"
    wait_until 60 "$d/pid" "$d/server.log" ready "$p"
    if [ ! -e "$d/.lake" ]; then
      PGPASSWORD=secret as_user "$BIN/createdb" -h 127.0.0.1 -p "$p" -U everlog lake >>"$d/server.log" 2>&1 \
        || die "cannot make the database (log: $d/server.log)"
      touch "$d/.lake"
    fi
  fi
  echo "postgres://everlog:secret@127.0.0.1:$(cat "$d/port")/lake"
}
running() { [ -e "/proc/$1" ] && ! grep -q ') Z ' "/proc/$1/stat" 2>/dev/null; }
kill_server() {
  local child children
  children=$(pgrep -P "$(pid_of "$1/pid")" || true)
  kill_pid "$1/pid"
  # its connections notice and end
  for child in $children; do while running "$child"; do sleep 0.02; done; done
  # where nobody reaps the dead, the next server would take the old one to be alive
  rm -f "$1/data/postmaster.pid"
}
cmd=${1:-}
[ $# -eq 0 ] || shift
case "$cmd" in
  start) use_postgres; choose_user; start "$@" ;;
  # INT: end now, without waiting for clients to go
  stop) if alive "$1/pid"; then signal_pid "$1/pid" INT; fi; stop_pid "$1/pid" 20 ;;
  kill) kill_server "$1" ;;
  # its connections have processes of their own
  pause | resume)
    alive "$1/pid" || die "not running: $1"
    kill "-$([ "$cmd" = pause ] && echo STOP || echo CONT)" "$(pid_of "$1/pid")" $(pgrep -P "$(pid_of "$1/pid")") ;;
  status) show_status "$1" ;;
  *) usage "${BASH_SOURCE[0]}" ;;
esac
