// SPDX-License-Identifier: BSD-3-Clause
//! Tables, the report, the chart, JSON, progress.

use std::time::Duration;

use crate::table::Table;
use crate::{chart, json, progress, report, results};

#[test]
fn tables_line_up() {
    let mut table = Table::new(vec!["Workload".to_owned(), "≥".to_owned()]);
    table.line(vec!["4k".to_owned(), "12".to_owned()]);
    let text = "| Workload |  ≥ |\n|----------|---:|\n| 4k       | 12 |\n";
    assert_eq!(table.markdown(), text);
}

#[test]
fn the_report_has_all_of_it() {
    let report = report::report(&results());
    for part in [
        "# Benchmark\n",
        "- machine: a <small> one & old\n",
        "## Targets",
        "3.00 ±0 %: ok",
        "0.50 ±0 %: short",
        "2.00 ±0.00: ok",
        "## Where the C plugin is ahead",
        "- 64k randrw, depth 16: ours:2 0.50 ±0 %: short\n",
        "### nbdkit memory by TLS with certificates",
        "## Latency",
        "by an abacus",
    ] {
        assert!(report.contains(part), "{part}:\n{report}");
    }
    // Each table's lines have as many cells as its head.
    let mut cells = None;
    for line in report.lines() {
        let count = line.starts_with('|').then(|| line.matches('|').count());
        assert!(
            cells.is_none() || count.is_none() || count == cells,
            "{line}"
        );
        cells = count;
    }
}

#[test]
fn where_cpu_time_decided_the_report_says_so() {
    let mut results = results();
    for row in &mut results.rows {
        // The first build is as fast as the C plugin and takes less; the second one is gone.
        let ours = row.cells[3].as_mut().expect("measured");
        for (sample, rate) in ours.samples.iter_mut().zip([11_000.0, 10_000.0, 9_000.0]) {
            sample.rate = rate;
        }
        row.cells.remove(4);
    }
    results.contenders.remove(4);
    let report = report::report(&results);
    assert!(report.contains("1.00 ±0 %, CPU 0.20 ±0 %: ok"), "{report}");
    let nowhere = "## Where the C plugin is ahead\n\nNowhere, beyond the spread.\n";
    assert!(report.contains(nowhere), "{report}");
}

/// The value of an attribute that is a number.
fn number(tag: &str, key: &str) -> Option<f64> {
    let (_, rest) = tag.split_once(&format!(" {key}=\""))?;
    rest.split('"').next()?.parse().ok()
}

#[test]
fn the_chart_is_well_formed_and_within_its_borders() {
    let mut results = results();
    // A bar that is far too long.
    for sample in results.rows[0].cells[3]
        .iter_mut()
        .flat_map(|cell| &mut cell.samples)
    {
        sample.rate *= 10.0;
    }
    let svg = chart::chart(&results);
    let mut open = Vec::new();
    for tag in svg.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').expect("each tag ends");
        let name = tag.split([' ', '/']).find(|word| !word.is_empty());
        let name = name.expect("each tag has a name");
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name));
        } else if !tag.ends_with('/') {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?}");
    assert!(svg.contains(">→ 30.00</text>"), "{svg}");
    let width = svg.lines().find_map(|line| number(line, "width"));
    let width = width.expect("the background has a width");
    for line in svg.lines().filter(|line| line.starts_with("<rect")) {
        let right = number(line, "x").unwrap_or(0.0) + number(line, "width").unwrap_or(0.0);
        assert!(right <= width, "{line}");
    }
    for line in svg.lines().filter(|line| line.starts_with("<line")) {
        for key in ["x1", "x2"] {
            let x = number(line, key).expect("an end of the line");
            assert!((0.0..=width).contains(&x), "{line}");
        }
    }
}

#[test]
fn the_chart_shows_rounds_spread_and_ceiling() {
    let mut results = results();
    let mut row = results.rows.remove(0);
    // The two runs of the C plugin lie a quarter apart; both at one level all the time.
    for (cell, rates) in row.cells.iter_mut().zip([
        [25_000.0; 3],
        [0.0; 3],
        [10_000.0; 3],
        [15_750.0, 18_000.0, 20_250.0],
        [0.0; 3],
        [12_500.0; 3],
    ]) {
        for (sample, rate) in cell
            .iter_mut()
            .flat_map(|cell| &mut cell.samples)
            .zip(rates)
        {
            sample.rate = rate;
        }
    }
    // One build of ours is enough.
    row.cells.remove(4);
    results.contenders.remove(4);
    results.rows = vec![row];
    let svg = chart::chart(&results);

    // The C plugin is at 11,250; where 0 and 1 are the axis tells.
    let axis: Vec<f64> = svg
        .lines()
        .filter(|line| line.contains("stroke=\"#ddd\"") || line.contains("stroke=\"#666\""))
        .filter_map(|line| number(line, "x1"))
        .collect();
    let (zero, one) = (axis[0], axis[2]);
    let ratio = |x: f64| ((x - zero) / (one - zero) * 100.0).round() / 100.0;
    let line = |part: &str, key: &str| -> Vec<f64> {
        let lines = svg.lines().filter(|line| line.contains(part));
        // What is above the axis is the legend.
        let lines = lines.filter(|line| number(line, "y1").or(number(line, "y")) > Some(80.0));
        lines.filter_map(|line| number(line, key)).collect()
    };
    let ends = |part: &str| -> Vec<f64> { line(part, "x1").into_iter().map(ratio).collect() };
    assert_eq!(ends("stroke-dasharray"), [2.22], "{svg}");
    // From the worst round to the best, and its two ends.
    assert_eq!(ends("stroke-width=\"1\""), [1.4, 1.4, 1.8], "{svg}");
    let across: Vec<f64> = line("stroke-width=\"1\"", "x2");
    assert_eq!(ratio(across[0]), 1.8);
    let band = "fill=\"#dcdcd4\"";
    let (left, width) = (line(band, "x")[0], line(band, "width")[0]);
    assert_eq!((ratio(left), ratio(left + width)), (0.8, 1.25), "{svg}");
    assert!(svg.contains(">1.60</text>"), "{svg}");
}

#[test]
fn the_json_has_every_round() {
    let json = json::json(&results());
    let row = &json["rows"][0];
    assert_eq!(row["workload"], "unix/4k-randread-1");
    assert_eq!(row["contenders"]["relay"], serde_json::Value::Null);
    let rounds = row["contenders"]["ours"]["rounds"].as_array();
    assert_eq!(rounds.map(Vec::len), Some(3));
    assert_eq!(row["contenders"]["C plugin"]["peak_kib"], 8 << 10);
    assert_eq!(json["targets"][0]["found"][0]["verdict"], "ok");
    assert_eq!(json["targets"][0]["found"][1]["verdict"], "short");
    let ahead = json["c_plugin_ahead"].as_array().expect("a list");
    assert_eq!(ahead[0]["ours"], "ours:2");
}

#[test]
fn progress_knows_what_is_left() {
    let line = |done, seconds| progress::line(done, 100, Duration::from_secs(seconds));
    assert_eq!(line(0, 0), "[------------------------]   0 %:");
    assert_eq!(line(50, 30), "[############------------]  50 %, 30 s left:");
    let late = line(25, 60);
    assert!(late.ends_with(" 25 %, 3 min 0 s left:"), "{late}");
    assert!(line(100, 90).ends_with("100 %, 0 s left:"));
}
