//! Running a workload: every contender is started at once, then they take turns, A B C A B C.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use crate::contender::{Contender, Running};
use crate::fio;
use crate::progress::Progress;
use crate::results::{Cell, Row};
use crate::sample::Sample;
use crate::server::Reach;
use crate::settings::Settings;
use crate::stats::strays;
use crate::usage;
use crate::workload::{Load, Workload};

/// How long a forwarder may take to clear up after its client, so that it counts.
const SETTLE: Duration = Duration::from_millis(20);

/// All contenders at one workload.
pub fn row(
    workload: &Workload,
    contenders: &[Contender],
    place: &Path,
    reach: &Reach,
    settings: &Settings,
    progress: &mut Progress,
) -> Result<Row, String> {
    let mut lanes: Vec<Lane> = contenders
        .iter()
        .map(|contender| Lane::start(contender, place, reach))
        .collect();
    let mut thrown = 0;
    loop {
        let mut done = 0;
        while let Some(wanted) = settings.rounds.checked_sub(rounds(&lanes)) {
            if wanted == 0 {
                break;
            }
            done += 1;
            for lane in &mut lanes {
                progress.step(workload, lane.contender.name());
                lane.turn(workload, place, settings.turn)?;
            }
        }
        let bad = strayed(&lanes);
        // Not for ever: a machine that is never quiet gets its figures too, with their spread.
        if done == 0 || bad.is_empty() || thrown + bad.len() > settings.rounds {
            break;
        }
        thrown += bad.len();
        progress.more(bad.len() * lanes.iter().filter(|lane| lane.running.is_some()).count());
        for lane in &mut lanes {
            lane.forget(&bad);
        }
    }
    let cells = lanes
        .into_iter()
        .map(Lane::end)
        .collect::<Result<_, String>>()?;
    Ok(Row {
        workload: *workload,
        cells,
        thrown,
    })
}

/// A contender on its way through a workload.
struct Lane<'a> {
    contender: &'a Contender,
    running: Option<Running>,
    cell: Cell,
    /// Requests in all turns, also in those that were thrown away.
    requests: u64,
}

impl<'a> Lane<'a> {
    fn start(contender: &'a Contender, place: &Path, reach: &Reach) -> Self {
        Self {
            contender,
            running: contender.start(place, reach),
            cell: Cell::default(),
            requests: 0,
        }
    }

    fn turn(&mut self, workload: &Workload, place: &Path, time: Duration) -> Result<(), String> {
        let Some(running) = &self.running else {
            return Ok(());
        };
        let pid = running.pid();
        let before = pid.map(usage::cpu).transpose()?;
        let mut sample = load(&workload.load, place, &running.uri, time)?;
        sleep(SETTLE);
        let after = pid.map(usage::cpu).transpose()?;
        sample.cpu = before
            .zip(after)
            .map(|(before, after)| (after - before) * 1e6 / sample.requests as f64);
        self.requests += sample.requests;
        self.cell.samples.push(sample);
        Ok(())
    }

    fn forget(&mut self, rounds: &[usize]) {
        for &round in rounds.iter().rev() {
            if round < self.cell.samples.len() {
                self.cell.samples.remove(round);
            }
        }
    }

    /// Ends the contender and closes its books.
    fn end(mut self) -> Result<Option<Cell>, String> {
        let Some(running) = self.running.take() else {
            return Ok(None);
        };
        if let Some(pid) = running.pid() {
            self.cell.peak = usage::peak(pid);
            let switches =
                || usage::switches_of_ended_children().map_err(|error| error.to_string());
            let before = switches()?;
            drop(running);
            let count = switches()? - before;
            self.cell.switches = Some(count as f64 / self.requests as f64);
        }
        Ok(Some(self.cell))
    }
}

fn load(load: &Load, place: &Path, uri: &str, time: Duration) -> Result<Sample, String> {
    match load {
        Load::Fio(requests) => fio::load(place, uri, requests, time),
    }
}

/// How many rounds there are so far.
fn rounds(lanes: &[Lane]) -> usize {
    let counts = lanes.iter().map(|lane| lane.cell.samples.len());
    counts.max().unwrap_or(0)
}

/// The rounds in which the direct run strayed: then the machine did something else.
fn strayed(lanes: &[Lane]) -> Vec<usize> {
    let direct = lanes
        .iter()
        .find(|lane| *lane.contender == Contender::Direct);
    direct.map_or_else(Vec::new, |lane| strays(&lane.cell.rates()))
}
