// SPDX-License-Identifier: BSD-3-Clause
//! What the links of one export share so that they can come back: the session's core, and the state
//! of each way to the server, under one lock. Here is the one place that says send, hold or fail.
//!
//! ```text
//!   New ----------------------------------------------------> Up   the journal written again
//!          lost                    tries, the gate,
//!   Up ------------> Away ----------------------------------> Up
//!    \                | \          the journal written again
//!     \ closed,       |  `-- after reconnect=TIME requests fail at once; the tries go on
//!      \ given up     | closed
//!       `-----------> Over <---- whatever happens: worse than before, journal refused (for all ways)
//! ```
//!
//! What a connection is makes no difference here, so that models can have simple ones.

#[cfg(all(test, loom))]
mod models;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use super::connection::Connection;
use super::error::{Error, Lost, Outage, Server};
use super::pool::PATIENCE;
use super::sync::{self, Condvar, Mutex, MutexGuard};
use super::times::Time;
use crate::proto::consts::TransmissionFlags;
use crate::proto::export::Export;
use crate::session::delay::Delays;
use crate::session::{Core, Facts, MemberId};

/// Whether and how links come back to a server that was lost.
#[derive(Debug)]
pub struct Terms {
    /// How long requests wait for that; none is for ever.
    pub limit: Time,
    /// The delay before the second try; it doubles from try to try.
    pub first: Time,
    /// The longest delay.
    pub max: Time,
    /// Most memory for what is acknowledged and not permanent, bytes; 0 for none.
    pub replay: u64,
}

/// How long one who is held waits before looking whether its client is still there.
pub(super) const SLICE: Duration = Duration::from_millis(250);

/// So long without a piece of the journal written is no progress.
const STALLED: Duration = Duration::from_secs(1);

/// The session of an export.
#[derive(Debug)]
pub struct Resume<C = Connection> {
    inner: Mutex<Inner<C>>,
    changed: Condvar,
}

/// What is under the lock.
#[derive(Debug)]
pub(super) struct Inner<C = Connection> {
    pub(super) core: Core,
    pub(super) ways: BTreeMap<WayId, Way<C>>,
    /// When a piece of the journal was last written again, or the writing began.
    progress: Instant,
    /// A piece was, since the writing began the last time.
    written: bool,
    /// One was, when it was written the time before: to begin is believed to be progress.
    hopeful: bool,
    /// What was counted of the time before a piece was written, and should not have been.
    pub(super) credit: Duration,
    /// Until when nobody is held for a new connection again: the last time it came to nothing.
    respite: Option<Instant>,
    /// Somebody is asking whether anybody waits for what waits here: to ask may print a message.
    pub(super) asking: bool,
    /// nbdkit ends.
    pub(super) ending: bool,
    /// How many wait for something to change here.
    waiting: usize,
    next: u64,
}

/// A front client's way, or that of all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WayId(u64);

#[derive(Debug)]
pub(super) struct Way<C = Connection> {
    pub(super) phase: Phase<C>,
    /// Connections beside the one that is up, in the order in which they came, which are younger.
    pub(super) more: Vec<Up<C>>,
    /// The connection over which the journal is being written.
    pub(super) coming: Option<Arc<C>>,
    /// One more over which it is, while others are served.
    pub(super) joining: Option<Arc<C>>,
    /// Losses that others make good, and of which nobody was told.
    pub(super) dropped: Vec<Arc<Lost>>,
    /// Nothing was lost since the last inspection.
    pub(super) calm: bool,
    /// The server has said over one of several connections that it is going away.
    pub(super) leaving: bool,
    /// Violations of the protocol since the last good answer.
    pub(super) violations: u32,
    /// What the core's time was at the last inspection.
    pub(super) seen: u64,
    /// At how many inspections in a row it was the same.
    pub(super) idle: u32,
    /// The client that it belongs to alone has left.
    pub(super) unwanted: bool,
    /// A flush of our own has failed since something was written.
    pub(super) quiet: bool,
    /// When the server was first lost without a good answer since, and the delays that come next.
    pub(super) flapping: Option<(Instant, Delays)>,
    /// How often something unflushed had been lost when it was opened.
    pub(super) losses: u64,
}

#[derive(Debug)]
pub(super) enum Phase<C = Connection> {
    /// Its client is being opened.
    New,
    Up(Up<C>),
    Away(Away<C>),
    /// Closed, or given up since nobody wants it any more.
    Over,
}

