// SPDX-License-Identifier: BSD-3-Clause
//! Whether a bar is reached, beyond what two runs of the C plugin lie apart.

use crate::contender::Contender;
use crate::results::{Cell, Figure, Row};
use crate::targets::{self, faults};
use crate::verdict::{Compared, Found, Verdict};
use crate::workload::Workload;
use crate::{cell, contenders, results, workload};

/// A row with two runs of the C plugin and one of ours: rates and CPU times of their three rounds.
fn row(workload: Workload, first: [f64; 2], again: [f64; 2], ours: [f64; 2]) -> Row {
    let cell = |[rate, cpu]: [f64; 2]| Some(cell(rate, Some(cpu), Some(8 << 10)));
    Row {
        workload,
        cells: vec![cell(first), cell(ours), cell(again)],
        thrown: 0,
        repeated: 0,
    }
}

fn three() -> Vec<Contender> {
    let ours = Contender::Ours("ours".to_owned(), "plugin.so".into());
    vec![Contender::C, ours, Contender::Again]
}

fn find(name: &str) -> Workload {
    let all = workload::all();
    let found = all.into_iter().find(|workload| workload.name() == name);
    found.expect("it is in the list")
}

/// What comes of a bar for the rate, with runs of the C plugin that lie `spread` apart in rates and not at
/// all in CPU time.
fn rate(bound: f64, spread: f64, ours: [f64; 2]) -> Found {
    let again = [1.0 + spread, 1.0];
    let row = row(find("unix/4k-randread-16"), [1.0, 1.0], again, ours);
    let contenders = three();
    let (_, cell) = row.ours(&contenders).next().expect("ours");
    let pair = row.pair(&contenders).expect("both runs");
    Found::rate(bound, cell.expect("measured"), &pair).expect("a rate")
}

#[test]
fn both_runs_of_the_c_plugin_are_what_ours_is_compared_with() {
    let row = row(
        find("unix/4k-randread-16"),
        [1000.0, 50.0],
        [1250.0, 40.0],
        [2000.0, 30.0],
    );
    let pair = row.pair(&three()).expect("both runs");
    // 900, 1000, 1100, 1125, 1250, 1375.
    let middle = pair.of(Figure::Rate).expect("a rate");
    assert!((middle - 1112.5).abs() < 1e-6, "{middle}");
    let rounds = pair.rounds(Figure::Rate);
    assert!((rounds[1] - 1125.0).abs() < 1e-6, "{rounds:?}");
    assert_eq!(pair.of(Figure::Cpu), Some(45.0));
    assert_eq!(pair.spread(Figure::Cpu), 0.25);
    assert_eq!(pair.peak(), Some((8192.0, 0.0)));
}

#[test]
fn one_run_of_the_c_plugin_is_none() {
    let mut row = row(find("unix/open"), [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]);
    row.cells[2] = None;
    assert!(row.pair(&three()).is_none());
    assert_eq!(targets::judge(&three(), &[row]), []);
}

#[test]
fn a_bar_holds_or_fails_only_beyond_the_spread() {
    let compared = |value| Compared { value, spread: 0.1 };
    for (value, at_least, at_most) in [
        (1.80, Verdict::Short, Verdict::Ok),
        (1.81, Verdict::Short, Verdict::Ok),
        (1.83, Verdict::Within, Verdict::Within),
        (2.00, Verdict::Within, Verdict::Within),
        (2.19, Verdict::Within, Verdict::Within),
        (2.21, Verdict::Ok, Verdict::Short),
    ] {
        assert_eq!(compared(value).at_least(2.0), at_least, "{value}");
        assert_eq!(compared(value).at_most(2.0), at_most, "{value}");
    }
    let exact = Compared {
        value: 2.0,
        spread: 0.0,
    };
    assert_eq!(exact.at_least(2.0), Verdict::Ok);
    assert_eq!(exact.at_most(2.0), Verdict::Ok);
}

#[test]
fn where_little_is_asked_for_cpu_time_decides() {
    for (rate_of_ours, cpu, verdict) in [
        (0.97, 0.9, Verdict::Ok),
        (1.03, 1.1, Verdict::Short),
        (1.03, 1.0, Verdict::Ok),
    ] {
        let found = rate(1.0, 0.0, [rate_of_ours, cpu]);
        assert_eq!(found.verdict, verdict, "{found:?}");
        assert_eq!(found.cpu.map(|cpu| cpu.value), Some(cpu));
    }
}

