// SPDX-License-Identifier: BSD-3-Clause
//! What slow requests are told of.

mod common;

use std::time::Instant;

use common::nbdkit::Nbdkit;
use common::need;
use common::statistics::{Counted, are};

fn slow_lines(front: &Nbdkit) -> Vec<String> {
    let errors = front.errors().into_iter();
    errors
        .filter(|line| line.contains("slow request: "))
        .collect()
}

#[test]
fn slow_requests_are_told_with_their_times() {
    if !need("nbdkit") {
        return;
    }
    let server = ["--filter=delay", "memory", "1M", "rdelay=300ms"];
    let counted = Counted::start(&server, &["slow-log=200ms"]);
    let mut client = counted.client();
    client.read(8192, 512).expect("reads");
    client.close();
    let [line] = &*slow_lines(&counted.front) else {
        panic!("{:?}", counted.front.errors());
    };
    let server = counted.server.socket().display();
    let told = format!("{server}: slow request: read offset=8192 length=512 took ");
    assert!(line.contains(&told), "{line}");
    let (_, times) = line.split_once(" took ").expect("found above");
    let times: Vec<f64> = times
        .split([' ', ','])
        .filter_map(|word| word.parse().ok())
        .collect();
    let [total, queue, server] = times[..] else {
        panic!("{line}");
    };
    assert!(server >= 300.0, "{line}");
    assert!((queue + server - total).abs() < 0.01, "{line}");
    are(&counted.end(), &[("slow_requests", 1)]);
}

#[test]
fn requests_that_are_not_slow_are_not_told() {
    if !need("nbdkit") {
        return;
    }
    let counted = Counted::start(&["memory", "1M"], &["slow-log=1000"]);
    let mut client = counted.client();
    client.read(0, 512).expect("reads");
    client.close();
    assert_eq!(slow_lines(&counted.front), [""; 0]);
    are(&counted.end(), &[("slow_requests", 0)]);
}

#[test]
fn a_slow_server_does_not_flood_the_log() {
    if !need("nbdkit") {
        return;
    }
    const READS: u64 = 2000;
    let begun = Instant::now();
    let counted = Counted::start(&["memory", "1M"], &["slow-log=0.000001"]);
    let mut client = counted.client();
    for _ in 0..READS / 10 {
        let asked: Vec<_> = (0..10).map(|n| client.submit_read(n * 512, 512)).collect();
        for cookie in asked {
            client.wait_read(cookie).expect("reads");
        }
    }
    client.close();
    let seconds = begun.elapsed().as_secs() + 2;
    let lines = slow_lines(&counted.front);
    assert!(!lines.is_empty());
    assert!(lines.len() as u64 <= 10 * seconds, "{} lines", lines.len());
    let untold = |line: &String| -> Option<u64> {
        let (_, rest) = line.rsplit_once('(')?;
        rest.split_once(' ')?.0.parse().ok()
    };
    let untold: u64 = lines.iter().filter_map(untold).sum();
    assert!(lines.len() as u64 + untold <= READS, "{untold} untold");
    are(&counted.end(), &[("slow_requests", READS)]);
}
