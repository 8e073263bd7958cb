// SPDX-License-Identifier: BSD-3-Clause
//! A front client's way to the server, or the one way of all of them.
//!
//! [`Links`] says over which connection a request goes, and knows what must be done before one is
//! left. A *plain* way has one connection, made before the links are, with which it lives and ends;
//! only a server that says that it is going away is left for another, once. A *pool* has several. A
//! *lasting* way outlives its connections: see `lasting.rs`. [`Shared`] is for the links of all clients: it makes them anew
//! when they have ended, in one attempt whose result all who wait for it get.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Opener;
use super::connection::Connection;
use super::error::{Error, OpenError, Server};
use super::lasting::Lasting;
use super::loan::Buffer;
use super::plain::Plain;
use super::pool::Pool;
use super::report::WayReport;
use super::upkeep::Upkeep;
use super::volume::Volume;
use crate::proto::chunks::Descriptor;
use crate::proto::request::Request;
use crate::session::gate::Protection;
use crate::transport::{Deadline, Wanted};

/// A way to an export.
#[derive(Debug)]
pub struct Links {
    server: Server,
    volume: Arc<Volume>,
    way: Way,
}

/// There is one for each client, and the plain one is to be reached without a detour.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
enum Way {
    Plain(Plain),
    Pool(Arc<Pool>),
    Lasting(Arc<Lasting>),
}

impl Links {
    pub(super) fn plain(
        opener: Opener,
        volume: Arc<Volume>,
        connection: Connection,
        protection: Protection,
    ) -> Self {
        Self {
            server: opener.server.clone(),
            way: Way::Plain(Plain::new(opener, volume.clone(), connection, protection)),
            volume,
        }
    }

    pub(super) fn pool(pool: Pool, volume: Arc<Volume>) -> Self {
        Self {
            server: pool.server().clone(),
            volume,
            way: Way::Pool(Arc::new(pool)),
        }
    }

    pub(super) fn lasting(lasting: Lasting, volume: Arc<Volume>) -> Self {
        Self {
            server: lasting.server().clone(),
            volume,
            way: Way::Lasting(Arc::new(lasting)),
        }
    }

    /// The server's name for messages.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The export.
    pub fn volume(&self) -> &Volume {
        &self.volume
    }

    /// Sends a request that changes nothing and waits for its answer, until the deadline.
    #[inline(always)]
    pub fn submit(
        &self,
        request: Request,
        buffer: Buffer<'_>,
        deadline: &Deadline,
    ) -> Result<Vec<Descriptor>, Error> {
        match &self.way {
            Way::Plain(plain) => plain.submit(request, buffer, deadline),
            Way::Pool(pool) => pool.submit(request, buffer, deadline),
            Way::Lasting(lasting) => lasting.submit(request, buffer, deadline),
        }
    }

    /// The same for a request that changes what is stored.
    #[inline(always)]
    pub fn change(
        &self,
        request: Request,
        buffer: Buffer<'_>,
        deadline: &Deadline,
    ) -> Result<(), Error> {
        match &self.way {
            Way::Plain(plain) => plain.change(request, buffer, deadline),
            Way::Pool(pool) => pool.submit(request, buffer, deadline).map(drop),
            Way::Lasting(lasting) => lasting.change(request, buffer, deadline),
        }
    }

    /// Makes every answered change permanent. `since` is what [`Links::losses`] said when the client
    /// came that asks for it.
    pub fn flush(&self, deadline: &Deadline, since: u64) -> Result<(), Error> {
        match &self.way {
            Way::Plain(plain) => plain.flush(deadline),
            Way::Pool(pool) => pool.flush(deadline),
            Way::Lasting(lasting) => lasting.flush(deadline, since),
        }
    }

    /// How often something unflushed was lost for good. Who was there must not hear of a good flush
    /// after that.
    pub fn losses(&self) -> u64 {
        match &self.way {
            Way::Plain(_) | Way::Pool(_) => 0,
            Way::Lasting(lasting) => lasting.losses(),
        }
    }

    /// Whether no new request will succeed. Looks for the end of the stream if nobody else does.
    pub fn is_over(&self) -> bool {
        match &self.way {
            Way::Plain(plain) => plain.is_over(),
            Way::Pool(pool) => pool.is_over(),
            Way::Lasting(lasting) => lasting.is_over(),
        }
    }

    /// Whether the server is there and has its connection open. Looks for the end of the stream.
    pub fn is_alive(&self) -> bool {
        match &self.way {
            Way::Plain(plain) => plain.is_alive(),
            Way::Pool(pool) => pool.is_alive(),
            Way::Lasting(lasting) => lasting.is_alive(),
        }
    }

    /// Whether nothing was ever asked of it.
    pub fn is_unused(&self) -> bool {
        match &self.way {
            Way::Plain(plain) => plain.is_unused(),
            Way::Pool(pool) => pool.is_unused(),
            Way::Lasting(lasting) => lasting.is_unused(),
        }
    }

    /// Flushes if something was written, until the deadline. Whether it can be given to another client
    /// then. No request may be in flight.
    pub fn rest(&self, deadline: Deadline) -> bool {
        match &self.way {
            Way::Plain(plain) => plain.rest(deadline),
            Way::Pool(pool) => pool.rest(deadline),
            Way::Lasting(lasting) => lasting.rest(deadline),
        }
    }

    /// What can be seen of it from outside.
    pub(super) fn report(&self) -> WayReport {
        match &self.way {
            Way::Plain(plain) => plain.report(),
            Way::Pool(pool) => pool.report(),
            Way::Lasting(lasting) => lasting.report(),
        }
    }