/// A connection that is served.
#[derive(Debug)]
pub(super) struct Up<C = Connection> {
    pub(super) connection: Arc<C>,
    pub(super) member: MemberId,
    /// Largest payload that this server takes, bytes.
    pub(super) maximum: u32,
    /// Which of several servers it leads to.
    pub(super) at: usize,
    /// What is outstanding, bytes, where there may be several.
    pub(super) load: Option<Arc<AtomicU64>>,
}

impl<C> Clone for Up<C> {
    fn clone(&self) -> Self {
        Self {
            connection: self.connection.clone(),
            load: self.load.clone(),
            ..*self
        }
    }
}

/// A connection was lost.
#[derive(Debug)]
pub(super) struct Away<C = Connection> {
    /// When. Times in which writing the journal made progress are added.
    pub(super) since: Instant,
    pub(super) outage: Arc<Outage>,
    /// The lost connection, until it is buried.
    pub(super) grave: Option<Up<C>>,
    /// A thread is coming back.
    pub(super) thread: bool,
    /// It was said that the server is still away.
    pub(super) reminded: bool,
}

/// What is to be done with a request.
pub(super) enum Pass<C = Connection> {
    Send(Up<C>),
    /// Not yet; since when what it waits for has been away, if it is the server.
    Hold(Option<Arc<Outage>>),
    Fail(Error),
}

impl<C> Way<C> {
    /// The connections that are served, the oldest first.
    pub(super) fn ups(&self) -> impl Iterator<Item = &Up<C>> {
        let first = match &self.phase {
            Phase::Up(up) => Some(up),
            _ => None,
        };
        first.into_iter().chain(&self.more)
    }

    /// Whether a new connection is waited for: `beside` others, or since there is none.
    pub(super) fn takes(&self, beside: bool) -> bool {
        match self.phase {
            Phase::New | Phase::Away(_) => !beside,
            Phase::Up(_) => beside,
            Phase::Over => false,
        }
    }

    /// Where it is known while the journal is written over it.
    pub(super) fn place(&mut self, beside: bool) -> &mut Option<Arc<C>> {
        match beside {
            true => &mut self.joining,
            false => &mut self.coming,
        }
    }

    /// Takes a lost connection out, if others go on.
    pub(super) fn drop_one(&mut self, connection: &Arc<C>) -> Option<Up<C>> {
        let is_it = |up: &Up<C>| Arc::ptr_eq(&up.connection, connection);
        if let Some(at) = self.more.iter().position(is_it) {
            return Some(self.more.remove(at));
        }
        match &mut self.phase {
            Phase::Up(up) if is_it(up) && !self.more.is_empty() => {
                Some(std::mem::replace(up, self.more.remove(0)))
            }
            _ => None,
        }
    }
}

impl<C> Resume<C> {
    /// A session for an export of which nbdkit was told this.
    pub(super) fn new(export: &Export, terms: &Terms) -> Self {
        let core = Core::new(Facts {
            replay: terms.replay,
            multi_conn: export.can(TransmissionFlags::CAN_MULTI_CONN),
        });
        Self {
            inner: Mutex::new(Inner {
                core,
                ways: BTreeMap::new(),
                progress: Instant::now(),
                written: true,
                hopeful: true,
                credit: Duration::ZERO,
                respite: None,
                asking: false,
                ending: false,
                waiting: 0,
                next: 0,
            }),
            changed: Condvar::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner<C>> {
        sync::lock(&self.inner)
    }

    /// Waits until something may have changed, a slice of time at most.
    pub(super) fn hold<'a>(
        &'a self,
        mut inner: MutexGuard<'a, Inner<C>>,
        most: Duration,
    ) -> MutexGuard<'a, Inner<C>> {
        inner.waiting += 1;
        let mut inner = sync::wait(&self.changed, inner, Some(most.min(SLICE)));
        inner.waiting -= 1;
        inner
    }

    /// Gives the lock back and wakes who waits for what may have changed.
    pub(super) fn tell(&self, inner: MutexGuard<'_, Inner<C>>) {
        let wake = inner.waiting > 0;
        drop(inner);
        // It costs a system call even if nobody waits.
        if wake {
            self.changed.notify_all();
        }
    }

    /// Whether whoever comes now has to start afresh.
    pub(super) fn is_doomed(&self) -> bool {
        self.lock().core.doom().is_some()
    }
}

