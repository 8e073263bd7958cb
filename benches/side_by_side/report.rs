// SPDX-License-Identifier: BSD-3-Clause
//! The results as Markdown.

use crate::contender::Contender;
use crate::reach::{Reach, reaches};
use crate::results::{Cell, Figure, Results, Row};
use crate::stats::{paired, spread};
use crate::table::Table;
use crate::targets::{Fault, Judgement, faults, judge};
use crate::verdict::{Compared, Found};
use crate::workload::Group;

/// Below the table of what targets leave.
const BUDGET: &str = "At the target's rate a request has so much time of all processors. Client, server and pauses \
     take of it what they took while the C plugin forwarded; nbdkit and its threads what the \
     handover takes. What is left is for everything else that a plugin does: asking the server and \
     receiving its reply. It is a hint and no proof: a plugin whose requests sleep less than those of \
     the handover needs less.";

/// The whole report.
pub fn report(results: &Results) -> String {
    let mut parts = vec![head(results)];
    let Results {
        contenders, rows, ..
    } = results;
    let judgements = judge(contenders, rows);
    if !judgements.is_empty() {
        parts.push("## Targets".to_owned());
        parts.push(targets(contenders, &judgements));
        parts.push("## Where the C plugin is ahead".to_owned());
        parts.push(ahead(&faults(contenders, rows)));
    }
    let reaches = reaches(contenders, rows, results.processors);
    if !reaches.is_empty() {
        parts.push("## What a target leaves to a forwarder".to_owned());
        parts.push(budget(contenders, &reaches));
        parts.push(BUDGET.to_owned());
    }
    parts.push("## Rates".to_owned());
    for group in Group::ALL {
        let of_group = |row: &&Row| row.workload.group == group;
        let rows: Vec<&Row> = rows.iter().filter(of_group).collect();
        if !rows.is_empty() {
            parts.push(format!("### {}", group.title()));
            parts.push(rates(contenders, &rows));
        }
    }
    parts.push("## Latency, microseconds".to_owned());
    parts.push(latencies(contenders, rows));
    parts.push("## Cost of a request to the forwarding process".to_owned());
    parts.push(costs(contenders, rows));
    parts.push(method(results));
    let parts: Vec<&str> = parts.iter().map(|part| part.trim_end()).collect();
    format!("{}\n", parts.join("\n\n"))
}

fn method(results: &Results) -> String {
    let Results {
        rounds, seconds, ..
    } = results;
    let thrown: usize = results.rows.iter().map(|row| row.thrown).sum();
    let repeated: usize = results.rows.iter().map(|row| row.repeated).sum();
    let calls = match results.counter {
        Some(counter) => format!("in a turn of their own, by {counter}"),
        None => "only in a full run".to_owned(),
    };
    format!(
        "## How to read this\n\n\
         All contenders of a workload run at the same time and have their turns one after the \
         other, {rounds} rounds of {seconds} s; the relay, qemu-nbd and the handover sit out \
         two of three. Figures are medians of the rounds; \"by rounds\" is the median of each round's ratio; \
         the spread of ours is half of what is between the smallest and the largest, in percent \
         of the median.\n\n\
         The C plugin runs twice. \"C\" in ratios is the median of all rounds of both, and their \
         spread is how far they lie apart: their medians, or the two in a typical round, \
         whichever is more. A target is met (ok) or missed (short) only beyond that; else this \
         run cannot tell (within the spread). Where a target is less than 5 % from the C \
         plugin's rate, and ours is within 5 % or the spread of it, CPU time per request \
         decides, by its own spread. The C plugin is ahead where a target of 1.00 would be \
         missed.\n\n\
         Rounds in which the direct run was off its median by more than half were repeated \
         ({thrown}), and turns that took half longer than they should ({repeated}).\n\n\
         Direct is what a client reaches without a forwarder; where a reply comes in chunks, that \
         client has them to put together itself. The relay is socat, which copies bytes and knows \
         nothing of the protocol. The handover is nbdkit with a plugin that forwards nothing: its \
         requests sleep until three more have come, and the last wakes the others with one call. \
         That is what nbdkit and its threads cost any forwarder; what the relay costs comes on \
         top. CPU time is that of the forwarding process, by /proc; context switches are all of \
         its life by all its requests; memory is its peak. System calls are counted {calls}.\n"
    )
}

