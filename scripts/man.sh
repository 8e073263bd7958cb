#!/bin/bash
# Makes the manual page of the plugin as it was installed: scripts/man.sh NAME FILE
set -euo pipefail
cd "$(dirname "$0")/.."

name=$1
# Names of its own that another name of the plugin does not change: nbd://, -D nbd.verbose,
# the directory nbdkit-nbd-XXXXXX. In examples the plugin's name is a word of its own.
renamed() {
    sed -E -e "s/nbdkit-nbd-plugin/nbdkit-$name-plugin/g" -e "s/\bnbdkit nbd\b/nbdkit $name/g" \
        -e "/^ /s/ nbd( |\$)/ $name\1/g" nbdkit-nbd-plugin.pod
}

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
changed=@${SOURCE_DATE_EPOCH:-$(stat -c %Y nbdkit-nbd-plugin.pod)}
renamed | pod2man --utf8 --section=1 --name="NBDKIT-${name^^}-PLUGIN" --center="nbdkit plugins" \
    --release="$version" --date="$(date -u -d "$changed" +%F)" - "$2"
