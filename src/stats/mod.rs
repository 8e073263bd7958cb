// SPDX-License-Identifier: BSD-3-Clause
//! What this nbdkit has done so far, in numbers. It knows nobody: those who do something tell it.
//!
//! One [`Stats`] is shared by all clients. It is all atomics and fixed memory: whoever counts waits for nobody, and
//! [`Stats::snapshot`] may be asked for at any time, by any thread. A request is timed by
//! [`Stats::begin`] and [`Running::end`], around all that is done for it; whatever sends it says with
//! [`at_server`], on the same thread, how long it was there. Where nobody wants numbers there is no `Stats`,
//! and nothing is counted.

pub mod histogram;
mod prometheus;
mod rows;
mod slow;
mod snapshot;

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use self::histogram::{Counted, Histogram, Quantiles};
pub use self::rows::{FORMAT, Value};
use self::slow::Limiter;
pub use self::slow::{LINES, Slow};
pub use self::snapshot::{Command, Snapshot, Times};

/// What a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To read.
    Read,
    /// To write.
    Write,
    /// To make writes permanent.
    Flush,
    /// To forget a range.
    Trim,
    /// To zero a range.
    Zero,
    /// To bring a range near.
    Cache,
    /// What there is in a range.
    Extents,
}

impl Asked {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Read,
        Self::Write,
        Self::Flush,
        Self::Trim,
        Self::Zero,
        Self::Cache,
        Self::Extents,
    ];

    /// The name that users see.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Trim => "trim",
            Self::Zero => "zero",
            Self::Cache => "cache",
            Self::Extents => "extents",
        }
    }
}

/// What happens on the way to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A connection is ready for requests.
    Opened,
    /// A connection ended that nobody had left.
    Lost,
    /// A connection took the place of a lost one.
    Replaced,
    /// What was acknowledged and not permanent was written again over a connection.
    Replay,
    /// A request of that.
    ReplayRequest,
    /// A byte of that.
    ReplayByte,
    /// A request of a client's was sent once more.
    SentAgain,
    /// A request was too large for the server, and was cut.
    Cut,
    /// A piece of such a request.
    Piece,
    /// A question for extents was answered from memory.
    ExtentsFromMemory,
    /// A read was, as it is of zeroes.
    ReadFromMemory,
    /// A request took longer than `slow-log` says.
    Slow,
}

impl Event {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Opened,
        Self::Lost,
        Self::Replaced,
        Self::Replay,
        Self::ReplayRequest,
        Self::ReplayByte,
        Self::SentAgain,
        Self::Cut,
        Self::Piece,
        Self::ExtentsFromMemory,
        Self::ReadFromMemory,
        Self::Slow,
    ];
}

/// The error numbers that are counted apart, by the names that users see: those that a client may be told,
/// and the rest.
pub const ERRNOS: [(&str, Option<i32>); 9] = [
    ("EPERM", Some(libc::EPERM)),
    ("EIO", Some(libc::EIO)),
    ("ENOMEM", Some(libc::ENOMEM)),
    ("EINVAL", Some(libc::EINVAL)),
    ("ENOSPC", Some(libc::ENOSPC)),
    ("EOVERFLOW", Some(libc::EOVERFLOW)),
    ("ENOTSUP", Some(libc::ENOTSUP)),
    ("ESHUTDOWN", Some(libc::ESHUTDOWN)),
    ("other", None),
];

/// The server of a connection. The texts are printable: whoever tells of it sees to that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Its address.
    pub server: String,
    /// The export's name.
    pub export: String,
    /// How the connection is protected, if it is.
    pub tls: Option<Tls>,
}

/// What the TLS library says of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Such as "TLSv1.3".
    pub version: String,
    /// The cipher's name.
    pub cipher: String,
    /// How the keys were agreed, where the library tells.
    pub key_exchange: String,
}

/// All counters.
#[derive(Debug)]
pub struct Stats {
    began: u64,
    commands: [PerCommand; Asked::ALL.len()],
    errors: [AtomicU64; ERRNOS.len()],
    in_flight: AtomicU64,
    in_flight_max: AtomicU64,
    events: [AtomicU64; Event::ALL.len()],
    /// Nanoseconds after which a request is slow.
    slow: AtomicU64,
    limiter: Mutex<Limiter>,
    peer: Mutex<Option<Peer>>,
}

#[derive(Debug, Default)]
struct PerCommand {
    failed: AtomicU64,
    bytes: AtomicU64,
    queue: Histogram,
    server: Histogram,
}

thread_local! {
    /// How long what this thread is doing was at the server, nanoseconds.
    static AT_SERVER: Cell<u64> = const { Cell::new(0) };
}

/// Nanoseconds since some moment in the past; never 0, which stands for no time.
pub fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    (now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64).max(1)
}

