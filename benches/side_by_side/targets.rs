//! What our plugin has to reach, as ratios to the C plugin, and whether it did.

use crate::contender::Contender;
use crate::results::{Cell, Row};

/// A ratio that a figure has to reach.
struct Target {
    /// By its name.
    workload: &'static str,
    figure: Figure,
    /// What it must be.
    bound: f64,
    /// What it should be.
    aim: f64,
}

#[derive(Clone, Copy, PartialEq)]
enum Figure {
    /// Requests per second: more is better.
    Rate,
    /// CPU time per request: less is better.
    Cpu,
}

/// How much more memory than the C plugin ours may use, MiB, and how much it should.
const MEMORY: (f64, f64) = (4.0, 0.0);

const TARGETS: [Target; 38] = [
    rate("unix/4k-randread-1", 1.15, 1.6),
    rate("unix/4k-randwrite-1", 1.15, 1.6),
    rate("unix/4k-randread-16", 1.3, 2.2),
    rate("unix/4k-randwrite-16", 1.3, 2.2),
    rate("unix/4k-randread-16-t8", 1.4, 2.2),
    rate("unix/4k-randwrite-16-t8", 1.4, 2.2),
    rate("unix/4k-randread-64", 1.2, 2.0),
    rate("unix/4k-randwrite-64", 1.2, 2.0),
    rate("unix/4k-randread-16x4", 1.5, 2.2),
    rate("unix/256k-read-8", 1.0, 1.2),
    rate("unix/256k-write-8", 1.0, 1.2),
    rate("unix/1M-read-8", 1.0, 1.2),
    rate("unix/1M-write-8", 1.0, 1.2),
    rate("pieces/256k-read-8-by-4096", 1.1, 1.5),
    rate("pieces/256k-read-8-by-8192", 1.1, 1.5),
    rate("pieces/256k-read-8-by-16000", 1.1, 1.5),
    rate("x509/4k-randread-16", 1.1, 1.8),
    rate("x509/4k-randwrite-16", 1.1, 1.8),
    rate("x509/256k-read-8", 1.0, 1.2),
    rate("x509/256k-write-8", 1.0, 1.2),
    rate("psk/4k-randread-16", 1.5, 2.5),
    rate("psk/4k-randwrite-16", 1.5, 2.5),
    rate("psk/256k-read-8", 2.0, 3.0),
    rate("psk/256k-write-8", 2.0, 3.0),
    rate("copy/nbdcopy-from", 1.0, 1.25),
    rate("copy/nbdcopy-to", 1.0, 1.25),
    rate("copy/nbdcopy-1-from", 1.0, 1.25),
    rate("copy/nbdcopy-1-to", 1.0, 1.25),
    rate("copy/qemu-img-from", 1.0, 1.25),
    rate("copy/qemu-img-to", 1.0, 1.25),
    rate("dynamic/open", 1.0, 2.0),
    cpu("unix/4k-randread-1", 0.7, 0.45),
    cpu("unix/4k-randwrite-1", 0.7, 0.45),
    cpu("unix/4k-randread-16", 0.75, 0.5),
    cpu("unix/4k-randwrite-16", 0.75, 0.5),
    cpu("unix/256k-read-8", 0.9, 0.8),
    cpu("unix/256k-write-8", 0.9, 0.8),
    cpu("pieces/8k-beside-256k", 0.8, 0.6),
];

const fn rate(workload: &'static str, bound: f64, aim: f64) -> Target {
    Target {
        workload,
        figure: Figure::Rate,
        bound,
        aim,
    }
}

const fn cpu(workload: &'static str, bound: f64, aim: f64) -> Target {
    Target {
        workload,
        figure: Figure::Cpu,
        bound,
        aim,
    }
}

/// A target beside what was measured.
#[derive(Debug, PartialEq)]
pub struct Judgement {
    /// What it is about.
    pub what: String,
    /// What it must be, with `≥` or `≤`.
    pub bound: String,
    /// What it should be.
    pub aim: String,
    /// For each build of ours: the figure, and whether it is enough.
    pub found: Vec<(f64, bool)>,
}

/// All targets that the rows have something to say about.
pub fn judge(contenders: &[Contender], rows: &[Row]) -> Vec<Judgement> {
    let mut all: Vec<Judgement> = TARGETS
        .iter()
        .filter_map(|target| {
            let row = rows
                .iter()
                .find(|row| row.workload.name() == target.workload)?;
            target.judge(contenders, row)
        })
        .collect();
    all.extend(judge_memory(contenders, rows));
    all
}

impl Target {
    fn judge(&self, contenders: &[Contender], row: &Row) -> Option<Judgement> {
        let figure = |cell: &Cell| match self.figure {
            Figure::Rate => Some(cell.rate()),
            Figure::Cpu => cell.cpu(),
        };
        let c = figure(row.cell(contenders, &Contender::C)?)?;
        let found = ours(contenders, row).map(|cell| {
            let ratio = figure(cell)? / c;
            let enough = match self.figure {
                Figure::Rate => ratio >= self.bound,
                Figure::Cpu => ratio <= self.bound,
            };
            Some((ratio, enough))
        });
        let (sign, what) = match self.figure {
            Figure::Rate => ('≥', ""),
            Figure::Cpu => ('≤', ", CPU per request"),
        };
        Some(Judgement {
            what: format!("{}{what}", row.workload.full_title()),
            bound: format!("{sign} {:.2}", self.bound),
            aim: format!("{:.2}", self.aim),
            found: found.collect::<Option<_>>()?,
        })
    }
}

/// The workload at which ours uses most, compared with the C plugin at the same.
fn judge_memory(contenders: &[Contender], rows: &[Row]) -> Option<Judgement> {
    let mut worst: Vec<f64> = Vec::new();
    for row in rows {
        let Some(c) = row
            .cell(contenders, &Contender::C)
            .and_then(|cell| cell.peak)
        else {
            continue;
        };
        let more = ours(contenders, row).map(|cell| {
            let peak = cell.peak.unwrap_or_default();
            (peak as f64 - c as f64) / 1024.0
        });
        worst = match worst.is_empty() {
            true => more.collect(),
            false => worst.iter().zip(more).map(|(a, b)| a.max(b)).collect(),
        };
    }
    let (bound, aim) = MEMORY;
    let found: Vec<_> = worst.iter().map(|&more| (more, more <= bound)).collect();
    (!found.is_empty()).then(|| Judgement {
        what: "peak memory, MiB more than the C plugin, at worst".to_owned(),
        bound: format!("≤ {bound:.0}"),
        aim: format!("{aim:.0}"),
        found,
    })
}

/// The cells of our builds.
fn ours<'a>(contenders: &'a [Contender], row: &'a Row) -> impl Iterator<Item = &'a Cell> {
    let both = contenders.iter().zip(&row.cells);
    both.filter_map(|(contender, cell)| match contender {
        Contender::Ours(..) => cell.as_ref(),
        _ => None,
    })
}
