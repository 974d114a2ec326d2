#!/usr/bin/env bash
# Installs what `make lint` needs besides the compiler, once, outside the checkout, and prints the folder to put into PATH.
set -euo pipefail
. "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/../services/lib.sh"
CARGO_DENY=0.20.2

tools="$CACHE/tools-cargo-deny-$CARGO_DENY"
if [ ! -x "$tools/bin/cargo-deny" ]; then
  mkdir -p "$tools"
  # a target folder of its own, which goes when it is done: it shares nothing with ours
  fetched "building cargo-deny $CARGO_DENY" "$CACHE/cargo-deny.log" \
    env -u CARGO_TARGET_DIR cargo install --locked --root "$tools" "cargo-deny@$CARGO_DENY" \
    || die "cargo-deny could not be installed (log: $CACHE/cargo-deny.log): cargo install --locked cargo-deny"
fi
echo "$tools/bin"
