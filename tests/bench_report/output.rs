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
        "3.00 ok",
        "0.50 short",
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
    let number = |tag: &str, key: &str| -> Option<f64> {
        let (_, rest) = tag.split_once(&format!(" {key}=\""))?;
        rest.split('"').next()?.parse().ok()
    };
    let width = svg.lines().find_map(|line| number(line, "width"));
    let width = width.expect("the background has a width");
    for line in svg.lines().filter(|line| line.starts_with("<rect")) {
        let right = number(line, "x").unwrap_or(0.0) + number(line, "width").unwrap_or(0.0);
        assert!(right <= width, "{line}");
    }
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
    assert_eq!(json["targets"][0]["found"][0]["enough"], true);
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