fn head(results: &Results) -> String {
    let kind = if results.quick {
        "Quick benchmark"
    } else {
        "Benchmark"
    };
    let mut text = format!("# {kind}\n\n");
    for (name, value) in &results.machine {
        text.push_str(&format!("- {name}: {value}\n"));
    }
    for contender in &results.contenders {
        if let Contender::Ours(name, path) = contender {
            text.push_str(&format!("- {name}: {}\n", path.display()));
        }
    }
    text
}

fn targets(contenders: &[Contender], judgements: &[Judgement]) -> String {
    let mut head = words(&["To the C plugin", "target", "aim"]);
    head.extend(ours(contenders).map(|(_, name)| name.to_owned()));
    let mut table = Table::new(head);
    for judgement in judgements {
        let mut line = vec![
            judgement.what.clone(),
            judgement.bound.clone(),
            judgement.aim.clone(),
        ];
        line.extend(
            judgement
                .found
                .iter()
                .map(|found| match judgement.is_ratio {
                    true => decision(found),
                    false => {
                        let Compared { value, spread } = found.compared;
                        format!("{value:.2} ±{spread:.2}: {}", found.verdict.text())
                    }
                }),
        );
        table.line(line);
    }
    table.markdown()
}

/// `1.02 ±3 %, CPU 0.90 ±1 %: ok`.
fn decision(found: &Found) -> String {
    let compared = |Compared { value, spread }| format!("{value:.2} {}", percent(spread));
    let rate = compared(found.compared);
    let cpu = found.cpu.map(|cpu| format!(", CPU {}", compared(cpu)));
    format!(
        "{rate}{}: {}",
        cpu.unwrap_or_default(),
        found.verdict.text()
    )
}

/// Each is a fault.
fn ahead(faults: &[Fault]) -> String {
    if faults.is_empty() {
        return "Nowhere, beyond the spread.".to_owned();
    }
    let lines = faults.iter().map(|fault| {
        let Fault { what, ours, found } = fault;
        format!("- {what}: {ours} {}\n", decision(found))
    });
    lines.collect()
}

/// CPU time at each bar, and whose it is.
fn budget(contenders: &[Contender], reaches: &[Reach]) -> String {
    let mut head = words(&[
        "CPU us of a request at the target",
        "target",
        "all processors",
        "client, server, pauses",
        "nbdkit and its threads",
        "left",
        "a relay takes",
    ]);
    head.extend(ours(contenders).map(|(_, name)| format!("all of {name}")));
    let mut table = Table::new(head);
    for reach in reaches {
        let mut line = vec![reach.what.clone(), format!("≥ {:.2}", reach.bound)];
        line.extend([reach.all, reach.others, reach.handover, reach.left()].map(one));
        line.push(show(reach.relay, one));
        line.extend(reach.ours.iter().map(|cpu| show(*cpu, one)));
        table.line(line);
    }
    table.markdown()
}

fn rates(contenders: &[Contender], rows: &[&Row]) -> String {
    let mut head = words(&["Workload", "unit"]);
    head.extend(contenders.iter().map(|c| c.name().to_owned()));
    for (_, name) in ours(contenders) {
        head.push(format!("{name} / C"));
        head.push("by rounds".to_owned());
        head.push(format!("{name} / relay"));
    }
    head.extend(words(&["spread of C's two", "spread ours"]));
    let mut table = Table::new(head);
    for row in rows {
        let mut line = vec![row.workload.title(), row.workload.unit().to_owned()];
        for cell in &row.cells {
            line.push(show(cell.as_ref(), |cell| {
                figure(row.workload.figure(cell.rate()))
            }));
        }
        let c = row.pair(contenders);
        let relay = row.cell(contenders, &Contender::Relay);
        for (_, cell) in row.ours(contenders) {
            let both = cell.zip(c.as_ref());
            let ratio = both.and_then(|(ours, c)| Compared::of(Figure::Rate, ours, c));
            line.push(show(ratio, |ratio| two(ratio.value)));
            line.push(show(both, |(ours, c)| {
                two(paired(&ours.rates(), &c.rounds(Figure::Rate)))
            }));
            line.push(show(cell.zip(relay), |(a, b)| two(a.rate() / b.rate())));
        }
        line.push(show(c, |c| percent(c.spread(Figure::Rate))));
        let first = row.ours(contenders).next().and_then(|(_, cell)| cell);
        line.push(show(first, |cell| percent(spread(&cell.rates()))));
        table.line(line);
    }
    table.markdown()
}

