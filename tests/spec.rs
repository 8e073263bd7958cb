// SPDX-License-Identifier: BSD-3-Clause
//! `scripts/spec.sh` finds out when the citations of the protocol and the page about them disagree.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use common::clients::LIMIT;
use common::need_all;
use common::process::run;

fn check(root: &Path) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/spec.sh");
    run(Command::new(script).arg(root), LIMIT)
}

/// The project's own, with the page and one file of the source changed.
fn with(page: impl Fn(String) -> String, source: impl Fn(String) -> String) -> (bool, String) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let directory = tempfile::tempdir().expect("temporary directory");
    let copy = directory.path();
    for made in ["docs", "src"] {
        fs::create_dir(copy.join(made)).expect("directory");
    }
    let status = Command::new("cp")
        .arg("-r")
        .arg(root.join("src"))
        .arg(copy)
        .status();
    assert!(status.expect("cp").success());
    let text = fs::read_to_string(root.join("docs/spec.md")).expect("the page");
    fs::write(copy.join("docs/spec.md"), page(text)).expect("write");
    let file = copy.join("src/proto/reply.rs");
    let text = fs::read_to_string(&file).expect("a file of the source");
    fs::write(file, source(text)).expect("write");
    let output = check(copy);
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

fn same(text: String) -> String {
    text
}

const CITATION: &str = "// spec: Structured reply flags: MUST: unknown flags are ignored";

#[test]
fn page_and_source_agree() {
    if !need_all(&["bash", "awk", "diff"]) {
        return;
    }
    let (agree, said) = with(same, same);
    assert!(agree, "{said}");
    assert!(
        said.contains("requirements of the protocol are cited"),
        "{said}"
    );
}

#[test]
fn what_disagrees_is_told() {
    if !need_all(&["bash", "awk", "diff"]) {
        return;
    }
    let row = "| Structured reply flags | MUST | unknown flags are ignored | because of this and that |\n";
    let cases: [(&str, (bool, String)); 6] = [
        (
            "disagree",
            with(same, |source| source.replace(CITATION, "// nothing")),
        ),
        (
            "disagree",
            with(
                |page| page.replace("unknown flags are ignored | `src/proto/reply.rs`", "x | y"),
                same,
            ),
        ),
        (
            "not of the form",
            with(same, |source| {
                source.replace("MUST: unknown", "must: unknown")
            }),
        ),
        (
            "more than once",
            with(same, |source| format!("{source}{CITATION}\n")),
        ),
        (
            "cited and left out",
            with(|page| format!("{page}{row}"), same),
        ),
        (
            "without a reason",
            with(
                |page| format!("{page}| Baseline | MUST | something |  |\n"),
                same,
            ),
        ),
    ];
    for (says, (agree, said)) in cases {
        assert!(!agree && said.contains(says), "{says}: {said}");
    }
}
