//! The results as Markdown.

use std::fmt::Write;

use crate::contender::Contender;
use crate::results::{Cell, Row};
use crate::stats::{paired, spread};
use crate::workload::{Group, Unit};

/// All tables.
pub fn report(contenders: &[Contender], rows: &[Row]) -> String {
    let mut text = String::new();
    for group in Group::ALL {
        let rows: Vec<&Row> = rows
            .iter()
            .filter(|row| row.workload.group == group)
            .collect();
        if !rows.is_empty() {
            let _ = writeln!(text, "### {}\n", group.title());
            rates(&mut text, contenders, &rows);
            costs(&mut text, contenders, &rows);
        }
    }
    text
}

fn rates(text: &mut String, contenders: &[Contender], rows: &[&Row]) {
    let mut head = vec!["Workload".to_owned(), "unit".to_owned()];
    for contender in contenders {
        head.push(contender.name().to_owned());
    }
    for contender in contenders {
        if let Contender::Ours(name, _) = contender {
            head.push(format!("{name} / C"));
            head.push("by rounds".to_owned());
            head.push("spread".to_owned());
        }
    }
    let mut table = Table::new(head);
    let c = position(contenders, &Contender::C);
    for row in rows {
        let unit = match row.workload.unit() {
            Unit::Iops => "IOPS",
            Unit::Mib => "MiB/s",
        };
        let mut line = vec![row.workload.title(), unit.to_owned()];
        for cell in &row.cells {
            line.push(option(cell.as_ref(), |cell| {
                format!("{:.0}", row.workload.figure(cell.rate()))
            }));
        }
        for (contender, cell) in contenders.iter().zip(&row.cells) {
            if let Contender::Ours(..) = contender {
                let pair = cell.as_ref().zip(c.and_then(|c| row.cells[c].as_ref()));
                line.push(option(pair, |(ours, c)| ratio(ours.rate() / c.rate())));
                line.push(option(pair, |(ours, c)| {
                    ratio(paired(&ours.rates(), &c.rates()))
                }));
                line.push(option(cell.as_ref(), |cell| {
                    format!("±{:.0} %", spread(&cell.rates()) * 100.0)
                }));
            }
        }
        table.line(line);
    }
    let _ = writeln!(text, "{}", table.markdown());
}

fn costs(text: &mut String, contenders: &[Contender], rows: &[&Row]) {
    let mut head = vec!["Workload".to_owned()];
    let forwarders: Vec<usize> = (0..contenders.len())
        .filter(|&i| contenders[i] != Contender::Direct)
        .collect();
    for &i in &forwarders {
        let name = contenders[i].name();
        head.push(format!("{name}: CPU us"));
        head.push("switches".to_owned());
        head.push("MiB".to_owned());
    }
    let mut table = Table::new(head);
    for row in rows {
        let mut line = vec![row.workload.title()];
        for &i in &forwarders {
            let cell = row.cells[i].as_ref();
            line.push(option(cell.and_then(Cell::cpu), |cpu| format!("{cpu:.1}")));
            line.push(option(cell.and_then(|cell| cell.switches), |n| {
                format!("{n:.2}")
            }));
            line.push(option(cell.and_then(|cell| cell.peak), |kib| {
                format!("{:.1}", kib as f64 / 1024.0)
            }));
        }
        table.line(line);
    }
    let _ = writeln!(text, "{}", table.markdown());
}

fn position(contenders: &[Contender], wanted: &Contender) -> Option<usize> {
    contenders.iter().position(|contender| contender == wanted)
}

fn ratio(ratio: f64) -> String {
    format!("{ratio:.2}")
}

fn option<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), show)
}

/// A table, whose columns line up also for those who read the text.
struct Table {
    lines: Vec<Vec<String>>,
}

impl Table {
    fn new(head: Vec<String>) -> Self {
        Self { lines: vec![head] }
    }

    fn line(&mut self, line: Vec<String>) {
        self.lines.push(line);
    }

    fn markdown(&self) -> String {
        let columns = self.lines[0].len();
        let width = |column: usize| {
            let cells = self.lines.iter().map(|line| line[column].chars().count());
            cells.max().unwrap_or(0).max(2)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for (number, line) in self.lines.iter().enumerate() {
            for (column, (cell, &width)) in line.iter().zip(&widths).enumerate() {
                let _ = match column {
                    0 => write!(text, "| {cell:width$} "),
                    _ => write!(text, "| {cell:>width$} "),
                };
            }
            text.push_str("|\n");
            if number == 0 {
                for (column, &width) in widths.iter().enumerate() {
                    let dashes = "-".repeat(width);
                    let _ = match column {
                        0 => write!(text, "|-{dashes}-"),
                        _ => write!(text, "|-{dashes}:"),
                    };
                }
                text.push_str("|\n");
            }
        }
        text
    }
}
