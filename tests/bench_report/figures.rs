//! Statistics, the list of workloads, and verdicts on the targets.

use std::collections::BTreeSet;

use crate::contender::Contender;
use crate::workload::Workload;
use crate::{contenders, results, stats, targets, workload};

#[test]
fn medians_and_spreads() {
    assert_eq!(stats::median(&[]), 0.0);
    assert_eq!(stats::median(&[3.0, 1.0, 2.0]), 2.0);
    assert_eq!(stats::median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    assert_eq!(stats::spread(&[8.0, 10.0, 12.0]), 0.2);
    assert_eq!(stats::spread(&[]), 0.0);
}

#[test]
fn paired_ratios_do_not_see_a_drift() {
    // The machine gets slower and slower; ours is twice as fast in each round.
    let (ours, c) = ([20.0, 10.0, 4.0], [10.0, 5.0, 2.0]);
    assert_eq!(stats::paired(&ours, &c), 2.0);
}

#[test]
fn rounds_off_by_more_than_half_stray() {
    let none: [usize; 0] = [];
    assert_eq!(stats::strays(&[100.0, 51.0, 149.0, 100.0, 100.0]), none);
    assert_eq!(stats::strays(&[100.0, 49.0, 100.0, 151.0, 100.0]), [1, 3]);
    assert_eq!(stats::strays(&[]), none);
}

#[test]
fn workloads_have_names_of_their_own() {
    let all = workload::all();
    let names: BTreeSet<String> = all.iter().map(Workload::name).collect();
    let titles: BTreeSet<String> = all.iter().map(Workload::full_title).collect();
    assert_eq!(names.len(), all.len());
    assert_eq!(titles.len(), all.len());
}

#[test]
fn quick_workloads_are_what_targets_speak_of() {
    let all = results();
    for row in all.rows.into_iter().filter(|row| row.workload.quick) {
        let name = row.workload.name();
        let judgements = targets::judge(&all.contenders, &[row]);
        // There is always one about the memory.
        assert!(judgements.len() > 1, "{name}");
    }
}

#[test]
fn large_requests_are_weighed() {
    let all = workload::all();
    let find = |name: &str| {
        let workload = all.iter().find(|workload| workload.name() == name);
        *workload.expect("it is in the list")
    };
    let megabytes = find("unix/256k-read-8");
    assert_eq!(
        (megabytes.unit(), megabytes.figure(1000.0)),
        ("MiB/s", 250.0)
    );
    let iops = find("unix/64k-randrw-16");
    assert_eq!((iops.unit(), iops.figure(1000.0)), ("IOPS", 1000.0));
    let opens = find("unix/open");
    assert_eq!((opens.unit(), opens.figure(1000.0)), ("per s", 1000.0));
    let copies = find("copy/nbdcopy-1-to");
    assert_eq!((copies.unit(), copies.figure(1000.0)), ("MiB/s", 250.0));
    let beside = find("pieces/8k-beside-256k");
    assert_eq!((beside.unit(), beside.figure(1000.0)), ("IOPS", 1000.0));
}

#[test]
fn verdicts() {
    let results = results();
    let all = targets::judge(&results.contenders, &results.rows);
    // A target for a workload that does not exist would be missing.
    assert_eq!(all.len(), 39);
    for judgement in &all {
        let verdicts: Vec<bool> = judgement.found.iter().map(|found| found.1).collect();
        assert_eq!(verdicts, [true, false], "{judgement:?}");
    }
    let values = |what: &str| -> Vec<f64> {
        let judgement = all.iter().find(|j| j.what.starts_with(what));
        let found = &judgement.expect("a target").found;
        found.iter().map(|found| found.0).collect()
    };
    assert_eq!(values("4k randread, depth 16"), [3.0, 0.5]);
    assert_eq!(values("256k write, depth 8, CPU"), [0.2, 1.2]);
    assert_eq!(values("peak memory"), [2.0, 5.0]);
}

#[test]
fn targets_are_silent_about_what_was_not_run() {
    assert_eq!(targets::judge(&contenders(), &[]), []);
}

#[test]
fn who_takes_part_where() {
    let all = workload::all();
    let part = |name: &str| -> Vec<bool> {
        let workload = all.iter().find(|workload| workload.name() == name);
        let workload = workload.expect("it is in the list");
        let contenders = [
            Contender::Direct,
            Contender::Relay,
            Contender::Qemu,
            Contender::C,
        ];
        let part = contenders.iter().map(|each| each.takes_part(workload));
        part.collect()
    };
    assert_eq!(part("unix/4k-randread-16"), [true; 4]);
    let threads = part("unix/4k-randread-16-t8");
    assert_eq!(threads, [true, false, false, true]);
    assert_eq!(part("dynamic/open"), [true, true, false, true]);
    assert_eq!(part("psk/256k-read-8"), [false, false, true, true]);
}