impl<C> Inner<C> {
    /// A new way, for a client that is being opened.
    pub(super) fn admit(&mut self) -> WayId {
        let id = WayId(self.next);
        self.next += 1;
        let way = Way {
            phase: Phase::New,
            more: Vec::new(),
            coming: None,
            joining: None,
            dropped: Vec::new(),
            calm: true,
            leaving: false,
            violations: 0,
            seen: 0,
            idle: 0,
            unwanted: false,
            quiet: false,
            flapping: None,
            losses: self.core.losses(),
        };
        self.ways.insert(id, way);
        id
    }

    /// The one place that decides: send, hold or fail. `may` says whether the order of things would
    /// let the request go.
    pub(super) fn pass(
        &self,
        server: &Server,
        way: WayId,
        limit: Option<Duration>,
        may: impl FnOnce(&Core) -> bool,
    ) -> Pass<C> {
        if let Some(why) = self.core.doom() {
            return Pass::Fail(Error::Doomed {
                server: server.clone(),
                why: why.clone(),
            });
        }
        match self.ways.get(&way).map(|way| &way.phase) {
            Some(Phase::Up(up)) => match may(&self.core) {
                true => Pass::Send(up.clone()),
                false => Pass::Hold(None),
            },
            Some(Phase::Away(away)) => match self.is_long(away, limit) {
                true => Pass::Fail(Error::Outage(away.outage.clone())),
                false => Pass::Hold(Some(away.outage.clone())),
            },
            Some(Phase::New) => Pass::Hold(None),
            Some(Phase::Over) | None => Pass::Fail(Error::Unwanted(server.clone())),
        }
    }

    /// Whether nobody waits for the requests of a way, as somebody has found out.
    pub(super) fn is_unwanted(&self, way: WayId) -> bool {
        self.ending || self.ways.get(&way).is_some_and(|way| way.unwanted)
    }

    /// Whether requests are not to wait any longer.
    fn is_long(&self, away: &Away<C>, limit: Option<Duration>) -> bool {
        !self.stands_still() && limit.is_some_and(|limit| away.since.elapsed() >= limit)
    }

    /// Whether time stands still, as the journal is being written and that makes progress. A server that
    /// has dropped one try before it had answered anything has to answer something first: else it stops
    /// the clock with each try.
    pub(super) fn stands_still(&self) -> bool {
        self.core.is_rewriting_well() && self.progress.elapsed() < self.believed()
    }

    /// For how long the writing is progress without a piece that shows it.
    fn believed(&self) -> Duration {
        match self.written || self.hopeful {
            true => STALLED,
            false => Duration::ZERO,
        }
    }

    /// Whether a piece of the journal was written in this time, or the writing began.
    pub(super) fn makes_progress(&self, within: Duration) -> bool {
        self.progress.elapsed() < within
    }

    /// Whether others are held while the journal is written over this connection.
    pub(super) fn holds_others(&self, connection: &C) -> bool {
        let mut ups = self.ways.values().flat_map(Way::ups);
        ups.any(|up| !std::ptr::eq(&*up.connection, connection))
    }

    /// The journal was written over a connection for so long, in vain. Others who were held meanwhile have
    /// as long for themselves before they are held for another, but not so long that it never comes.
    pub(super) fn give_respite(&mut self, connection: &C, held: Duration) {
        if self.holds_others(connection) {
            self.respite = Some(Instant::now() + held.min(PATIENCE));
        }
    }

    /// Whether others are not to be held yet while the journal is written over this connection.
    pub(super) fn has_respite(&self, connection: &C) -> bool {
        self.respite.is_some_and(|until| Instant::now() < until)
            && self.core.has_unflushed()
            && self.holds_others(connection)
    }

    /// The journal begins to be written.
    pub(super) fn begin_progress(&mut self) {
        self.progress = Instant::now();
        self.hopeful = std::mem::take(&mut self.written);
    }

