#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Checks everything that can be checked without running it. `make lint` installs what it needs.
#
# A tool that a distribution does not have is left out and named at the end; with CI set it
# has to be there.
set -euo pipefail
cd "$(dirname "$0")/.."

left_out=()
have() { # WHAT COMMAND...: whether the command works
    local what=$1
    shift
    if "$@" >/dev/null 2>&1; then return; fi
    left_out+=("$what")
    return 1
}

# A distribution's compiler may be older or newer than ours, and warn of other things: there
# warnings are shown, and what the crate denies fails.
if [ -n "${CI:-}" ] || command -v rustup >/dev/null; then
    strict=(-D warnings)
else
    strict=()
    echo "lint: $(rustc --version) is not from rustup: warnings do not fail"
fi
if have rustfmt cargo fmt --version; then
    cargo fmt --check || [ ${#strict[@]} = 0 ]
fi
if have clippy cargo clippy --version; then
    if [ ${#strict[@]} = 0 ]; then
        # Clippy ends at a setting that it does not know, as this one in 1.85.
        CLIPPY_CONF_DIR=$(mktemp -d)
        trap 'rm -rf "$CLIPPY_CONF_DIR"' EXIT
        export CLIPPY_CONF_DIR
        grep -v '^check-incompatible-msrv-in-tests' clippy.toml >"$CLIPPY_CONF_DIR/clippy.toml"
    fi
    cargo clippy --locked --all-targets -- "${strict[@]}"
fi
RUSTDOCFLAGS="${strict[*]}" cargo doc --locked --no-deps --document-private-items

podchecker ./*.pod
if have systemd-analyze systemd-analyze --version; then
    systemd-analyze verify --man=no contrib/systemd/*
fi
scripts/spec.sh

mapfile -t scripts < <(scripts/spdx.sh scripts)
for script in "${scripts[@]}"; do bash -n "$script"; done
if have shellcheck shellcheck --version; then
    severity=warning
    [ ${#strict[@]} = 0 ] || severity=style
    shellcheck --severity="$severity" "${scripts[@]}"
fi
scripts/spdx.sh check

scripts/crates.py check
# The data base of advisories is on the network, where a check of this tree does not go: it is
# used where `cargo deny fetch` has brought it.
checks=(licenses bans sources) advisories="advisories were not looked at: cargo deny fetch"
if compgen -G "${CARGO_HOME:-$HOME/.cargo}/advisory-db*" >/dev/null; then
    checks+=(advisories) advisories=
fi
if cargo deny --version >/dev/null 2>&1; then
    # It looks at all crates, also at those that only other systems need, which nobody has built here.
    cargo fetch --locked --quiet
    cargo deny --offline --locked check "${checks[@]}"
else
    advisories="cargo deny is not installed: its part was scripts/crates.py, without advisories"
fi
[ -z "$advisories" ] || echo "lint: $advisories"

[ ${#left_out[@]} = 0 ] || echo "lint: left out, as it is not here: ${left_out[*]}"
[ ${#left_out[@]} = 0 ] || [ -z "${CI:-}" ]
