// SPDX-License-Identifier: BSD-3-Clause
//! Pages that cite tests as proofs: each of these is there, and is a test.

mod common;

use std::fs;
use std::path::Path;

use common::manual;

const PAGES: [&str; 3] = ["SECURITY.md", "docs/design.md", "docs/proofs.md"];

/// Words between backquotes.
fn quoted(text: &str) -> Vec<&str> {
    // Pictures have none, and blocks of them are even in number.
    text.split('`').skip(1).step_by(2).collect()
}

/// Whether the file has a test of this name, written out or made by a list of names.
fn is_a_test(source: &str, name: &str) -> bool {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let written = |at: usize| {
        let head = format!("fn {name}(");
        let named = lines[at].trim_start_matches("pub ").starts_with(&head);
        let above = lines[..at].iter().rev();
        let is_above = |line: &&&str| line.starts_with("#[") || line.starts_with("//");
        named && above.take_while(is_above).any(|line| *line == "#[test]")
    };
    let listed = || {
        let list = source.split_once("\nneeded! {").map(|(_, list)| list);
        list.is_some_and(|list| list.split_whitespace().any(|word| word == name))
    };
    (0..lines.len()).any(written) || listed()
}

fn cited(page: &str) -> (usize, Vec<String>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = manual::file(page);
    let mut count = 0;
    let mut missing = Vec::new();
    for word in quoted(&text) {
        let (file, name) = match word.split_once("::") {
            Some((file, name)) if file.ends_with(".rs") => (file, Some(name)),
            None if ["src/", "tests/", "docs/"]
                .iter()
                .any(|room| word.starts_with(room)) =>
            {
                (word, None)
            }
            _ => continue,
        };
        count += 1;
        let there = match (name, fs::read_to_string(root.join(file))) {
            (None, _) => root.join(file).exists(),
            (Some(name), Ok(source)) => is_a_test(&source, name),
            (Some(_), Err(_)) => false,
        };
        if !there {
            missing.push(format!("{page}: {word}"));
        }
    }
    (count, missing)
}

#[test]
fn every_proof_that_is_cited_is_there() {
    let mut all = 0;
    let mut missing = Vec::new();
    for page in PAGES {
        let (count, more) = cited(page);
        all += count;
        missing.extend(more);
    }
    assert_eq!(missing, [""; 0]);
    assert!(all > 100, "{all}");
}

#[test]
fn what_is_not_there_is_found_out() {
    let source = "#[test]\nfn a_test() {}\n\nfn no_test() {}\n";
    assert!(is_a_test(source, "a_test"));
    for name in ["no_test", "a_tes", "another"] {
        assert!(!is_a_test(source, name), "{name}");
    }
    let rules = "\nneeded! {\n    one\n    two\n}\n";
    assert!(is_a_test(rules, "two") && !is_a_test(rules, "three"));
}

/// The filter asks again, and what a server had acknowledged and lost stays lost: `reconnect=` is what to use.
#[test]
fn nobody_is_sent_to_the_retry_filter() {
    for page in ["README.md", "contrib/README.md", "docs/scaling.md"] {
        assert!(!manual::file(page).contains("--filter=retry"), "{page}");
    }
}

/// All rows of lost servers, and all promises' invariants that have a rule, are in the page of proofs.
#[test]
fn nothing_is_left_without_a_proof() {
    let page = manual::file("docs/proofs.md");
    for row in 1..=14 {
        assert!(page.contains(&format!("| Z{row} |")), "Z{row}");
    }
    let rules = manual::file("src/session/rules.rs");
    let names = rules.lines().filter_map(|line| {
        let name = line
            .trim()
            .strip_prefix("pub(crate) ")?
            .strip_suffix(": bool,")?;
        Some(name.to_owned())
    });
    let names: Vec<String> = names.collect();
    assert!(names.len() >= 10, "{names:?}");
    for name in names {
        let proof = format!("`src/session/tests/rules.rs::{name}`");
        assert!(page.contains(&proof), "{name}");
    }
}
