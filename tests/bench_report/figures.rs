// SPDX-License-Identifier: BSD-3-Clause
//! Statistics and the list of workloads.

use std::collections::BTreeSet;

use crate::contender::Contender;
use crate::workload::Workload;
use crate::{results, stats, targets, workload};

#[test]
fn medians_and_spreads() {
    assert_eq!(stats::median(&[]), 0.0);
    assert_eq!(stats::median(&[3.0, 1.0, 2.0]), 2.0);
    assert_eq!(stats::median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    assert_eq!(stats::spread(&[8.0, 10.0, 12.0]), 0.2);
    assert_eq!(stats::spread(&[]), 0.0);
}

#[test]
fn two_runs_lie_apart_by_medians_or_by_rounds() {
    assert_eq!(stats::apart(&[], &[]), 0.0);
    assert_eq!(stats::apart(&[8.0, 10.0, 12.0], &[8.0, 10.0, 12.0]), 0.0);
    // Whichever is faster.
    assert_eq!(stats::apart(&[10.0], &[15.0]), 0.5);
    assert_eq!(stats::apart(&[15.0], &[10.0]), 0.5);
    // The medians meet, by chance.
    let (first, again) = ([100.0, 100.0, 100.0], [125.0, 80.0, 100.0]);
    assert_eq!(stats::apart(&first, &again), 0.25);
    // They meet in the typical round, but once one was lucky.
    let (first, again) = ([1.0, 1.0, 5.0, 5.0, 5.0], [1.0, 1.0, 1.0, 5.0, 5.0]);
    assert_eq!(stats::apart(&first, &again), 4.0);
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
fn who_takes_part_where() {
    let all = workload::all();
    let part = |name: &str| -> Vec<bool> {
        let workload = all.iter().find(|workload| workload.name() == name);
        let workload = workload.expect("it is in the list");
        let contenders = [
            Contender::Direct,
            Contender::Relay,
            Contender::Qemu,
            Contender::Handover,
            Contender::C,
            Contender::Again,
        ];
        let part = contenders.iter().map(|each| each.takes_part(workload));
        part.collect()
    };
    let (yes, no) = (true, false);
    assert_eq!(part("unix/4k-randread-16"), [yes; 6]);
    assert_eq!(part("unix/4k-randread-1"), [yes, yes, yes, no, yes, yes]);
    let threads = part("unix/4k-randread-16-t8");
    assert_eq!(threads, [yes, no, no, yes, yes, yes]);
    assert_eq!(part("unix/256k-read-8"), [yes, yes, yes, no, yes, yes]);
    assert_eq!(part("dynamic/open"), [yes, yes, no, no, yes, yes]);
    assert_eq!(part("psk/256k-read-8"), [no, no, yes, no, yes, yes]);
}
