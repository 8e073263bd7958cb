#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Holds docs/spec.md against the citations in the source, lines such as
#
#     // spec: SECTION: KEYWORD: our own words
#
#     scripts/spec.sh [ROOT]        counts them; fails where the page and the code disagree
#     scripts/spec.sh --write       writes the page's list of what is cited anew
set -euo pipefail
export LC_ALL=C
write=no
if [ "${1:-}" = --write ]; then write=yes; shift; fi
cd "${1:-"$(dirname "$0")/.."}"

page=docs/spec.md
begin='<!-- cited: written by spec.sh -->'
end='<!-- end of cited -->'
section='(([^:|]|:[^ ])+)'
keyword='(MUST|MUST NOT|SHOULD|SHOULD NOT)'

die() { printf 'spec: %s\n' "$@" >&2; exit 1; }

citations() { grep -rnE --include='*.rs' '// spec:' src | sort -t: -k1,1 -k2,2n; }

malformed=$(citations | grep -vE "// spec: $section: $keyword: [^|]+[^ .|]\$" || true)
[ -z "$malformed" ] || die "not of the form SECTION: KEYWORD: words" "$malformed"

# One row of a table for each, by section; stable within a file.
cited() {
    citations | sed -E "s@^([^:]+):[0-9]+: *// spec: $section: $keyword: (.*)\$@| \2 | \4 | \5 | \`\1\` |@" |
        sort -s -t'|' -k2,2
}

table() {
    echo "| Section | Keyword | What | Where |"
    echo "|---|---|---|---|"
    cited
}

# The first three cells are what a citation says.
says() { cut -d'|' -f2-4; }

twice=$(cited | says | sort | uniq -d)
[ -z "$twice" ] || die "cited more than once:" "$twice"

stored() { awk -v begin="$begin" -v end="$end" '$0 == end { on = 0 } on; $0 == begin { on = 1 }' "$page"; }

if [ $write = yes ]; then
    new=$(mktemp)
    trap 'rm -f "$new"' EXIT
    table >"$new"
    sed -i -e "/^$begin\$/,/^$end\$/{//!d}" -e "/^$begin\$/r $new" "$page"
fi

difference=$(diff <(stored) <(table)) ||
    die "$page (<) and the code (>) disagree; scripts/spec.sh --write:" "$difference"

# What is left out has a reason, and is not cited all the same.
left_out() { sed -n '/^## Left out/,$p' "$page" | grep '^| ' | tail -n +2; }
unexplained=$(left_out | grep -vE "^\| [^|]+ \| $keyword \| [^|]+ \| [^|]{10,} \|\$" || true)
[ -z "$unexplained" ] || die "left out without a reason:" "$unexplained"
both=$(comm -12 <(cited | says | sort) <(left_out | says | sort))
[ -z "$both" ] || die "cited and left out:" "$both"

echo "spec: $(cited | wc -l) requirements of the protocol are cited, $(left_out | wc -l) are left out with the reason"
