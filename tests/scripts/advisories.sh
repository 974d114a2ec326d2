#!/usr/bin/env bash
# Checks the dependencies against the RustSec advisories, where that is possible: needs cargo-deny, and the advisory database,
# from the network or as an earlier run fetched it. Ends with 1 where an advisory applies. Where nothing can be checked it says
# so and ends with 0, so that a machine without a network can judge a change; EVERLOG_ADVISORIES=require makes that a failure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PATH="${CARGO_HOME:-${HOME:-/nonexistent}/.cargo}/bin:$PATH"

not_checked() {
  echo "advisories were NOT checked: $*"
  [ "${EVERLOG_ADVISORIES:-}" != require ] || exit 1
  exit 0
}
command -v cargo-deny >/dev/null || not_checked "cargo-deny is not installed (cargo install --locked cargo-deny)"
if ! timeout 120 cargo deny --all-features --locked fetch db >/dev/null 2>&1; then
  databases=("${CARGO_HOME:-${HOME:-/nonexistent}/.cargo}"/advisory-dbs/advisory-db-*/)
  [ -d "${databases[0]}" ] || not_checked "the advisory database cannot be fetched, and there is none from before"
  echo "the advisory database cannot be fetched now: an older one is used ($(date -r "${databases[0]}" +%F))"
fi
cargo deny --all-features --locked --offline check --hide-inclusion-graph advisories
