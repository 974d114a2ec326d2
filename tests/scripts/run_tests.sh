#!/usr/bin/env bash
# Builds and runs the workspace's tests (unit, property, model, documentation, and those on real servers), then says what was done.
#   run_tests.sh [CARGO TEST ARGUMENT]...     default: --workspace, with the features in $FEATURES
# Tests find the everlog binary in EVERLOG_BIN, the service scripts in EVERLOG_SERVICES, and Python with the readers in EVERLOG_PYTHON.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
cd "$ROOT"
. tests/services/lib.sh
PYTHON_ENV=$(py_env)
export EVERLOG_PYTHON="$PYTHON_ENV/bin/python" EVERLOG_SERVICES="$ROOT/tests/services"
export EVERLOG_BIN="${CARGO_TARGET_DIR:-$ROOT/target}/debug/everlog"
# Tests on servers wait more than they compute, but each may hold a JVM: more threads than this would measure memory.
cores=$(nproc)
export RUST_TEST_THREADS="${RUST_TEST_THREADS:-$((cores > 4 ? 4 : cores < 2 ? 2 : cores))}"

# Tests keep their services in temporary folders; what a test that died left running is found there and stopped.
TMPDIR=$(mktemp -d "${TMPDIR:-/tmp}/everlog-tests.XXXXXX")
chmod 711 "$TMPDIR" # servers that refuse to run as root run as somebody else, who must get in
export TMPDIR
# shellcheck disable=SC2317 # called by the trap
leftovers() {
  local n
  n=$(stop_under 10 "$TMPDIR")
  [ "$n" = 0 ] || echo "stopped $n services that tests had left running"
  rm -rf "$TMPDIR"
}
trap leftovers EXIT

read -ra features <<<"${FEATURES:-}"
selection=("$@")
[ $# -gt 0 ] || selection=(--workspace "${features[@]}")
log="$TMPDIR/output"

SECONDS=0
echo "building ..."
# --workspace here too, whatever is tested: with other packages selected, cargo would build shared crates with other features
cargo build --workspace --all-targets --locked "${features[@]}"
built=$SECONDS
echo "testing on $RUST_TEST_THREADS threads ..."
status=0
cargo test "${selection[@]}" --locked --no-fail-fast | tee "$log" || status=$?

read -r suites passed failed ignored <<<"$(awk '/^test result:/ { s++; p += $4; f += $6; i += $8 } END { print s + 0, p + 0, f + 0, i + 0 }' "$log")"
echo
echo "tests: $passed passed, $failed failed, $ignored ignored in $suites suites; build ${built} s, tests $((SECONDS - built)) s"
if [ "$failed" -gt 0 ]; then
  echo "failed:"
  sed -n 's/^test \(.*\) \.\.\. FAILED$/  \1/p' "$log"
fi
if [ "$ignored" -gt 0 ]; then
  echo "error: $ignored tests were ignored; a test that is skipped proves nothing, so this counts as a failure" >&2
  exit 1
fi
if [ "$status" = 0 ] && [ "$suites" = 0 ]; then
  echo "error: no test ran" >&2
  exit 1
fi
exit "$status"
