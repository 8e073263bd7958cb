// SPDX-License-Identifier: BSD-3-Clause
//! What our plugin has to reach, as ratios to the C plugin, and whether it did.

use crate::contender::Contender;
use crate::results::{Figure, Row};
use crate::verdict::{Compared, Found, Verdict};
use crate::workload::Workload;

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

/// How much more memory than the C plugin ours may use, MiB, and how much it should.
const MEMORY: (f64, f64) = (4.0, 0.0);

/// What every workload must reach: where the C plugin is ahead, that is a fault.
const EVERYWHERE: f64 = 1.0;

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
    /// Whether figures and spreads are ratios; else they are differences, MiB.
    pub is_ratio: bool,
    /// For each build of ours.
    pub found: Vec<Found>,
}

/// A workload at which the C plugin is ahead of one of our builds.
#[derive(Debug, PartialEq)]
pub struct Fault {
    /// The workload.
    pub what: String,
    /// Our build.
    pub ours: String,
    /// How far.
    pub found: Found,
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

/// What the rate at a workload must be, if there is a bar for it: times that of the C plugin.
pub fn rate_bound(workload: &Workload) -> Option<f64> {
    let name = workload.name();
    let mut rates = TARGETS.iter().filter(|each| each.figure == Figure::Rate);
    Some(rates.find(|each| each.workload == name)?.bound)
}

/// Where the C plugin is ahead, beyond the spread.
pub fn faults(contenders: &[Contender], rows: &[Row]) -> Vec<Fault> {
    let of_row = |row: &Row| -> Vec<Fault> {
        let Some(c) = row.pair(contenders) else {
            return Vec::new();
        };
        let all = row.ours(contenders).filter_map(|(name, cell)| {
            let found = Found::rate(EVERYWHERE, cell?, &c)?;
            (found.verdict == Verdict::Short).then(|| Fault {
                what: row.workload.full_title(),
                ours: name.to_owned(),
                found,
            })
        });
        all.collect()
    };
    rows.iter().flat_map(of_row).collect()
}

impl Target {
    fn judge(&self, contenders: &[Contender], row: &Row) -> Option<Judgement> {
        let c = row.pair(contenders)?;
        let found = row.ours(contenders).map(|(_, cell)| match self.figure {
            Figure::Rate => Found::rate(self.bound, cell?, &c),
            Figure::Cpu => Found::cpu(self.bound, cell?, &c),
        });
        let (sign, what) = match self.figure {
            Figure::Rate => ('≥', ""),
            Figure::Cpu => ('≤', ", CPU per request"),
        };
        Some(Judgement {
            what: format!("{}{what}", row.workload.full_title()),
            bound: format!("{sign} {:.2}", self.bound),
            aim: format!("{:.2}", self.aim),
            is_ratio: true,
            found: found.collect::<Option<_>>()?,
        })
    }
}

/// The workload at which ours uses most, compared with the C plugin at the same.
fn judge_memory(contenders: &[Contender], rows: &[Row]) -> Option<Judgement> {
    let mib = |kib: f64| kib / 1024.0;
    let mut worst: Vec<Compared> = Vec::new();
    for row in rows {
        // What is kept for a reconnection is what was asked for.
        if row.workload.reconnect {
            continue;
        }
        let Some((c, apart)) = row.pair(contenders).and_then(|pair| pair.peak()) else {
            continue;
        };
        let more = row.ours(contenders).map(|(_, cell)| Compared {
            value: mib(cell.and_then(|cell| cell.peak).unwrap_or_default() as f64 - c),
            spread: mib(apart),
        });
        // Of what is certain: a row in which the C plugin's own two are far apart hides no other.
        let certain = |more: &Compared| more.value - more.spread;
        let larger = |(a, b): (&Compared, Compared)| match certain(&b) > certain(a) {
            true => b,
            false => *a,
        };
        worst = match worst.is_empty() {
            true => more.collect(),
            false => worst.iter().zip(more).map(larger).collect(),
        };
    }
    let (bound, aim) = MEMORY;
    let judge = |more: &Compared| Found {
        compared: *more,
        cpu: None,
        verdict: match more.value - bound {
            over if over > more.spread => Verdict::Short,
            over if over > -more.spread => Verdict::Within,
            _ => Verdict::Ok,
        },
    };
    let found: Vec<_> = worst.iter().map(judge).collect();
    (!found.is_empty()).then(|| Judgement {
        what: "peak memory, MiB more than the C plugin, at worst".to_owned(),
        bound: format!("≤ {bound:.0}"),
        aim: format!("{aim:.0}"),
        is_ratio: false,
        found,
    })
}
