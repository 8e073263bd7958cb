// SPDX-License-Identifier: BSD-3-Clause
//! Instructions per request: the stored figures are kept, and who changes what a request costs is told.

#[path = "../benches/instructions/figures.rs"]
mod figures;

use figures::{Figure, STRICT, Stored, TOLERANCE};

fn figures(list: &[(&str, u64)]) -> Vec<Figure> {
    let owned = |(name, value): &(&str, u64)| ((*name).to_owned(), *value);
    list.iter().map(owned).collect()
}

fn stored(list: &[(&str, u64)]) -> Stored {
    Stored {
        compiler: "1.85.0 (with a date)".to_owned(),
        figures: figures(list),
    }
}

#[test]
fn what_is_written_is_read() {
    let written = stored(&[("read", 1871), ("a-name-longer-than-its-column", 7)]);
    let read = Stored::parse(&written.write()).expect("our own file");
    assert_eq!(read.compiler, written.compiler);
    assert_eq!(read.figures, written.figures);
}

#[test]
fn the_file_in_the_tree_is_readable() {
    let text = include_str!("../benches/instructions/figures.txt");
    let stored = Stored::parse(text).expect("figures.txt");
    assert!(!stored.figures.is_empty());
    assert_eq!(stored.write(), text, "as UPDATE=1 would write it");
}

#[test]
fn lines_without_a_number_are_refused() {
    for line in ["read", "read ", "read x", "read -1"] {
        let error = Stored::parse(line).expect_err(line);
        assert!(error.contains(line), "{error}");
    }
}

#[test]
fn up_to_a_tenth_is_tolerated() {
    let stored = stored(&[("read", 1000), ("write", 1000)]);
    let close = figures(&[("read", 1100), ("write", 900)]);
    assert_eq!(stored.complaints(&close, TOLERANCE), Vec::<String>::new());
}

#[test]
fn who_is_strict_tolerates_three_per_cent() {
    let stored = stored(&[("read", 1000), ("write", 1000)]);
    let close = figures(&[("read", 1030), ("write", 970)]);
    assert_eq!(stored.complaints(&close, STRICT), Vec::<String>::new());
    let off = figures(&[("read", 1031), ("write", 969)]);
    assert_eq!(
        stored.complaints(&off, STRICT),
        [
            "read went from 1000 to 1031: +3.1 %",
            "write went from 1000 to 969: -3.1 %",
        ]
    );
    assert_eq!(stored.complaints(&off, TOLERANCE), Vec::<String>::new());
}

#[test]
fn more_than_a_tenth_is_not_up_or_down() {
    let stored = stored(&[("read", 1000), ("write", 1000)]);
    assert_eq!(
        stored.complaints(&figures(&[("read", 1101), ("write", 899)]), TOLERANCE),
        [
            "read went from 1000 to 1101: +10.1 %",
            "write went from 1000 to 899: -10.1 %",
        ]
    );
}

#[test]
fn figures_come_and_go_only_with_the_file() {
    assert_eq!(
        stored(&[("old", 1)]).complaints(&figures(&[("new", 2)]), TOLERANCE),
        [
            "old is stored and not counted any more",
            "new is 2 and not stored",
        ]
    );
}