#[test]
fn a_rate_that_is_far_off_needs_no_cpu_time() {
    for (rate_of_ours, verdict) in [(0.9, Verdict::Short), (1.1, Verdict::Ok)] {
        for cpu in [0.5, 1.5] {
            let found = rate(1.0, 0.01, [rate_of_ours, cpu]);
            assert_eq!((found.verdict, found.cpu), (verdict, None), "{found:?}");
        }
    }
    // Unless that is within the spread.
    let found = rate(1.0, 0.3, [0.9, 0.5]);
    assert!(found.cpu.is_some(), "{found:?}");
    assert_eq!(found.verdict, Verdict::Ok);
}

#[test]
fn where_much_is_asked_for_the_rate_decides() {
    let found = rate(1.3, 0.0, [1.29, 0.5]);
    assert_eq!((found.verdict, found.cpu), (Verdict::Short, None));
    let found = rate(1.3, 0.1, [1.29, 0.5]);
    assert_eq!((found.verdict, found.cpu), (Verdict::Within, None));
}

#[test]
fn verdicts_on_all_targets() {
    let results = results();
    let all = targets::judge(&results.contenders, &results.rows);
    // A target for a workload that does not exist would be missing.
    assert_eq!(all.len(), 39);
    for judgement in &all {
        let verdicts = judgement.found.iter().map(|found| found.verdict);
        let verdicts: Vec<Verdict> = verdicts.collect();
        assert_eq!(verdicts, [Verdict::Ok, Verdict::Short], "{judgement:?}");
    }
    let values = |what: &str| -> Vec<f64> {
        let judgement = all.iter().find(|j| j.what.starts_with(what));
        let found = &judgement.expect("a target").found;
        found.iter().map(|found| found.compared.value).collect()
    };
    assert_eq!(values("4k randread, depth 16"), [3.0, 0.5]);
    assert_eq!(values("256k write, depth 8, CPU"), [0.2, 1.2]);
    assert_eq!(values("peak memory"), [2.0, 5.0]);
}

#[test]
fn memory_has_its_spread_too() {
    let contenders = three();
    let peaks = |first: u64, again: u64, ours: u64| {
        let mut row = row(find("unix/open"), [1.0; 2], [1.0; 2], [1.0; 2]);
        for (cell, peak) in row.cells.iter_mut().zip([first, ours, again]) {
            cell.as_mut().expect("measured").peak = Some(peak << 10);
        }
        row
    };
    let judge = |rows: &[Row]| {
        let all = targets::judge(&contenders, rows);
        let memory = all.into_iter().find(|judgement| !judgement.is_ratio);
        memory.expect("the memory").found[0].verdict
    };
    let memory = |first, again, ours| judge(&[peaks(first, again, ours)]);
    // Four more are allowed, and C's own runs are two apart.
    assert_eq!(memory(10, 12, 12), Verdict::Ok);
    assert_eq!(memory(10, 12, 16), Verdict::Within);
    assert_eq!(memory(10, 12, 18), Verdict::Short);
    // A row that says nothing hides none that does.
    let (short, nothing) = (peaks(10, 10, 15), peaks(50, 70, 70));
    assert_eq!(judge(&[short, nothing]), Verdict::Short);
}

#[test]
fn where_the_c_plugin_is_ahead_is_told() {
    let results = results();
    let faults = faults(&results.contenders, &results.rows);
    assert_eq!(faults.len(), results.rows.len());
    assert!(faults.iter().all(|fault| fault.ours == "ours:2"));
    // Also where there is no target.
    let what = |name: &str| faults.iter().any(|fault| fault.what == name);
    assert!(what("64k randrw, depth 16"));
}

#[test]
fn targets_are_silent_about_what_was_not_run() {
    assert_eq!(targets::judge(&contenders(), &[]), []);
    assert_eq!(faults(&contenders(), &[]), []);
}

#[test]
fn a_cell_without_a_round_has_no_figures() {
    let empty = Cell::default();
    assert_eq!((empty.cpu(), empty.p50(), empty.p99()), (None, None, None));
    assert_eq!(Figure::Rate.of(&empty), None);
}