/// What this thread works for was at the server so long, once more.
// Out of the way of those who do not count.
#[cold]
#[inline(never)]
pub fn at_server(nanoseconds: u64) {
    AT_SERVER.set(AT_SERVER.get().saturating_add(nanoseconds));
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            began: now(),
            commands: Default::default(),
            errors: Default::default(),
            in_flight: AtomicU64::new(0),
            in_flight_max: AtomicU64::new(0),
            events: Default::default(),
            slow: AtomicU64::new(u64::MAX),
            limiter: Mutex::default(),
            peer: Mutex::default(),
        }
    }
}

impl Stats {
    /// Something happened.
    pub fn count(&self, event: Event) {
        self.add(event, 1);
    }

    /// Something happened so often.
    pub fn add(&self, event: Event, times: u64) {
        self.events[event as usize].fetch_add(times, Ordering::Relaxed);
    }

    /// A connection is ready for requests.
    pub fn opened(&self, peer: Peer) {
        self.count(Event::Opened);
        *self.peer.lock().unwrap_or_else(PoisonError::into_inner) = Some(peer);
    }

    /// After what time a request is slow; `None` for never.
    pub fn set_slow(&self, limit: Option<Duration>) {
        let limit = limit.map_or(u64::MAX, nanoseconds);
        self.slow.store(limit, Ordering::Relaxed);
    }

    /// The same, as it is at present.
    pub fn slow(&self) -> Option<Duration> {
        match self.slow.load(Ordering::Relaxed) {
            u64::MAX => None,
            limit => Some(Duration::from_nanos(limit)),
        }
    }

    /// A request comes.
    pub fn begin(&self) -> Running<'_> {
        AT_SERVER.set(0);
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        if self.in_flight_max.load(Ordering::Relaxed) <= before {
            self.in_flight_max.fetch_max(before + 1, Ordering::Relaxed);
        }
        Running {
            stats: self,
            began: now(),
        }
    }

    fn uptime(&self) -> Duration {
        Duration::from_nanos(now().saturating_sub(self.began))
    }

    /// All counters as they are. Those of one moment: they are read one after the other, while others count.
    pub fn snapshot(&self) -> Snapshot {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut both = [Counted::default(), Counted::default()];
        let commands = self.commands.each_ref().map(|command| Command {
            failed: load(&command.failed),
            bytes: load(&command.bytes),
            ..command.times(&mut both)
        });
        let [queue, server] = both.map(|counted| counted.quantiles());
        let peer = self.peer.lock().unwrap_or_else(PoisonError::into_inner);
        Snapshot {
            uptime: self.uptime(),
            commands,
            times: Times { queue, server },
            errors: self.errors.each_ref().map(load),
            in_flight: load(&self.in_flight),
            in_flight_max: load(&self.in_flight_max),
            events: self.events.each_ref().map(load),
            peer: peer.clone(),
        }
    }
}

impl PerCommand {
    /// How many there were and how long they took. What was counted is added to that of all commands.
    fn times(&self, all: &mut [Counted; 2]) -> Command {
        let figures = |histogram: &Histogram, all: &mut Counted| -> Quantiles {
            let own = histogram.counted();
            all.add(&own);
            own.quantiles()
        };
        let [all_queue, all_server] = all;
        let times = Times {
            queue: figures(&self.queue, all_queue),
            server: figures(&self.server, all_server),
        };
        Command {
            requests: times.queue.count,
            times,
            ..Command::default()
        }
    }
}

/// A request that is in flight. If it is dropped it is over, and nothing else is known of it.
#[derive(Debug)]
pub struct Running<'a> {
    stats: &'a Stats,
    began: u64,
}

impl Running<'_> {
    /// It is over, with this error number if it failed. If it took long, somebody should be told.
    pub fn end(self, asked: Asked, offset: u64, length: u64, errno: Option<i32>) -> Option<Slow> {
        let stats = self.stats;
        let total = now().saturating_sub(self.began);
        let server = AT_SERVER.get().min(total);
        let queue = total - server;
        let command = &stats.commands[asked as usize];
        command.server.note(server);
        command.queue.note(queue);
        match errno {
            None => command.bytes.fetch_add(length, Ordering::Relaxed),
            Some(errno) => {
                let known = ERRNOS.iter().position(|(_, known)| *known == Some(errno));
                stats.errors[known.unwrap_or(ERRNOS.len() - 1)].fetch_add(1, Ordering::Relaxed);
                command.failed.fetch_add(1, Ordering::Relaxed)
            }
        };
        if total < stats.slow.load(Ordering::Relaxed) {
            return None;
        }
        stats.count(Event::Slow);
        let mut limiter = stats.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        let untold = limiter.line(stats.uptime())?;
        Some(Slow {
            asked,
            offset,
            length,
            queue: Duration::from_nanos(queue),
            server: Duration::from_nanos(server),
            untold,
        })
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.stats.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
