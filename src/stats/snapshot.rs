// SPDX-License-Identifier: BSD-3-Clause
//! What was counted, at one moment: plain data, for whoever shows it.

use std::time::Duration;

use super::histogram::Quantiles;
use super::{Asked, ERRNOS, Event, Peer};

/// All that is known.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Since counting began.
    pub uptime: Duration,
    /// By command, in the order of [`Asked::ALL`].
    pub commands: [Command; Asked::ALL.len()],
    /// Queue and server time of all commands.
    pub times: Times,
    /// Requests that failed, by the number that the client was told, in the order of [`ERRNOS`].
    pub errors: [u64; ERRNOS.len()],
    /// Requests that are in flight.
    pub in_flight: u64,
    /// The most that ever were.
    pub in_flight_max: u64,
    /// How often what has happened, in the order of [`Event::ALL`].
    pub events: [u64; Event::ALL.len()],
    /// The server of the newest connection; none before the first.
    pub peer: Option<Peer>,
}

impl Snapshot {
    /// What was counted of a command.
    pub fn command(&self, asked: Asked) -> &Command {
        &self.commands[asked as usize]
    }

    /// How often something has happened.
    pub fn event(&self, event: Event) -> u64 {
        self.events[event as usize]
    }
}

/// What was counted of one command.
#[derive(Clone, Copy, Debug, Default)]
pub struct Command {
    /// Requests that are over.
    pub requests: u64,
    /// Those of them that failed.
    pub failed: u64,
    /// Bytes that the others were about.
    pub bytes: u64,
    /// How long they took.
    pub times: Times,
}

/// How long requests took: [`queue`](Self::queue) and [`server`](Self::server) together are all the time
/// from a request's coming to its end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// While nothing of it was at the server.
    pub queue: Quantiles,
    /// While it, or a piece of it, was.
    pub server: Quantiles,
}
