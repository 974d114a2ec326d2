#!/usr/bin/env bash
# Certificates for tests of TLS, made at once and thrown away after. Needs openssl.
#   certs.sh DIR      makes in DIR, each as PEM (certificate), key (PKCS#8) and .both.pem (key, then certificate):
#       ca.pem          an authority, and stranger.pem: another one, which signed nothing here
#       server          of ca, for localhost and 127.0.0.1
#       elsewhere       of ca, for elsewhere.example
#       expired         of ca, for localhost and 127.0.0.1, over since yesterday
#       client          of ca, for a client that shows one; client.locked.key: its key under the password in client.password
set -euo pipefail
. "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/lib.sh"

[ $# = 1 ] || usage "${BASH_SOURCE[0]}"
command -v openssl >/dev/null || die "openssl is needed: apt-get install -y openssl ($SETUP_HINT)"
mkdir -p "$1"
cd "$1"
quiet() { "$@" 2>openssl.log >&2 || { cat openssl.log >&2; die "openssl failed: $*"; }; }
key() { quiet openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1.key"; }
authority() {
  key "$1"
  quiet openssl req -x509 -new -key "$1.key" -days 2 -subj "/CN=everlog test $1" -out "$1.pem"
}
signed() { # signed NAME ALTERNATIVE-NAMES DAYS
  key "$1"
  quiet openssl req -new -key "$1.key" -subj "/CN=$1" -out "$1.csr"
  printf 'subjectAltName=%s\nbasicConstraints=CA:FALSE\n' "$2" >"$1.ext"
  quiet openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -set_serial "0x$(openssl rand -hex 8)" -days "$3" -extfile "$1.ext" -out "$1.pem"
  cat "$1.key" "$1.pem" >"$1.both.pem"
}
authority ca
authority stranger
signed server DNS:localhost,IP:127.0.0.1 2
signed elsewhere DNS:elsewhere.example 2
signed expired DNS:localhost,IP:127.0.0.1 -1
signed client DNS:client 2
openssl rand -hex 16 >client.password
quiet openssl pkcs8 -topk8 -in client.key -out client.locked.key -v2 aes-256-cbc -passout file:client.password
rm -f ./*.csr ./*.ext openssl.log
