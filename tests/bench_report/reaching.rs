// SPDX-License-Identifier: BSD-3-Clause
//! What a bar leaves to a forwarder, beside what client, server and nbdkit take.

use crate::contender::Contender;
use crate::reach::{Reach, reaches};
use crate::results::{Results, Row};
use crate::{cell, report, workload};

/// One workload with all who have a say: rates and CPU times of a typical round.
fn row(name: &str) -> Row {
    let all = workload::all();
    let workload = all.into_iter().find(|workload| workload.name() == name);
    let cell = |rate, cpu| Some(cell(rate, Some(cpu), None));
    Row {
        workload: workload.expect("it is in the list"),
        cells: vec![
            cell(100_000.0, 9.0),
            cell(80_000.0, 12.0),
            cell(40_000.0, 30.0),
            cell(50_000.0, 20.0),
            cell(40_000.0, 30.0),
        ],
        thrown: 0,
        repeated: 0,
    }
}

fn contenders() -> Vec<Contender> {
    vec![
        Contender::Relay,
        Contender::Handover,
        Contender::C,
        Contender::Ours("ours".to_owned(), "plugin.so".into()),
        Contender::Again,
    ]
}

#[test]
fn what_is_left_is_what_nobody_else_takes() {
    let found = reaches(&contenders(), &[row("unix/4k-randread-16x4")], 2);
    let expected = Reach {
        what: "4k randread, depth 16, 4 clients".to_owned(),
        bound: 1.5,
        // The C plugin forwards one in 50 us of two processors.
        all: 50.0 / 1.5,
        others: 50.0 - 30.0,
        handover: 12.0,
        relay: Some(9.0),
        ours: vec![Some(20.0)],
    };
    assert!((expected.left() - 4.0 / 3.0).abs() < 1e-9, "{expected:?}");
    assert_eq!(found, [expected]);
}

#[test]
fn where_nbdkit_alone_takes_more_nothing_is_left() {
    let mut row = row("unix/4k-randread-16x4");
    row.cells[1] = Some(cell(60_000.0, Some(16.0), None));
    let found = reaches(&contenders(), &[row], 2);
    assert!(found[0].left() < 0.0, "{found:?}");
}

#[test]
fn nothing_is_said_without_a_target_or_a_handover() {
    let mut unknown = row("unix/4k-randread-16");
    unknown.cells[1] = None;
    let rows = [unknown, row("unix/4k-randread-16-t4")];
    assert_eq!(reaches(&contenders(), &rows, 2), []);
}

#[test]
fn the_report_shows_it() {
    let results = Results {
        quick: false,
        rounds: 3,
        seconds: 2.0,
        counter: None,
        processors: 2,
        machine: Vec::new(),
        contenders: contenders(),
        rows: vec![row("unix/4k-randread-16x4")],
    };
    let report = report::report(&results);
    let (_, part) = report
        .split_once("## What a target leaves to a forwarder")
        .expect("the section");
    let line = part.lines().find(|line| line.starts_with("| 4k randread"));
    let cells = line.expect("its line").split('|').map(str::trim);
    assert_eq!(
        cells.collect::<Vec<_>>(),
        [
            "",
            "4k randread, depth 16, 4 clients",
            "≥ 1.50",
            "33.3",
            "20.0",
            "12.0",
            "1.3",
            "9.0",
            "20.0",
            ""
        ]
    );
}