fn latencies(contenders: &[Contender], rows: &[Row]) -> String {
    let compared = compared(contenders);
    let mut head = words(&["Workload"]);
    for what in ["p50", "p99"] {
        head.extend(compared.iter().map(|c| format!("{what} {}", c.name())));
    }
    let mut table = Table::new(head);
    for row in rows {
        let mut line = vec![row.workload.full_title()];
        for what in [Cell::p50, Cell::p99] {
            for contender in &compared {
                let cell = row.cell(contenders, contender);
                line.push(show(cell.and_then(what), figure));
            }
        }
        table.line(line);
    }
    table.markdown()
}

fn costs(contenders: &[Contender], rows: &[Row]) -> String {
    let compared = compared(contenders);
    let columns: [(&str, Cost); 4] = [
        ("CPU us", Cell::cpu),
        ("switches", |cell| cell.switches),
        ("calls", |cell| cell.calls),
        ("MiB", |cell| Some(cell.peak? as f64 / 1024.0)),
    ];
    let mut head = words(&["Workload", "CPU us relay", "CPU us handover"]);
    for (what, _) in columns {
        head.extend(compared.iter().map(|c| format!("{what} {}", c.name())));
        if what == "CPU us" {
            head.extend(ours(contenders).map(|(_, name)| format!("{name} / C")));
            head.push("spread of C's two".to_owned());
        }
    }
    let mut table = Table::new(head);
    for row in rows {
        let mut line = vec![row.workload.full_title()];
        for contender in [Contender::Relay, Contender::Handover] {
            let cell = row.cell(contenders, &contender);
            line.push(show(cell.and_then(Cell::cpu), one));
        }
        let c = row.pair(contenders);
        for (what, value) in columns {
            for contender in &compared {
                let cell = row.cell(contenders, contender);
                line.push(show(cell.and_then(value), one));
            }
            if what == "CPU us" {
                for (_, cell) in row.ours(contenders) {
                    let both = cell.zip(c.as_ref());
                    let ratio = both.and_then(|(ours, c)| Compared::of(Figure::Cpu, ours, c));
                    line.push(show(ratio, |ratio| two(ratio.value)));
                }
                line.push(show(c.as_ref(), |c| percent(c.spread(Figure::Cpu))));
            }
        }
        table.line(line);
    }
    table.markdown()
}

/// Finds a figure in a cell.
type Cost = fn(&Cell) -> Option<f64>;

/// The C plugin and ours.
fn compared(contenders: &[Contender]) -> Vec<&Contender> {
    let both = contenders.iter();
    both.filter(|contender| contender.is_compared()).collect()
}

/// Our builds and their names.
fn ours(contenders: &[Contender]) -> impl Iterator<Item = (&Contender, &str)> {
    contenders.iter().filter_map(|contender| match contender {
        Contender::Ours(name, _) => Some((contender, name.as_str())),
        _ => None,
    })
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn show<T>(value: Option<T>, text: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), text)
}

/// With as many digits as mean something.
fn figure(value: f64) -> String {
    match value {
        0.0..100.0 => one(value),
        _ => format!("{value:.0}"),
    }
}

fn percent(share: f64) -> String {
    format!("±{:.0} %", share * 100.0)
}

fn one(value: f64) -> String {
    format!("{value:.1}")
}

fn two(value: f64) -> String {
    format!("{value:.2}")
}
