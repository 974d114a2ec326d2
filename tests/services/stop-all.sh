#!/usr/bin/env bash
# Kills every service that runs in one of the folders; says how many there were.
#   stop-all.sh DIR...
set -euo pipefail
. "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/lib.sh"
[ $# -gt 0 ] || usage "${BASH_SOURCE[0]}"
stop_under 0 "$@"
