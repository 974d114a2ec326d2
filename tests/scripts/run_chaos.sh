#!/usr/bin/env bash
# Runs everlog-chaos (built before) in a folder of its own, within a time limit, and leaves nothing behind: on success the folder
# goes, on a violation it stays, on Ctrl-C everything is stopped.
#   run_chaos.sh MINUTES [SEED]
# Env: EVERLOG_BIN_DIR (where everlog and everlog-chaos are), TMPDIR (where the folder is made)
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
. "$ROOT/tests/services/lib.sh"
MINUTES=${1:?usage: run_chaos.sh MINUTES [SEED]}
BIN=${EVERLOG_BIN_DIR:-${CARGO_TARGET_DIR:-$ROOT/target}/debug}
FOLDER=$(mktemp -d "${TMPDIR:-/tmp}/everlog-chaos.XXXXXX")
chmod 711 "$FOLDER"
status=1

# shellcheck disable=SC2317 # called by the trap
leave() {
  local f n=0
  trap '' INT TERM
  while IFS= read -r f; do
    if alive "$f"; then
      stop_pid "$f" 10
      n=$((n + 1))
    fi
  done < <(find "$FOLDER" -name pid -type f 2>/dev/null)
  [ "$n" = 0 ] || echo "stopped $n processes that were left running"
  if mountpoint -q "$FOLDER/small" 2>/dev/null; then
    [ "$status" != 1 ] || cp -r "$FOLDER/small" "$FOLDER/small.kept" || true
    umount "$FOLDER/small" || true
  fi
  if [ "$status" = 1 ]; then echo "kept: $FOLDER"; else rm -rf "$FOLDER"; fi
}
trap leave EXIT
trap 'status=130' INT TERM

# others may build meanwhile
for name in everlog everlog-chaos; do ln "$BIN/$name" "$FOLDER/$name" 2>/dev/null || cp "$BIN/$name" "$FOLDER/$name"; done
export TMPDIR="$FOLDER" EVERLOG_BIN="$FOLDER/everlog" KAFKA_HEAP="${KAFKA_HEAP:-384m}" RUST_BACKTRACE=0
status=0
timeout --foreground -s INT -k 60 $((MINUTES * 60 + 900)) "$FOLDER/everlog-chaos" "$@" || status=$?
# 134: a second Ctrl-C
case "$status" in 0 | 2 | 130) ;; 134) status=130 ;; *) status=1 ;; esac
exit "$status"
