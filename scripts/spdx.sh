#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Each source file names its licence in its first line, after a script's #! line.
#
#     scripts/spdx.sh check      names the files that do not, and fails
#     scripts/spdx.sh add        puts the line where it is missing
#     scripts/spdx.sh scripts    lists the shell scripts
set -euo pipefail
cd "$(dirname "$0")/.."

licence='SPDX-License-Identifier: BSD-3-Clause'

# A release has no git, and not everybody's git will read a clone; vendor/ belongs to others.
each_file() {
    if git rev-parse --git-dir >/dev/null 2>&1; then
        git ls-files
    else
        find . -path ./.git -prune -o -path ./vendor -prune -o -path ./target -prune -o -path ./debian -prune -o -type f -printf '%P\n'
    fi | LC_ALL=C sort
}

sources() {
    each_file | while read -r file; do
        case $file in
        *.rs | *.c | *.h | *.sh | *.py) echo "$file" ;;
        # Scripts without an ending, such as .ci/run and Debian's maintainer scripts.
        *) if [ -f "$file" ] && head -c 2 -- "$file" | grep -q '^#!'; then echo "$file"; fi ;;
        esac
    done
}

named() { head -n 2 -- "$1" | grep -qF "$licence"; }

line_for() { # FILE
    case $1 in
    *.rs) echo "// $licence" ;;
    *.c | *.h) echo "/* $licence */" ;;
    *) echo "# $licence" ;;
    esac
}

add() { # FILE
    if head -n 1 -- "$1" | grep -q '^#!'; then
        sed -i "1a $(line_for "$1")" -- "$1"
    else
        sed -i "1i $(line_for "$1")" -- "$1"
    fi
}

case ${1:-} in
check)
    missing=$(sources | while read -r file; do named "$file" || echo "$file"; done)
    [ -z "$missing" ] || { printf 'no "%s" in:\n%s\n' "$licence" "$missing" >&2; exit 1; }
    ;;
add)
    sources | while read -r file; do named "$file" || add "$file"; done
    ;;
scripts)
    sources | while read -r file; do
        case $file in
        *.sh) echo "$file" ;;
        *) if head -n 1 -- "$file" | grep -qE '^#!/bin/(ba)?sh'; then echo "$file"; fi ;;
        esac
    done
    ;;
*)
    echo "usage: $0 check|add|scripts" >&2
    exit 2
    ;;
esac