    /// Flushes if something was written, on behalf of no client. Takes as long as a client's flush may.
    pub(super) fn settle(&self) -> Result<(), Error> {
        match &self.way {
            Way::Plain(plain) => plain.settle(),
            Way::Pool(pool) => pool.settle(),
            Way::Lasting(lasting) => lasting.settle(),
        }
    }

    /// Leaves all its connections for new ones, where there can be any. No request may be in flight, and
    /// nothing unflushed.
    pub(super) fn replace_connections(&self) {
        match &self.way {
            Way::Plain(_) | Way::Pool(_) => (),
            Way::Lasting(lasting) => lasting.replace_connections(),
        }
    }

    /// Whether all connections are gone, or were left: nothing is to be done for them any more.
    pub(super) fn are_gone(&self) -> bool {
        match &self.way {
            Way::Plain(plain) => plain.is_gone(),
            Way::Pool(pool) => pool.is_gone(),
            Way::Lasting(lasting) => lasting.is_closed(),
        }
    }

    /// Flushes if something was written, says goodbye and waits for the server; all of that until
    /// the deadline, or until the one that was set for requests that hung when nobody wanted more of
    /// the connection.
    ///
    /// No client's request is in flight. At nbdkit's end a filter's may be, in a thread that nbdkit
    /// does not know of: it must not come back into a filter that is unloaded, so its connection is
    /// left to end with the process.
    pub fn close(&self, deadline: Deadline) {
        match &self.way {
            Way::Plain(plain) => plain.close(deadline),
            Way::Pool(pool) => pool.leave(deadline),
            Way::Lasting(lasting) => lasting.close(deadline),
        }
    }

    /// Tells of the end of connections that no request has found out about, if that matters to what
    /// was answered.
    fn tell_of_loss(&self) {
        match &self.way {
            Way::Plain(plain) => plain.tell_of_loss(),
            Way::Pool(pool) => pool.tell_of_loss(),
            // It was told when it was lost.
            Way::Lasting(_) => (),
        }
    }

    /// Looks after requests that wait for long; see `Connection::inspect`.
    pub(super) fn inspect(&self) -> bool {
        match &self.way {
            Way::Plain(plain) => plain.inspect(),
            Way::Pool(pool) => pool.inspect(),
            Way::Lasting(lasting) => lasting.inspect(),
        }
    }

    /// What is in flight may be answered until then, and no longer.
    pub(super) fn give_grace(&self, until: Deadline) {
        match &self.way {
            Way::Plain(plain) => plain.give_grace(until),
            Way::Pool(pool) => pool.give_grace(until),
            Way::Lasting(lasting) => lasting.give_grace(until),
        }
    }
}

/// Makes the links for [`Shared`].
pub type Attempt = Box<dyn FnOnce() -> Result<Arc<Links>, Error> + Send>;

/// How long one who waits for an attempt does so before looking whether its client is still there.
const SLICE: Duration = Duration::from_millis(250);

/// The links of all clients.
#[derive(Debug, Default)]
pub struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    links: Option<Arc<Links>>,
    /// Attempts begun so far; the last one is still under way if it has no result.
    begun: u64,
    ended: u64,
    result: Option<Result<Arc<Links>, Error>>,
}

impl Shared {
    /// The first links.
    pub fn with(links: Arc<Links>) -> Self {
        Self {
            state: Mutex::new(State {
                links: Some(links),
                ..State::default()
            }),
            changed: Condvar::new(),
        }
    }

    /// The links. If they are over, new ones are made: by an attempt that `upkeep` carries out, which
    /// others may have begun, and which does not end with the client that began it. `wanted` tells
    /// whether the client of this thread still waits.
    pub fn join(
        self: &Arc<Self>,
        upkeep: &Upkeep,
        server: &Server,
        wanted: Wanted,
        attempt: impl FnOnce() -> Attempt,
    ) -> Result<Arc<Links>, Error> {
        let mut state = self.lock();
        if let Some(links) = &state.links {
            if !links.is_over() {
                return Ok(links.clone());
            }
        }
        if state.begun == state.ended {
            let old = state.links.take();
            state.begun += 1;
            let (shared, attempt, name) = (self.clone(), attempt(), server.clone());
            let begun = upkeep.run(Box::new(move || {
                if let Some(old) = old {
                    old.tell_of_loss();
                }
                let outcome = Outcome {
                    shared,
                    failure: Some(Error::Open {
                        server: name,
                        cause: Arc::new(OpenError::Panic),
                    }),
                };
                outcome.settle(attempt());
            }));
            if !begun {
                state.ended = state.begun;
                return Err(Error::unwanted(server.clone()));
            }
        }
        let mine = state.begun;
        let patience = Deadline::NEVER.while_wanted(Some(wanted));
        while state.ended < mine {
            state = self
                .changed
                .wait_timeout(state, SLICE)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            if state.ended < mine {
                drop(state);
                // Not under the lock: to ask may print a message.
                patience
                    .check()
                    .map_err(|_| Error::unwanted(server.clone()))?;
                state = self.lock();
            }
        }
        match &state.result {
            Some(result) => result.clone(),
            None => Err(Error::unwanted(server.clone())),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The duty of ending an attempt, also if it panics: everybody waits for that.
struct Outcome {
    shared: Arc<Shared>,
    failure: Option<Error>,
}

impl Outcome {
    fn settle(mut self, result: Result<Arc<Links>, Error>) {
        self.failure = None;
        self.tell(result);
    }

    fn tell(&self, result: Result<Arc<Links>, Error>) {
        let mut state = self.shared.lock();
        state.ended = state.begun;
        state.links = result.as_ref().ok().cloned();
        state.result = Some(result);
        drop(state);
        self.shared.changed.notify_all();
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        if let Some(failure) = self.failure.take() {
            self.tell(Err(failure));
        }
    }
}
