// SPDX-License-Identifier: BSD-3-Clause
//! Running a workload: every contender is started at once, then they take turns, A B C A B C.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use crate::calls::Counter;
use crate::contender::{Contender, Running};
use crate::door::Door;
use crate::progress::Progress;
use crate::results::{Cell, Row};
use crate::sample::Sample;
use crate::server::Reach;
use crate::settings::Settings;
use crate::stats::strays;
use crate::workload::{Load, Workload};
use crate::{copy, fio, own, pieces, usage};

/// How long a forwarder may take to clear up after its client, so that it counts.
const SETTLE: Duration = Duration::from_millis(20);

/// Contenders that no bar is about have a turn in one round of so many, so that there can be more rounds.
const SELDOM: usize = 3;

/// How many turns a contender has in so many rounds.
pub fn turns(contender: &Contender, rounds: usize) -> usize {
    match contender.is_judged() {
        true => rounds,
        false => rounds.div_ceil(SELDOM),
    }
}

/// How long system calls are counted.
const COUNTED: Duration = Duration::from_millis(500);

/// Where and how all the workloads of one server run.
pub struct Track<'a> {
    /// How the server is reached.
    pub reach: &'a Reach,
    /// A directory for sockets and output.
    pub place: &'a Path,
    /// How to measure.
    pub settings: &'a Settings,
    /// Who counts system calls; nobody in a quick run.
    pub counter: Option<Counter>,
}

impl Track<'_> {
    /// All contenders at one workload.
    pub fn row(
        &self,
        workload: &Workload,
        contenders: &[Contender],
        progress: &mut Progress,
    ) -> Result<Row, String> {
        let mut lanes: Vec<Lane> = contenders
            .iter()
            .filter(|contender| contender.takes_part(workload))
            .map(|contender| Lane::start(contender, workload, self))
            .collect();
        // Not for ever: a machine that is never quiet gets its figures too, with their spread.
        let mut repeats = self.settings.rounds;
        loop {
            for round in 0.. {
                if lanes.iter().all(|lane| lane.turns_left(self) == 0) {
                    break;
                }
                let due = |lane: &&mut Lane| lane.is_due(round, self);
                for lane in lanes.iter_mut().filter(due) {
                    progress.step(workload, lane.contender.name());
                    lane.turn(workload, self).map_err(|error| {
                        let (workload, contender) = (workload.name(), lane.contender.name());
                        format!("{workload}, {contender}: {error}")
                    })?;
                }
            }
            let bad = strayed(&lanes);
            if bad.is_empty() || bad.len() > repeats {
                break;
            }
            repeats -= bad.len();
            let judged = |lane: &&mut Lane| lane.contender.is_judged();
            for lane in lanes.iter_mut().filter(judged) {
                progress.more(bad.len());
                lane.forget(&bad);
            }
        }
        let repeated = lanes.iter().map(|lane| lane.repeated).sum();
        let mut lanes = lanes.into_iter();
        let cells = contenders.iter().map(|contender| {
            match contender.takes_part(workload) {
                true => lanes
                    .next()
                    .map(|lane| self.close(lane, workload, progress)),
                false => None,
            }
            .transpose()
        });
        let cells = cells.collect::<Result<_, String>>()?;
        Ok(Row {
            workload: *workload,
            cells,
            thrown: self.settings.rounds - repeats,
            repeated,
        })
    }

    fn close(
        &self,
        lane: Lane,
        workload: &Workload,
        progress: &mut Progress,
    ) -> Result<Cell, String> {
        let contender = lane.contender;
        let mut cell = lane.end()?;
        if let Some(counter) = self.counter.filter(|_| contender.is_compared()) {
            progress.step(workload, contender.name());
            cell.calls = self.calls(counter, workload, contender)?;
        }
        Ok(cell)
    }

    /// System calls per request, by a fresh process, as the counter leaves traces in the books.
    fn calls(
        &self,
        counter: Counter,
        workload: &Workload,
        contender: &Contender,
    ) -> Result<Option<f64>, String> {
        let running = contender.start(self.place, self.reach, workload);
        let Some(pid) = running.pid() else {
            return Ok(None);
        };
        let (calls, sample) = counter.count(pid, self.place, || {
            self.load(workload, &running.door, COUNTED)
        })?;
        Ok(Some(calls as f64 / sample.requests as f64))
    }

    fn load(&self, workload: &Workload, door: &Door, time: Duration) -> Result<Sample, String> {
        if let Some(requests) = workload.requests() {
            let part = match workload.load {
                Load::Chunks(size) => pieces::part(size),
                _ => (0, workload.group.disk()),
            };
            return fio::load(self.place, &door.uri(), &requests, part, time);
        }
        match (workload.load, door) {
            (Load::Copy(copying), _) => copy::load(self.place, &door.uri(), copying, time),
            (Load::Map, Door::Unix(socket)) => own::map(socket, time),
            (Load::Open, Door::Unix(socket)) => own::connect(socket, workload.group.export(), time),
            (Load::Beside, Door::Unix(socket)) => own::beside(socket, time),
            _ => Err(format!("{}: nobody does that", workload.name())),
        }
    }
}