    /// A piece of the journal was written; or no more will be, and `at_end` only so much of the time
    /// stood still as could have been progress, and none if nothing was written at all.
    pub(super) fn note_progress(&mut self, at_end: bool) {
        let took = self.progress.elapsed();
        let still = match at_end {
            false => took,
            true if self.written => took.min(STALLED),
            true => Duration::ZERO,
        };
        self.progress = Instant::now();
        self.credit += still.saturating_sub(self.believed());
        self.written |= !at_end;
        for way in self.ways.values_mut() {
            if let Phase::Away(away) = &mut way.phase {
                away.since += still.min(away.since.elapsed());
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::client::error::Cause;
    use crate::proto::framing::Framing;
    use crate::session::{Span, Worth, Written};
    use crate::transport;

    const TRY: Duration = Duration::from_millis(900);

    /// A way that was lost just now, and waits.
    fn away() -> (Resume<()>, WayId) {
        let export = Export::new(1, TransmissionFlags::HAS_FLAGS, Framing::Simple);
        let terms = Terms {
            limit: Time::default(),
            first: Time::default(),
            max: Time::default(),
            replay: 1 << 20,
        };
        let resume = Resume::new(&export, &terms);
        let mut inner = resume.lock();
        let way = inner.admit();
        let lost = Lost::new("it".into(), Cause::Transport(transport::Error::Closed));
        inner.ways.get_mut(&way).expect("just made").phase = Phase::Away(Away {
            since: Instant::now(),
            outage: Arc::new(Outage::new(Arc::new(lost), None)),
            grave: None,
            thread: false,
            reminded: false,
        });
        drop(inner);
        (resume, way)
    }

    impl Inner<()> {
        /// Time passes.
        fn pass_time(&mut self, way: WayId, time: Duration) {
            self.progress -= time;
            if let Phase::Away(away) = &mut self.ways.get_mut(&way).expect("there").phase {
                away.since -= time;
            }
        }

        fn counted(&self, way: WayId) -> Duration {
            match &self.ways[&way].phase {
                Phase::Away(away) => away.since.elapsed(),
                other => panic!("{other:?}"),
            }
        }

        /// The journal is written over a new connection until that is lost. Whether time stood still at
        /// first.
        fn try_once(&mut self, way: WayId, pieces: u32) -> bool {
            let member = self.core.born();
            assert!(self.core.begin_rewrite(member, true).is_some());
            self.begin_progress();
            let still = self.stands_still();
            for _ in 0..pieces {
                self.pass_time(way, TRY);
                self.note_progress(false);
            }
            self.pass_time(way, TRY);
            self.note_progress(true);
            self.core.lost(member);
            self.core.buried(member);
            still
        }
    }

    #[test]
    fn others_have_as_long_for_themselves_as_they_were_held() {
        let (resume, way) = away();
        let mut inner = resume.lock();
        let member = inner.core.born();
        let up = |connection: &Arc<()>| Up {
            connection: connection.clone(),
            member,
            maximum: 1,
            at: 0,
            load: None,
        };
        let (well, new) = (Arc::new(()), Arc::new(()));
        inner.give_respite(&new, TRY);
        let other = inner.admit();
        inner.ways.get_mut(&other).expect("just made").phase = Phase::Up(up(&well));
        let change = inner.core.queue(Span::new(0, 1));
        let sending = inner.core.send_change(change, member, false);
        let written = Written::Bytes(&[7]);
        assert_eq!(
            inner.core.changed(change, sending, false, written),
            Worth::Counts
        );
        assert!(!inner.has_respite(&new), "nobody was held");
        assert!(inner.holds_others(&new) && !inner.holds_others(&well));
        inner.give_respite(&new, 100 * PATIENCE);
        assert!(inner.has_respite(&new));
        assert!(
            inner
                .respite
                .is_some_and(|until| until <= Instant::now() + PATIENCE)
        );
        inner.give_respite(&new, Duration::ZERO);
        assert!(!inner.has_respite(&new), "it is over");
        inner.give_respite(&new, TRY);
        inner.ways.remove(&other);
        assert!(inner.ways.contains_key(&way));
        assert!(!inner.has_respite(&new), "nobody would be held");
    }

    #[test]
    fn a_try_in_which_nothing_was_written_is_time_away() {
        let (resume, way) = away();
        let mut inner = resume.lock();
        assert!(inner.try_once(way, 0), "it may be the one that is good");
        assert!(!inner.try_once(way, 0), "nor does the clock stop meanwhile");
        assert!(!inner.try_once(way, 0));
        assert!(inner.counted(way) >= 3 * TRY);
        assert_eq!(inner.credit, Duration::ZERO);
    }

    #[test]
    fn while_pieces_are_written_no_time_is_counted() {
        let (resume, way) = away();
        let mut inner = resume.lock();
        assert!(inner.try_once(way, 4));
        assert!(inner.counted(way) < TRY, "{:?}", inner.counted(way));
        assert_eq!(inner.credit, Duration::ZERO, "none was counted");
        assert!(inner.try_once(way, 0), "the one before came somewhere");
        let before = inner.counted(way);
        assert!(!inner.try_once(way, 1));
        assert!(inner.counted(way) < before + TRY);
        assert!(
            inner.credit >= TRY,
            "what was counted before the first piece"
        );
    }
}
