// SPDX-License-Identifier: BSD-3-Clause
//! Carries commands out.

use std::sync::Arc;
use std::time::Duration;

use super::answer::{Answer, Settings, Status};
use super::words::Command;
use crate::client::helm::{Helm, Refusal};
use crate::client::resume::Terms;
use crate::client::times::{Time, Times};
use crate::client::upkeep::Task;
use crate::config::change::Change;
use crate::config::reconnect::Limit;
use crate::config::{self, Linger};
use crate::json::Value;
use crate::stats::Stats;

/// What the commands are about.
#[derive(Debug)]
pub struct Office {
    /// All ways to the server.
    pub helm: Arc<Helm>,
    /// How long to wait for it.
    pub times: Arc<Times>,
    /// How to come back to it, where that is done.
    pub terms: Option<Arc<Terms>>,
    /// How long ways are kept for the next client, where they are; none is for ever.
    pub linger: Option<Arc<Time>>,
    /// What is counted.
    pub stats: Option<Arc<Stats>>,
    /// Tells of each request, or not any more.
    pub tell_all: fn(bool),
}

impl Office {
    /// Whether a command waits for nobody.
    pub(super) fn is_quick(command: &Command) -> bool {
        !matches!(command, Command::Drain(_) | Command::Reconnect(_))
    }

    /// Runs a task that may take long on a thread of its own. False if there can be none.
    pub(super) fn run(&self, task: Task) -> bool {
        self.helm.run(task)
    }

    /// Whether nbdkit ends.
    pub(super) fn is_over(&self) -> bool {
        self.helm.is_over()
    }

    /// nbdkit ends.
    pub(super) fn end(&self) {
        self.helm.end();
    }

    /// Does what a command asks for. `wanted` tells whether anybody waits for the answer.
    pub(super) fn carry_out(&self, command: Command, wanted: &dyn Fn() -> bool) -> Answer {
        match command {
            Command::Help => Answer::Help,
            Command::Version => Answer::done(
                concat!("nbdkit-nbd-plugin ", env!("CARGO_PKG_VERSION")),
                vec![("version", Value::text(env!("CARGO_PKG_VERSION")))],
            ),
            Command::Status => Answer::Status(Box::new(self.status())),
            Command::Drain(within) => refused("drain", self.helm.drain(within, wanted), |()| {
                Answer::done("drained: requests wait until resume", Vec::new())
            }),
            Command::Resume => {
                let held = self.helm.resume();
                let text = match held {
                    true => "requests go on",
                    false => "no request was held",
                };
                Answer::done(text, vec![("held", Value::Bool(held))])
            }
            Command::Reconnect(within) => {
                refused("reconnect", self.helm.reconnect(within, wanted), |ways| {
                    let text = match ways {
                        0 => "nobody is connected".to_owned(),
                        1 => "1 connected anew".to_owned(),
                        more => format!("{more} connected anew"),
                    };
                    Answer::done(text, vec![("ways", Value::Number(ways as u64))])
                })
            }
            Command::Set(change) => match self.set(change) {
                Ok(()) => Answer::done("set", Vec::new()),
                Err(error) => Answer::Failed(format!("set: {error}")),
            },
            Command::Log(on) => {
                (self.tell_all)(on);
                let text = match on {
                    true => "each request is told of",
                    false => "requests are not told of",
                };
                Answer::done(text, Vec::new())
            }
        }
    }

    fn status(&self) -> Status {
        Status {
            report: self.helm.report(),
            counted: self.stats.as_ref().map(|stats| stats.snapshot()),
            settings: Settings {
                connect: self.times.connect.get(),
                handshake: self.times.handshake.get(),
                request: self.times.request.get(),
                close: self.times.close.get(),
                reconnect: self.terms.as_ref().map(|terms| terms.limit.get()),
                reconnect_delay: (self.terms.as_ref())
                    .and_then(|terms| terms.first.get().zip(terms.max.get())),
                linger: self.linger.as_ref().map(|linger| match linger.get() {
                    Some(NOT_KEPT) => Some(Duration::ZERO),
                    time => time,
                }),
                slow_log: self.stats.as_ref().map(|stats| stats.slow()),
            },
        }
    }

    fn set(&self, change: Change) -> Result<(), config::Error> {
        match change {
            Change::Connect(time) => self.times.connect.set(time),
            Change::Handshake(time) => self.times.handshake.set(time),
            Change::Request(time) => self.times.request.set(time),
            Change::Close(time) => self.times.close.set(time),
            Change::Reconnect(limit) => {
                let terms = on(&self.terms, "reconnect")?;
                terms.limit.set(match limit {
                    Limit::Time(time) => Some(time),
                    Limit::Forever => None,
                });
            }
            Change::Delay(first, max) => {
                let terms = on(&self.terms, "reconnect")?;
                terms.first.set(Some(first));
                terms.max.set(Some(max));
            }
            Change::SlowLog(time) => {
                let stats = on(&self.stats, "slow-log")?;
                stats.set_slow(time);
            }
            Change::Linger(linger) => {
                let place = on(&self.linger, "linger")?;
                place.set(match linger {
                    Some(Linger::For(time)) => Some(time),
                    Some(Linger::Forever) => None,
                    None => Some(NOT_KEPT),
                });
            }
        }
        Ok(())
    }
}

/// As the time of `linger`: what is kept is left as soon as somebody looks.
const NOT_KEPT: Duration = Duration::from_nanos(1);

/// What can be changed only where it is on.
fn on<'a, T>(place: &'a Option<T>, key: &'static str) -> Result<&'a T, config::Error> {
    place.as_ref().ok_or(config::Error::TurnedOver(key))
}

fn refused<T>(command: &str, result: Result<T, Refusal>, done: impl FnOnce(T) -> Answer) -> Answer {
    match result {
        Ok(value) => done(value),
        Err(error) => Answer::Failed(format!("{command}: {error}")),
    }
}
