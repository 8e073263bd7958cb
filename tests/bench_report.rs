//! The parts of `make bench` that compute: parsing, statistics, verdicts, tables, the chart.

mod common;

/// Its modules, without those that measure. Their paths begin with `crate`, so they are here as there.
#[allow(dead_code)]
#[path = "../benches/side_by_side/calls.rs"]
mod calls;
#[path = "../benches/side_by_side/chart.rs"]
mod chart;
#[allow(dead_code)]
#[path = "../benches/side_by_side/contender.rs"]
mod contender;
#[allow(dead_code)]
#[path = "../benches/side_by_side/fio.rs"]
mod fio;
#[path = "../benches/side_by_side/json.rs"]
mod json;
#[allow(dead_code)]
#[path = "../benches/side_by_side/progress.rs"]
mod progress;
#[path = "../benches/side_by_side/report.rs"]
mod report;
#[path = "../benches/side_by_side/results.rs"]
mod results;
#[path = "../benches/side_by_side/sample.rs"]
mod sample;
#[allow(dead_code)]
#[path = "../benches/side_by_side/server.rs"]
mod server;
#[path = "../benches/side_by_side/stats.rs"]
mod stats;
#[path = "../benches/side_by_side/table.rs"]
mod table;
#[path = "../benches/side_by_side/targets.rs"]
mod targets;
#[allow(dead_code)]
#[path = "../benches/side_by_side/usage.rs"]
mod usage;
#[path = "../benches/side_by_side/workload.rs"]
mod workload;

use std::collections::BTreeSet;
use std::time::Duration;

use contender::Contender;
use results::{Cell, Results, Row};
use sample::Sample;
use table::Table;
use workload::Workload;

/// A cell of three rounds around these figures.
fn cell(rate: f64, cpu: Option<f64>, peak: Option<u64>) -> Cell {
    let sample = |rate| Sample {
        rate,
        requests: 1000,
        seconds: 2.0,
        p50: 100.0,
        p99: 900.0,
        cpu,
    };
    Cell {
        samples: vec![sample(rate * 1.1), sample(rate), sample(rate * 0.9)],
        peak,
        ..Cell::default()
    }
}

fn contenders() -> Vec<Contender> {
    let ours = |name: &str| Contender::Ours(name.to_owned(), "plugin.so".into());
    vec![
        Contender::Direct,
        Contender::Relay,
        Contender::C,
        ours("ours"),
        ours("ours:2"),
    ]
}

/// Every workload; the second build of ours is slower and hungrier than the C plugin.
fn results() -> Results {
    let row = |workload: Workload| Row {
        workload,
        cells: vec![
            Some(cell(40_000.0, None, None)),
            None,
            Some(cell(10_000.0, Some(50.0), Some(8 << 10))),
            Some(cell(30_000.0, Some(10.0), Some(10 << 10))),
            Some(cell(5_000.0, Some(60.0), Some(13 << 10))),
        ],
        thrown: 1,
        repeated: 0,
    };
    let contenders = contenders();
    let rows: Vec<Row> = workload::all().into_iter().map(row).collect();
    Results {
        quick: false,
        rounds: 3,
        seconds: 2.0,
        counter: Some("an abacus"),
        machine: vec![("machine", "a <small> one & old".to_owned())],
        targets: targets::judge(&contenders, &rows),
        contenders,
        rows,
    }
}

#[test]
fn fio_output_is_understood() {
    let text = r#"fio: connected to NBD server
{ "fio version" : "fio-3.33", "jobs" : [ { "error" : 0, "mixed" : {
    "iops" : 21586.25, "total_ios" : 43302, "runtime" : 2006, "clat_ns" : { "percentile" : {
        "50.000000" : 228352, "99.000000" : 18219008 } } } } ] }"#;
    let sample = fio::parse(text).expect("figures");
    assert_eq!(sample.rate, 21586.25);
    assert_eq!((sample.requests, sample.seconds), (43302, 2.006));
    assert_eq!((sample.p50, sample.p99), (228.352, 18219.008));
}

#[test]
fn fio_failures_are_no_figures() {
    for text in [
        "",
        "fio: connected to NBD server\n",
        "{",
        r#"{"jobs":[{"error":5}]}"#,
        r#"{"jobs":[{"error":0,"mixed":{"iops":1.0}}]}"#,
        r#"{"jobs":[]}"#,
    ] {
        assert!(fio::parse(text).is_err(), "{text}");
    }
}

#[test]
fn times_of_a_process_follow_its_name() {
    let line =
        "5523 (nbd) kit (x) S 5520 5520 3293 0 -1 4194304 144714 7 0 0 32 188 4 1 20 0 1 0 69208";
    assert_eq!(usage::ticks(line), Some(32 + 188 + 4 + 1));
    assert_eq!(usage::ticks("5523 (nbdkit) S 1 2"), None);
}

#[test]
fn peak_memory_is_found() {
    let status = "Name:\tnbdkit\nVmPeak:\t 1261364 kB\nVmHWM:\t    7384 kB\nVmRSS:\t 7000 kB\n";
    assert_eq!(usage::hwm(status), Some(7384));
    assert_eq!(usage::hwm("Name:\tkthreadd\n"), None);
}

#[test]
fn system_calls_are_found() {
    let strace = "% time     seconds  usecs/call     calls    errors syscall\n\
        ------ ----------- ----------- --------- --------- ----------------\n \
        97.10    2.654            423      6000       259 futex\n\
        100.00    2.728654         423      6441       259 total\n";
    assert_eq!(calls::strace_calls(strace), Some(6441));
    assert_eq!(calls::strace_calls(""), None);
    let perf = "# started on Sun Nov 22\n\n151133,,raw_syscalls:sys_enter,471087564,100.00,,\n";
    assert_eq!(calls::perf_calls(perf), Some(151_133));
    let refused = "<not supported>,,raw_syscalls:sys_enter,0,100.00,,\n";
    assert_eq!(calls::perf_calls(refused), None);
}

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
}

#[test]
fn verdicts() {
    let results = results();
    // A target for a workload that does not exist would be missing.
    assert_eq!(results.targets.len(), 24);
    for judgement in &results.targets {
        let verdicts: Vec<bool> = judgement.found.iter().map(|found| found.1).collect();
        assert_eq!(verdicts, [true, false], "{judgement:?}");
    }
    let values = |what: &str| -> Vec<f64> {
        let judgement = results.targets.iter().find(|j| j.what.starts_with(what));
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
