//! What came out: a row for each workload, with a cell for each contender.

use crate::contender::Contender;
use crate::sample::Sample;
use crate::stats::median;
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

    /// Requests per second.
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

    /// CPU time per request, microseconds.
    pub fn cpu(&self) -> Option<f64> {
        let all = self.cpus();
        (!all.is_empty()).then(|| median(&all))
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
