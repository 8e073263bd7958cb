// SPDX-License-Identifier: BSD-3-Clause
//! A front client's way to the server, or the one way of all of them.
//!
//! [`Links`] says over which connection a request goes, and knows what must be done before one is
//! left. A *plain* way has one connection, made before the links are, with which it lives and ends;
//! only a server that says that it is going away is left for another, once. A *pool* has several. A
//! *lasting* way outlives its connections: see `lasting.rs`. [`Shared`] is for the links of all clients: it makes them anew
//! when they have ended, in one attempt whose result all who wait for it get, and says when the last
//! client of those that have ended has left.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
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
    /// What [`Links::losses`] said when each of its clients came.
    clients: Mutex<Vec<u64>>,
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
            clients: Mutex::default(),
        }
    }

    pub(super) fn pool(pool: Pool, volume: Arc<Volume>) -> Self {
        Self {
            server: pool.server().clone(),
            volume,
            way: Way::Pool(Arc::new(pool)),
            clients: Mutex::default(),
        }
    }

    pub(super) fn lasting(lasting: Lasting, volume: Arc<Volume>) -> Self {
        Self {
            server: lasting.server().clone(),
            volume,
            way: Way::Lasting(Arc::new(lasting)),
            clients: Mutex::default(),
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

    /// Makes every answered change permanent. `since` is what `attend` said to the client that
    /// asks for it.
    pub fn flush(&self, deadline: &Deadline, since: u64) -> Result<(), Error> {
        match &self.way {
            Way::Plain(plain) => plain.flush(deadline),
            Way::Pool(pool) => pool.flush(deadline),
            Way::Lasting(lasting) => lasting.flush(deadline, since),
        }
    }

    /// A client comes. Gives how often something unflushed was lost for good before.
    pub(super) fn attend(&self) -> u64 {
        let losses = self.losses();
        lock(&self.clients).push(losses);
        losses
    }

    /// A client leaves that was told this when it came.
    pub(super) fn depart(&self, losses: u64) {
        let mut clients = lock(&self.clients);
        if let Some(place) = clients.iter().position(|told| *told == losses) {
            clients.swap_remove(place);
        }
    }

    /// How often something unflushed was lost for good. Who was there must not hear of a good flush
    /// after that.
    fn losses(&self) -> u64 {
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

    /// Whether it waits for servers to be what they were, while whoever comes could have what they are.
    fn is_elsewhere(&self) -> bool {
        match &self.way {
            Way::Plain(_) | Way::Pool(_) => false,
            Way::Lasting(lasting) => lasting.is_elsewhere(),
        }
    }

    /// Looks whether the server has left, of which nobody knows yet, and if so waits for a moment for what
    /// comes of it: a server that is back may be another one.
    fn find_out(&self) {
        if let Way::Lasting(lasting) = &self.way {
            lasting.find_out();
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

    /// Flushes if something was written, on behalf of no client. Takes as long as a client's flush may, and
    /// fails if that of a client would that is there.
    pub(super) fn settle(&self) -> Result<(), Error> {
        let losses = self.losses();
        if lock(&self.clients).iter().any(|told| *told < losses) {
            return Err(Error::Unflushed(self.server.clone()));
        }
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

    /// Tells of the end of connections that no request has found out about, if that matters to what was
    /// answered.
    fn tell_of_doubt(&self) {
        match &self.way {
            Way::Plain(plain) => plain.tell_of_doubt(),
            Way::Pool(pool) => pool.tell_of_doubt(),
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

/// Makes the links for [`Shared`], in the place of others that nobody uses, if there are any.
pub type Attempt = Box<dyn FnOnce(Option<Arc<Links>>) -> Result<Arc<Links>, Error> + Send>;

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
    /// Those that whoever comes gets.
    links: Option<Arc<Links>>,
    /// By which links how many clients go: by these, and by those before them.
    users: Vec<(Arc<Links>, usize)>,
    /// Attempts begun so far; the last one is still under way if it has no result.
    begun: u64,
    ended: u64,
    /// Of the last one. It keeps nothing that everybody has left.
    result: Option<Result<Weak<Links>, Error>>,
}

impl State {
    /// How many clients go by these links.
    fn users(&self, links: &Arc<Links>) -> usize {
        let known = self.users.iter().find(|(one, _)| Arc::ptr_eq(one, links));
        known.map_or(0, |(_, users)| *users)
    }

    /// Whether nobody closes these links.
    fn has(&self, links: &Arc<Links>) -> bool {
        let current = self.links.as_ref();
        self.users(links) > 0 || current.is_some_and(|current| Arc::ptr_eq(current, links))
    }

    /// One more does.
    fn enter(&mut self, links: Arc<Links>) -> Arc<Links> {
        let known = self
            .users
            .iter_mut()
            .find(|(one, _)| Arc::ptr_eq(one, &links));
        match known {
            Some((_, users)) => *users += 1,
            None => self.users.push((links.clone(), 1)),
        }
        links
    }
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

    /// The links, for one more client, who has to [leave](Shared::leave) them. If they are of no use, new ones
    /// are made: by an attempt that `upkeep` carries out, which others may have begun, and which does not
    /// end with the client that began it. `wanted` tells whether the client of this thread still waits.
    pub fn join(
        self: &Arc<Self>,
        upkeep: &Upkeep,
        server: &Server,
        wanted: Wanted,
        attempt: impl Fn() -> Attempt,
    ) -> Result<Arc<Links>, Error> {
        let patience = Deadline::NEVER.while_wanted(Some(wanted));
        loop {
            let present = self.lock().links.clone();
            // Not under the lock: it may take a moment.
            present.iter().for_each(|links| links.find_out());
            let mut state = self.lock();
            if let Some(links) = state.links.clone() {
                if !links.is_over() && !links.is_elsewhere() {
                    return Ok(state.enter(links));
                }
            }
            if state.begun == state.ended && !self.begin(&mut state, upkeep, server, attempt()) {
                return Err(Error::unwanted(server.clone()));
            }
            let mine = state.begun;
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
                // Else others have come, found them over, and left meanwhile.
                Some(Ok(links)) => {
                    if let Some(links) = links.upgrade().filter(|links| state.has(links)) {
                        return Ok(state.enter(links));
                    }
                }
                Some(Err(error)) => return Err(error.clone()),
                None => return Err(Error::unwanted(server.clone())),
            }
        }
    }

    /// Begins an attempt in the place of the present links. False if it is too late for that.
    fn begin(
        self: &Arc<Self>,
        state: &mut State,
        upkeep: &Upkeep,
        server: &Server,
        attempt: Attempt,
    ) -> bool {
        let old = state.links.take();
        // Nobody comes to them any more, and who goes by them sees to their end.
        let (used, unused) = match old {
            Some(old) if state.users(&old) > 0 => (Some(old), None),
            old => (None, old),
        };
        state.begun += 1;
        let (shared, name) = (self.clone(), server.clone());
        let begun = upkeep.run(Box::new(move || {
            used.iter().for_each(|used| used.tell_of_doubt());
            let outcome = Outcome {
                shared,
                failure: Some(Error::Open {
                    server: name,
                    cause: Arc::new(OpenError::Panic),
                }),
            };
            let result = attempt(unused);
            outcome.settle(match used {
                // Better to wait with those who do than to have nothing.
                Some(used) if result.is_err() && !used.is_over() => Ok(used),
                _ => result,
            });
        }));
        if !begun {
            state.ended = state.begun;
        }
        begun
    }

    /// A client leaves. Gives the links if they are to be closed: nobody else uses them, nor will.
    pub fn leave(&self, links: &Arc<Links>) -> Option<Arc<Links>> {
        let mut state = self.lock();
        let place = state
            .users
            .iter()
            .position(|(one, _)| Arc::ptr_eq(one, links))?;
        state.users[place].1 -= 1;
        if state.users[place].1 > 0 {
            return None;
        }
        let (links, _) = state.users.swap_remove(place);
        if state.has(&links) {
            if !links.is_over() {
                return None;
            }
            state.links = None;
        }
        Some(links)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
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
        state.result = Some(match &result {
            Ok(links) => Ok(Arc::downgrade(links)),
            Err(error) => Err(error.clone()),
        });
        state.links = result.ok();
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
