#!/usr/bin/env bash
# Checks, and where it may installs, what building and testing everlog needs on a Debian-like machine.
#   setup.sh            everything: compilers, Java, Maven, Go, Python, the test services, the Python readers
#   setup.sh --build    only what the build needs
# As root or with passwordless sudo it installs by apt-get; otherwise it prints the one line to run, and ends with 1.
# With everything in place it takes a second and needs no network.
set -euo pipefail
. "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/lib.sh"

BUILD_ONLY=0
case "${1:-}" in
  --build) BUILD_ONLY=1 ;;
  '') ;;
  *) usage "${BASH_SOURCE[0]}" ;;
esac

MISSING=()
# want PACKAGE CMD...: PACKAGE is missing unless CMD succeeds
want() {
  local package=$1
  shift
  "$@" >/dev/null 2>&1 || MISSING+=("$package")
}
has_go() { [ -n "$(go env GOVERSION)" ]; }
has_java() { (use_java && command -v javac); }
has_postgres() { ls /usr/lib/postgresql/*/bin/postgres || command -v postgres; }
has_certificates() { [ -n "${SSL_CERT_FILE:-}" ] || [ -s /etc/ssl/certs/ca-certificates.crt ] || [ -s /etc/pki/tls/certs/ca-bundle.crt ] || [ -s /etc/ssl/cert.pem ]; }

survey() {
  MISSING=()
  want build-essential eval 'cc --version && c++ --version && make --version'
  want perl perl -MFindBin -MIPC::Cmd -MFile::Compare -MTime::Piece -e 1 # OpenSSL's build; perl-base lacks these
  want ca-certificates has_certificates
  [ "$BUILD_ONLY" = 0 ] || return 0
  want curl curl --version
  want openjdk-17-jdk-headless has_java
  want maven command -v mvn
  want golang-go has_go
  want python3 python3 --version
  want python3-venv python3 -c 'import ensurepip, venv'
  want procps ps --version
  want postgresql has_postgres
  want openssl command -v openssl
}

# known PACKAGE...: the first that apt knows
known() {
  local p
  for p in "$@"; do
    if [ -n "$(apt-cache show --no-all-versions "$p" 2>/dev/null)" ]; then echo "$p"; return; fi
  done
  echo "$1"
}

install() {
  local sudo=() packages list
  if ! command -v apt-get >/dev/null; then
    die "missing, by their Debian names: ${MISSING[*]} (install them with this system's package manager)"
  fi
  if [ "$(id -u)" != 0 ]; then
    if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
      sudo=(sudo)
    else
      note "missing: ${MISSING[*]}; run this line, then try again:"
      note "  sudo apt-get update && sudo apt-get install -y --no-install-recommends ${MISSING[*]}"
      exit 1
    fi
  fi
  fetched "reading the package lists" "$CACHE/apt.log" ${sudo[@]+"${sudo[@]}"} apt-get update \
    || die "apt-get update failed (log: $CACHE/apt.log)"
  packages=()
  for list in "${MISSING[@]}"; do
    case "$list" in
      openjdk-17-jdk-headless) packages+=("$(known openjdk-17-jdk-headless openjdk-21-jdk-headless)") ;;
      *) packages+=("$list") ;;
    esac
  done
  fetched "installing ${packages[*]}" "$CACHE/apt.log" ${sudo[@]+"${sudo[@]}"} env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y --no-install-recommends "${packages[@]}" \
    || die "apt-get install failed (log: $CACHE/apt.log): apt-get install -y --no-install-recommends ${packages[*]}"
  survey
  [ ${#MISSING[@]} -eq 0 ] || die "still missing after installing: ${MISSING[*]}"
}

# cargo may be installed and not be in PATH, as in a shell opened before rustup ran
command -v cargo >/dev/null || [ -x "${CARGO_HOME:-${HOME:-}/.cargo}/bin/cargo" ] \
  || die "cargo is needed: curl --proto =https --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal"
survey
[ ${#MISSING[@]} -eq 0 ] || install
if [ "$BUILD_ONLY" = 1 ]; then exit 0; fi

"$HERE/kafka.sh" fetch >/dev/null
"$HERE/catalog.sh" fetch >/dev/null
"$HERE/toxiproxy.sh" fetch >/dev/null
"$HERE/s3.sh" fetch >/dev/null
"$HERE/schema-registry.sh" fetch >/dev/null
"$HERE/flink.sh" fetch >/dev/null
PYTHON="$(py_env)/bin/python"
note "test services are ready in $CACHE ($(du -sm "$CACHE" | cut -f1) MB); readers run on $PYTHON"
