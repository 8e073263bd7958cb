// SPDX-License-Identifier: BSD-3-Clause
//! What came out: a row for each workload, with a cell for each contender.

use crate::contender::Contender;
use crate::sample::Sample;
use crate::stats::{apart, median};
use crate::workload::Workload;

/// Everything of one run.
pub struct Results {
    /// Whether it was a quick run.
    pub quick: bool,
    /// How often each contender had its turn.
    pub rounds: usize,
    /// How long a turn was, seconds.
    pub seconds: f64,
    /// Who counted system calls.
    pub counter: Option<&'static str>,
    /// How many processors there are.
    pub processors: usize,
    /// Where and with what it was measured.
    pub machine: Vec<(&'static str, String)>,
    /// Who was measured.
    pub contenders: Vec<Contender>,
    /// What came out.
    pub rows: Vec<Row>,
}

/// All contenders at one workload.
pub struct Row {
    /// Which.
    pub workload: Workload,
    /// In the order of the contenders; `None` for those that cannot.
    pub cells: Vec<Option<Cell>>,
    /// Rounds that were repeated, since the machine was busy with something else.
    pub thrown: usize,
    /// Single turns that were repeated, since they took far too long.
    pub repeated: usize,
}

impl Row {
    /// The cell of one contender.
    pub fn cell(&self, contenders: &[Contender], wanted: &Contender) -> Option<&Cell> {
        let place = contenders
            .iter()
            .position(|contender| contender == wanted)?;
        self.cells.get(place)?.as_ref()
    }

    /// The two runs of the C plugin.
    pub fn pair<'a>(&'a self, contenders: &[Contender]) -> Option<Pair<'a>> {
        let first = self.cell(contenders, &Contender::C)?;
        let again = self.cell(contenders, &Contender::Again)?;
        Some(Pair { first, again })
    }

    /// The cells of our builds, with their names.
    pub fn ours<'a>(
        &'a self,
        contenders: &'a [Contender],
    ) -> impl Iterator<Item = (&'a str, Option<&'a Cell>)> {
        let both = contenders.iter().zip(&self.cells);
        both.filter_map(|(contender, cell)| match contender {
            Contender::Ours(name, _) => Some((name.as_str(), cell.as_ref())),
            _ => None,
        })
    }
}

/// A figure of which a cell has one for each round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// Requests per second: more is better.
    Rate,
    /// CPU time per request, microseconds: less is better.
    Cpu,
}

impl Figure {
    /// Round by round.
    pub fn rounds(self, cell: &Cell) -> Vec<f64> {
        match self {
            Self::Rate => cell.rates(),
            Self::Cpu => cell.cpus(),
        }
    }

    /// The median; nothing where there is no such figure.
    pub fn of(self, cell: &Cell) -> Option<f64> {
        let rounds = self.rounds(cell);
        (!rounds.is_empty()).then(|| median(&rounds))
    }
}

/// Two runs of the C plugin, side by side with all others: what it reaches, and how far apart it lies from
/// itself, which says nothing about anybody else.
pub struct Pair<'a> {
    first: &'a Cell,
    again: &'a Cell,
}

impl Pair<'_> {
    /// The median of all rounds of both; nothing where there is no such figure.
    pub fn of(&self, figure: Figure) -> Option<f64> {
        let all = [figure.rounds(self.first), figure.rounds(self.again)].concat();
        (!all.is_empty()).then(|| median(&all))
    }

    /// The mean of the two, round by round.
    pub fn rounds(&self, figure: Figure) -> Vec<f64> {
        let (first, again) = (figure.rounds(self.first), figure.rounds(self.again));
        let both = first.iter().zip(&again);
        both.map(|(a, b)| (a + b) / 2.0).collect()
    }

    /// How far they lie apart, as a share.
    pub fn spread(&self, figure: Figure) -> f64 {
        apart(&figure.rounds(self.first), &figure.rounds(self.again))
    }

    /// Mean of the most memory that each ever had, and how far they lie apart, KiB.
    pub fn peak(&self) -> Option<(f64, f64)> {
        let (first, again) = (self.first.peak? as f64, self.again.peak? as f64);
        Some(((first + again) / 2.0, (first - again).abs()))
    }
}

/// One contender at one workload.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    /// One for each round.
    pub samples: Vec<Sample>,
    /// Context switches per request.
    pub switches: Option<f64>,
    /// System calls per request.
    pub calls: Option<f64>,
    /// The most memory it ever had, KiB.
    pub peak: Option<u64>,
}

impl Cell {
    /// Requests per second, round by round.
    pub fn rates(&self) -> Vec<f64> {
        self.samples.iter().map(|sample| sample.rate).collect()
    }

    /// Requests per second, the median.
    pub fn rate(&self) -> f64 {
        median(&self.rates())
    }

    /// CPU time per request, microseconds, round by round.
    pub fn cpus(&self) -> Vec<f64> {
        self.samples
            .iter()
            .filter_map(|sample| sample.cpu)
            .collect()
    }

    /// CPU time per request, microseconds, the median.
    pub fn cpu(&self) -> Option<f64> {
        Figure::Cpu.of(self)
    }

    /// Median latency, microseconds.
    pub fn p50(&self) -> Option<f64> {
        self.latency(|sample| sample.p50)
    }

    /// The latency that one request in a hundred exceeds, microseconds.
    pub fn p99(&self) -> Option<f64> {
        self.latency(|sample| sample.p99)
    }

    fn latency(&self, of: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        let all: Vec<f64> = self.samples.iter().filter_map(of).collect();
        (!all.is_empty()).then(|| median(&all))
    }
}
