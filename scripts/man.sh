#!/bin/bash
# Makes the manual page: scripts/man.sh NAME FILE
set -euo pipefail
cd "$(dirname "$0")/.."

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
mkdir -p "$(dirname "$2")"
pod2man --utf8 --section=1 --name="NBDKIT-${1^^}-PLUGIN" --center="nbdkit plugins" \
    --release="$version" nbdkit-nbd-plugin.pod "$2"
