// SPDX-License-Identifier: BSD-3-Clause
//! What a bar leaves to a forwarder: at so many requests per second each has so much CPU time, and the
//! client, the server, and nbdkit with its threads take their parts of it, about, whoever forwards.

use crate::contender::Contender;
use crate::results::{Figure, Row};
use crate::targets::rate_bound;

/// The CPU time of one request at the bar, microseconds, and who takes it.
#[derive(Debug, PartialEq)]
pub struct Reach {
    /// The workload.
    pub what: String,
    /// The bar: times the C plugin's rate.
    pub bound: f64,
    /// Of all processors.
    pub all: f64,
    /// Of those, what client, server and pauses take while the C plugin forwards.
    pub others: f64,
    /// What nbdkit and its threads take, which forward nothing.
    pub handover: f64,
    /// What it takes to receive and send each way, without a look at it.
    pub relay: Option<f64>,
    /// What ours take, all in all.
    pub ours: Vec<Option<f64>>,
}

impl Reach {
    /// What the bar leaves to a plugin for its connection to the server, if its requests sleep as often as
    /// those of the handover: below nothing where that alone takes more than there is.
    pub fn left(&self) -> f64 {
        self.all - self.others - self.handover
    }
}

/// Of all bars for rates, where it was measured what nbdkit and its threads take.
pub fn reaches(contenders: &[Contender], rows: &[Row], processors: usize) -> Vec<Reach> {
    let of_row = |row: &Row| {
        let c = row.pair(contenders)?;
        let (rate, cpu) = (c.of(Figure::Rate)?, c.of(Figure::Cpu)?);
        let cpu_of = |contender| Figure::Cpu.of(row.cell(contenders, &contender)?);
        let bound = rate_bound(&row.workload)?;
        // Microseconds of all processors until the C plugin has forwarded one more.
        let turn = processors as f64 * 1e6 / rate;
        Some(Reach {
            what: row.workload.full_title(),
            bound,
            all: turn / bound,
            others: turn - cpu,
            handover: cpu_of(Contender::Handover)?,
            relay: cpu_of(Contender::Relay),
            ours: row
                .ours(contenders)
                .map(|(_, cell)| Figure::Cpu.of(cell?))
                .collect(),
        })
    };
    rows.iter().filter_map(of_row).collect()
}