/// A contender on its way through a workload.
struct Lane<'a> {
    contender: &'a Contender,
    running: Running,
    cell: Cell,
    /// Requests in all turns, also in those that were thrown away.
    requests: u64,
    /// Turns that were repeated on their own.
    repeated: usize,
}

impl<'a> Lane<'a> {
    fn start(contender: &'a Contender, workload: &Workload, track: &Track) -> Self {
        Self {
            contender,
            running: contender.start(track.place, track.reach, workload),
            cell: Cell::default(),
            requests: 0,
            repeated: 0,
        }
    }

    fn turns_left(&self, track: &Track) -> usize {
        let wanted = turns(self.contender, track.settings.rounds);
        wanted.saturating_sub(self.cell.samples.len())
    }

    fn is_due(&self, round: usize, track: &Track) -> bool {
        let seldom = !self.contender.is_judged();
        self.turns_left(track) > 0 && !(seldom && round % SELDOM != 0)
    }

    /// A turn, and once more if it took far longer than it should: then all stood still for a while.
    fn turn(&mut self, workload: &Workload, track: &Track) -> Result<(), String> {
        let limit = track.settings.turn.as_secs_f64() * 1.5;
        let mut sample = self.sample(workload, track)?;
        if sample.seconds > limit {
            self.repeated += 1;
            sample = self.sample(workload, track)?;
        }
        self.cell.samples.push(sample);
        Ok(())
    }

    fn sample(&mut self, workload: &Workload, track: &Track) -> Result<Sample, String> {
        let pid = self.running.pid();
        let before = pid.map(usage::cpu).transpose()?;
        let mut sample = track.load(workload, &self.running.door, track.settings.turn)?;
        sleep(SETTLE);
        let after = pid.map(usage::cpu).transpose()?;
        sample.cpu = before
            .zip(after)
            .map(|(before, after)| (after - before) * 1e6 / sample.requests as f64);
        self.requests += sample.requests;
        Ok(sample)
    }

    /// Throws rounds away; the numbers are in order.
    fn forget(&mut self, rounds: &[usize]) {
        for &round in rounds.iter().rev() {
            self.cell.samples.remove(round);
        }
    }

    /// Ends the contender and closes its books.
    fn end(mut self) -> Result<Cell, String> {
        let Some(pid) = self.running.pid() else {
            return Ok(self.cell);
        };
        self.cell.peak = usage::peak(pid);
        let switches = || usage::switches_of_ended_children().map_err(|error| error.to_string());
        let before = switches()?;
        drop(self.running);
        let count = switches()? - before;
        self.cell.switches = Some(count as f64 / self.requests as f64);
        Ok(self.cell)
    }
}

/// The rounds in which the direct run strayed: then the machine did something else.
fn strayed(lanes: &[Lane]) -> Vec<usize> {
    let direct = lanes
        .iter()
        .find(|lane| *lane.contender == Contender::Direct);
    direct.map_or_else(Vec::new, |lane| strays(&lane.cell.rates()))
}
