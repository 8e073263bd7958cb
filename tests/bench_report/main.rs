// SPDX-License-Identifier: BSD-3-Clause
//! The parts of `make bench` that compute: parsing, statistics, verdicts, tables, the chart.

#[path = "../common/mod.rs"]
mod common;

/// Its modules, without those that measure. Their paths begin with `crate`, so they are here as there.
#[allow(dead_code)]
#[path = "../../benches/side_by_side/calls.rs"]
mod calls;
#[path = "../../benches/side_by_side/chart.rs"]
mod chart;
#[allow(dead_code)]
#[path = "../../benches/side_by_side/contender.rs"]
mod contender;
#[allow(dead_code)]
#[path = "../../benches/side_by_side/door.rs"]
mod door;
#[allow(dead_code)]
#[path = "../../benches/side_by_side/fio.rs"]
mod fio;
#[path = "../../benches/side_by_side/json.rs"]
mod json;
#[allow(dead_code)]
#[path = "../../benches/side_by_side/pieces.rs"]
mod pieces;
#[allow(dead_code)]
#[path = "../../benches/side_by_side/progress.rs"]
mod progress;
#[path = "../../benches/side_by_side/reach.rs"]
mod reach;
#[path = "../../benches/side_by_side/report.rs"]
mod report;
#[path = "../../benches/side_by_side/results.rs"]
mod results;
#[path = "../../benches/side_by_side/sample.rs"]
mod sample;
#[allow(dead_code)]
#[path = "../../benches/side_by_side/server.rs"]
mod server;
#[path = "../../benches/side_by_side/stats.rs"]
mod stats;
#[path = "../../benches/side_by_side/table.rs"]
mod table;
#[path = "../../benches/side_by_side/targets.rs"]
mod targets;
#[allow(dead_code)]
#[path = "../../benches/side_by_side/usage.rs"]
mod usage;
#[path = "../../benches/side_by_side/verdict.rs"]
mod verdict;
#[allow(dead_code)]
#[path = "../../benches/side_by_side/workload.rs"]
mod workload;

mod figures;
mod output;
mod parsing;
mod reaching;
mod serving;
mod verdicts;

use contender::Contender;
use results::{Cell, Results, Row};
use sample::Sample;
use workload::Workload;

/// A cell of three rounds around these figures.
fn cell(rate: f64, cpu: Option<f64>, peak: Option<u64>) -> Cell {
    let sample = |rate| Sample {
        rate,
        requests: 1000,
        seconds: 2.0,
        p50: Some(100.0),
        p99: Some(900.0),
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
        Contender::Again,
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
            Some(cell(10_000.0, Some(50.0), Some(8 << 10))),
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
        processors: 2,
        machine: vec![("machine", "a <small> one & old".to_owned())],
        contenders,
        rows,
    }
}
