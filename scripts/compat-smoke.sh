#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A few examples of the plugin at work, with this system's own nbdkit, libnbd
# and qemu. scripts/check-compat.sh runs it inside other systems.
#
#     scripts/compat-smoke.sh PLUGIN           every check: "ok NAME" or "FAILED NAME: why"
#     scripts/compat-smoke.sh PLUGIN check_X   one check, to look at
set -euo pipefail

plugin=$(realpath "$1")
# nbdsh takes the first python3, which must be the one that libnbd is made for.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin:$PATH
limit=60 # seconds for one check, far more than any needs

# --- for the checks below ----------------------------------------------------------

stop_all() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" || true; done
}

# serve SOCKET COMMAND...: a server is ready when its socket is there.
pids=()
serve() {
    local socket=$1
    shift
    "$@" &
    pids+=($!)
    while [ ! -S "$socket" ]; do
        kill -0 "${pids[-1]}" || { echo "ended by itself: $*"; exit 1; }
        sleep 0.02
    done
}

through() { # PARAMETER... -- COMMAND: runs it with $uri pointing at the plugin
    local parameters=()
    while [ "$1" != -- ]; do parameters+=("$1"); shift; done
    nbdkit -U - "$plugin" "${parameters[@]}" --run "$2"
}

make_disk() { # FILE: something, a hole, something
    dd if=/dev/urandom of="$1" bs=1M count=2 status=none
    dd if="$(command -v nbdcopy)" of="$1" bs=1M seek=8 conv=notrunc status=none
    truncate -s 16M "$1"
}

same() { # WHAT EXPECTED FOUND
    [ "$2" = "$3" ] || { echo "$1: expected '$2', found '$3'"; exit 1; }
}

# --- the checks ----------------------------------------------------------------------

check_nbdkit_loads_the_plugin() {
    nbdkit --version
    nbdkit "$plugin" --dump-plugin >dump
    for line in name=nbd api_version=2 max_thread_model=parallel errno_is_preserved=1; do
        grep -qx "$line" dump || { echo "--dump-plugin: no line '$line'"; exit 1; }
    done
    grep -q '^nbd_client=' dump || { echo "--dump-plugin: not our plugin"; exit 1; }
}

check_help_names_the_parameters() {
    nbdkit "$plugin" --help >help
    grep -q 'socket=' help
    grep -q 'export=' help
}

check_wrong_parameter_is_refused() {
    local status=0
    nbdkit "$plugin" no-such-parameter=1 2>err || status=$?
    cat err
    same "exit status" 1 $status
    grep -q no-such-parameter err
}

check_qcow2_disk_is_copied_right() {
    make_disk disk.raw
    qemu-img convert -f raw -O qcow2 disk.raw disk.qcow2
    serve "$PWD/sock" qemu-nbd -f qcow2 --persistent -k "$PWD/sock" disk.qcow2
    # shellcheck disable=SC2016 # nbdkit's shell expands it
    through socket=sock -- 'nbdcopy "$uri" copy.raw'
    cmp disk.raw copy.raw
}

check_nbdinfo_tells_size_and_abilities() {
    serve "$PWD/sock" nbdkit -f -U "$PWD/sock" memory 12345k
    # shellcheck disable=SC2016
    through socket=sock -- 'nbdinfo --json --no-content "$uri"' >info.json
    python3 - <<'END'
import json
export = json.load(open("info.json"))["exports"][0]
assert export["export-size"] == 12345 * 1024, export
assert not export["is_read_only"], export
assert export["can_zero"] and export["can_trim"] and export["can_fua"], export
END
}

check_map_is_that_of_the_server() {
    make_disk disk.raw
    serve "$PWD/sock" qemu-nbd -f raw --persistent -k "$PWD/sock" disk.raw
    nbdinfo --map "nbd+unix:///?socket=$PWD/sock" >expected
    # shellcheck disable=SC2016
    through socket=sock -- 'nbdinfo --map "$uri"' >found
    grep -q hole expected
    diff expected found
}

check_read_write_zero_trim_flush() {
    serve "$PWD/sock" nbdkit -f -U "$PWD/sock" memory 1M
    cat >script.py <<'END'
data = bytes(range(256)) * 256
h.pwrite(data, 0)
h.pwrite(data, 0x80000, nbd.CMD_FLAG_FUA)
assert h.pread(65536, 0) == data
h.zero(4096, 4096)
h.trim(4096, 0x80000)
h.flush()
assert h.pread(65536, 0) == data[:4096] + bytes(4096) + data[8192:]
assert h.pread(65536, 0x80000) == bytes(4096) + data[4096:]
END
    # shellcheck disable=SC2016
    through socket=sock -- 'nbdsh -u "$uri" -c "$(cat script.py)"'
}

check_error_of_the_server_arrives() {
    serve "$PWD/sock" nbdkit -f -U "$PWD/sock" --filter=error memory 1M \
        error-pwrite=ENOSPC error-pwrite-rate=1
    cat >script.py <<'END'
import errno
try:
    h.pwrite(bytes(512), 0)
    raise SystemExit("the write went well")
except nbd.Error as error:
    assert error.errnum == errno.ENOSPC, error
assert h.pread(512, 0) == bytes(512)
END
    # shellcheck disable=SC2016
    through socket=sock -- 'nbdsh -u "$uri" -c "$(cat script.py)"'
}

check_oldstyle_server_is_forwarded() {
    serve "$PWD/sock" nbdkit -f -o -U "$PWD/sock" pattern 1M
    cat >script.py <<'END'
assert h.get_size() == 1024 * 1024
assert h.pread(16, 0x800) == (0x800).to_bytes(8, "big") + (0x808).to_bytes(8, "big")
END
    # shellcheck disable=SC2016
    through socket=sock -- 'nbdsh -u "$uri" -c "$(cat script.py)"'
}

check_absent_server_is_an_error() {
    # shellcheck disable=SC2016
    if through socket="$PWD/nobody" -- 'nbdinfo "$uri"' 2>err; then exit 1; fi
    cat err
    grep -q nobody err
}

# --- running them ----------------------------------------------------------------------

if [ $# -gt 1 ]; then
    cd "$(mktemp -d)"
    trap 'stop_all; rm -rf "$PWD"' EXIT
    "$2"
    exit
fi

echo "version $(nbdkit --version), $(nbdcopy --version | head -n 1), $(qemu-nbd --version | head -n 1)"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
mapfile -t checks < <(sed -n 's/^\(check_[a-z0-9_]*\)().*/\1/p' "$0")
for check in "${checks[@]}"; do
    name=${check#check_}
    name=${name//_/ }
    status=0
    timeout --kill-after=5 $limit "$BASH" "$0" "$plugin" "$check" >"$log" 2>&1 || status=$?
    case $status in
    0) echo "ok $name" ;;
    124 | 137) echo "FAILED $name: no end after $limit s" ;;
    *) echo "FAILED $name: $(grep -am 1 error: "$log" || tail -n 1 "$log")" ;;
    esac
done
