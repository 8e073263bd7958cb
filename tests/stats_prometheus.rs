// SPDX-License-Identifier: BSD-3-Clause
//! Statistics in Prometheus' text format.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use common::front::Front;
use common::nbdkit::forward;
use common::need;
use common::statistics::documented;
use common::upstream::memory;

/// A line of Prometheus' text format.
#[derive(Debug)]
struct Sample {
    metric: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// Reads the text format, and insists on all that its description demands: a HELP and a TYPE before the
/// samples of a metric, all of which stand together; names of the right characters; and no sample twice.
fn prometheus(text: &str) -> (Vec<Sample>, BTreeMap<String, String>) {
    let mut samples = Vec::new();
    let mut types = BTreeMap::new();
    let mut helped = BTreeSet::new();
    let mut current = String::new();
    let mut seen = BTreeSet::new();
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (metric, help) = rest.split_once(' ').expect("a text");
            assert!(!help.is_empty() && !help.contains('\\'), "{line}");
            assert!(helped.insert(metric.to_owned()), "twice: {line}");
            metric.clone_into(&mut current);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (metric, kind) = rest.split_once(' ').expect("a type");
            assert_eq!(metric, current, "behind its HELP: {line}");
            assert!(["counter", "gauge", "summary"].contains(&kind), "{line}");
            types.insert(metric.to_owned(), kind.to_owned());
        } else {
            let sample = sample(line);
            let family = match types.get(&current).map(String::as_str) {
                Some("summary") => sample
                    .metric
                    .strip_suffix("_sum")
                    .or(sample.metric.strip_suffix("_count"))
                    .unwrap_or(&sample.metric),
                Some(_) => &sample.metric,
                None => panic!("no type: {line}"),
            };
            assert_eq!(family, current, "{line}");
            let identity = line.rsplit_once(' ').expect("a value").0;
            assert!(seen.insert(identity.to_owned()), "twice: {line}");
            samples.push(sample);
        }
    }
    (samples, types)
}

fn sample(line: &str) -> Sample {
    let is_name = |name: &str| {
        let first = |c: char| c.is_ascii_alphabetic() || c == '_';
        name.starts_with(first) && name.chars().all(|c| first(c) || c.is_ascii_digit())
    };
    let (metric, rest) = line.split_once('{').expect("labels");
    assert!(is_name(metric), "{line}");
    let mut labels = BTreeMap::new();
    let mut rest = rest;
    loop {
        let (label, behind) = rest.split_once("=\"").expect("a label");
        assert!(is_name(label), "{line}");
        let mut value = String::new();
        let mut characters = behind.char_indices();
        let end = loop {
            let (at, c) = characters.next().expect("an end");
            value.push(match c {
                '"' => break at,
                '\\' => match characters.next().expect("what is escaped").1 {
                    'n' => '\n',
                    c @ ('\\' | '"') => c,
                    other => panic!("\\{other}: {line}"),
                },
                c => c,
            });
        };
        assert!(labels.insert(label.to_owned(), value).is_none(), "{line}");
        rest = &behind[end + 1..];
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => break,
        }
    }
    let value = rest.strip_prefix("} ").expect("a value");
    Sample {
        metric: metric.to_owned(),
        labels,
        value: value.parse().expect("a number"),
    }
}

#[test]
fn prometheus_gets_what_was_done_in_its_own_format() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = memory(directory.path(), "1M");
    let path = directory.path().join("my \"disk\".prom");
    let stats = format!("stats={}", path.display());
    let args = [&*stats, "stats-format=prometheus", "export=a\\b\"c\nd"];
    let mut front = forward(directory.path(), server.socket(), &args);
    let mut client = Front::open(front.socket()).expect("opens");
    client.read(0, 512).expect("reads");
    client.read(0, 512).expect("reads");
    client.close();
    front.ends_well();
    let text = fs::read_to_string(&path).expect("statistics");
    let (samples, types) = prometheus(&text);
    assert!(samples.iter().all(|of| of.labels["name"] == "my \"disk\""));
    let value = |metric: &str, labels: &[(&str, &str)]| {
        let is_it = |of: &&Sample| {
            let has =
                |(label, value): &(&str, &str)| of.labels.get(*label).is_some_and(|is| is == value);
            of.metric == metric && labels.iter().all(has)
        };
        let found: Vec<_> = samples.iter().filter(is_it).collect();
        assert_eq!(found.len(), 1, "{metric} {labels:?}: {found:?}");
        found[0].value
    };
    let read = [("command", "read")];
    assert_eq!(value("nbdkit_nbd_requests_total", &read), 2.0);
    assert_eq!(value("nbdkit_nbd_bytes_total", &read), 1024.0);
    assert_eq!(value("nbdkit_nbd_server_seconds_count", &read), 2.0);
    assert_eq!(value("nbdkit_nbd_connections_opened_total", &[]), 1.0);
    assert_eq!(value("nbdkit_nbd_errors_total", &[("errno", "EIO")]), 0.0);
    let median = value(
        "nbdkit_nbd_server_seconds",
        &[("command", "read"), ("quantile", "0.5")],
    );
    let longest = value(
        "nbdkit_nbd_server_seconds",
        &[("command", "read"), ("quantile", "1")],
    );
    assert!(0.0 < median && median <= longest && longest < 60.0);
    assert!(value("nbdkit_nbd_server_seconds_sum", &read) >= longest);
    // Control characters are made visible, as they are everywhere.
    let info = samples.iter().find(|of| of.metric == "nbdkit_nbd_info");
    assert_eq!(info.expect("there").labels["export"], "a\\b\"c\\nd");

    let documented: BTreeSet<String> = documented("For Prometheus").into_iter().collect();
    let written: BTreeSet<String> = types.into_keys().collect();
    assert_eq!(written, documented);
}
