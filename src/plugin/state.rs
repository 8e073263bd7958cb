// SPDX-License-Identifier: BSD-3-Clause
//! The only state of the whole process: what the user asked for, and the server behind it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::guard::Failure;
use super::probe;
use super::upstream::Upstream;
use crate::config::extents::Extents;
use crate::config::probe::Probe;
use crate::config::{Config, Params};
use crate::host::{params, report};
use crate::proto::codec::printable;
use crate::proto::consts::MAX_STRING;

/// The plugin's life, in nbdkit's order.
#[derive(Debug)]
enum State {
    /// Until `config_complete`.
    Collecting(Option<Params>),
    /// Until `get_ready`.
    Frozen(Config),
    /// Until `unload`.
    Ready(Arc<Upstream>),
}

static STATE: Mutex<State> = Mutex::new(State::Collecting(None));

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes one parameter.
pub fn set(key: &str, value: &[u8]) -> Result<(), Failure> {
    match &mut *state() {
        State::Collecting(params) => Ok(params.get_or_insert_default().set(key, value)?),
        _ => Err(Failure::misuse("parameter after the last parameter")),
    }
}

/// Checks the parameters together and freezes them.
pub fn freeze() -> Result<(), Failure> {
    let mut state = state();
    if let State::Collecting(params) = &mut *state {
        let config = params.take().unwrap_or_default().complete()?;
        let printed = match (&config.extents, config.probe) {
            (Extents::List, _) => Some("extents=list"),
            (_, Probe::Text | Probe::Json) => Some("probe"),
            _ => None,
        };
        if let Some(what) = printed.filter(|_| !params::is_stdio_free()) {
            return Err(Failure::misuse(&format!(
                "cannot use ‘{what}’ with nbdkit -s: standard output is the client's"
            )));
        }
        *state = State::Frozen(config);
    }
    Ok(())
}

/// Prepares the server. If all that is wanted is a list, or a report, it is printed, and that is the end.
pub fn get_ready() -> Result<(), Failure> {
    let mut state = state();
    if let State::Frozen(config) = &*state {
        if config.extents == Extents::List {
            let names = Upstream::contexts(config)?;
            for name in names {
                report::print(&printable(&name, MAX_STRING));
            }
            return end_printed();
        }
        if config.probe != Probe::Off {
            let found = Upstream::probe(config)?;
            let all_failed = found.iter().all(|(_, result)| result.is_err());
            let lines = probe::render(config.probe, &found);
            let failure = found.into_iter().find_map(|(_, result)| result.err());
            if !all_failed {
                lines.iter().for_each(|line| report::print(line));
            }
            return failure.map_or_else(end_printed, |error| Err(error.into()));
        }
        let upstream = Upstream::new(config)?;
        *state = State::Ready(Arc::new(upstream));
    }
    Ok(())
}

/// What was wanted is printed, and nobody is served.
fn end_printed() -> Result<(), Failure> {
    match report::is_printed() {
        true => report::end_well(),
        false => Err(Failure::misuse("cannot write to standard output")),
    }
}

/// Lets the server know that nbdkit has forked.
pub fn after_fork() -> Result<(), Failure> {
    upstream()?.after_fork()
}

/// The server.
pub fn upstream() -> Result<Arc<Upstream>, Failure> {
    match &*state() {
        State::Ready(upstream) => Ok(upstream.clone()),
        _ => Err(Failure::misuse("used before it was ready")),
    }
}

/// Disconnects everything, while nbdkit still takes messages. Nothing to do is no failure.
pub fn disconnect() {
    let upstream = match &*state() {
        State::Ready(upstream) => Some(upstream.clone()),
        _ => None,
    };
    if let Some(upstream) = upstream {
        upstream.end();
    }
}

/// Disconnects and forgets everything.
pub fn clear() {
    let last = std::mem::replace(&mut *state(), State::Collecting(None));
    if let State::Ready(upstream) = last {
        upstream.end();
    }
}
