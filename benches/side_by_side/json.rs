// SPDX-License-Identifier: BSD-3-Clause
//! The results as JSON, with every round, for other programs.

use serde_json::{Map, Value, json};

use crate::results::{Cell, Results, Row};
use crate::targets::{faults, judge};
use crate::verdict::Found;

/// The whole of it.
pub fn json(results: &Results) -> Value {
    let machine: Map<String, Value> = results
        .machine
        .iter()
        .map(|(name, value)| ((*name).to_owned(), json!(value)))
        .collect();
    let names: Vec<&str> = results.contenders.iter().map(|c| c.name()).collect();
    let rows: Vec<Value> = results.rows.iter().map(|each| row(&names, each)).collect();
    let judgements = judge(&results.contenders, &results.rows);
    let targets = judgements.iter().map(|target| {
        json!({
            "what": target.what,
            "bound": target.bound,
            "aim": target.aim,
            "found": target.found.iter().map(found).collect::<Vec<_>>(),
        })
    });
    let faults = faults(&results.contenders, &results.rows);
    let faults = faults.iter().map(
        |fault| json!({ "what": fault.what, "ours": fault.ours, "found": found(&fault.found) }),
    );
    json!({
        "quick": results.quick,
        "rounds": results.rounds,
        "seconds": results.seconds,
        "machine": machine,
        "contenders": names,
        "rows": rows,
        "targets": targets.collect::<Vec<_>>(),
        "c_plugin_ahead": faults.collect::<Vec<_>>(),
    })
}

fn found(found: &Found) -> Value {
    json!({
        "value": found.compared.value,
        "spread": found.compared.spread,
        "decided_by_cpu": found.cpu.map(|cpu| json!({ "value": cpu.value, "spread": cpu.spread })),
        "verdict": found.verdict.text(),
    })
}

fn row(names: &[&str], row: &Row) -> Value {
    let cells = names.iter().zip(&row.cells);
    let cells: Map<String, Value> = cells
        .filter_map(|(name, of)| Some(((*name).to_owned(), cell(of.as_ref()?))))
        .collect();
    json!({
        "workload": row.workload.name(),
        "title": row.workload.full_title(),
        "unit": row.workload.unit(),
        "thrown_rounds": row.thrown,
        "repeated_turns": row.repeated,
        "contenders": cells,
    })
}

fn cell(cell: &Cell) -> Value {
    let rounds = cell.samples.iter().map(|sample| {
        json!({
            "requests_per_second": sample.rate,
            "requests": sample.requests,
            "p50_us": sample.p50,
            "p99_us": sample.p99,
            "cpu_us_per_request": sample.cpu,
        })
    });
    json!({
        "rounds": rounds.collect::<Vec<_>>(),
        "switches_per_request": cell.switches,
        "calls_per_request": cell.calls,
        "peak_kib": cell.peak,
    })
}
