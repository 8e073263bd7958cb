// SPDX-License-Identifier: BSD-3-Clause
//! What becomes of a front client's questions where each client has its own way to the server: one
//! connection, whatever it asks, and in what order.
//!
//! | nbdkit asks | the server is asked | what lies on the thread's desk then |
//! |---|---|---|
//! | to list | `NBD_OPT_LIST` | the negotiation |
//! | for the default export | `NBD_OPT_GO`; after a list `NBD_OPT_INFO` | the open export; the negotiation |
//! | to open | nothing, where that is open already; else `NBD_OPT_GO` | |
//! | to close what was not used | nothing | the way |
//!
//! With `linger=` a way is parked whenever it is closed, whether it was used or not, and found there by
//! whoever opens the same, the same client or another.
//!
//! What lies on the desk and is of no use for the next question is left before a server is connected to
//! anew: some have room for one client only. What lies there when the client has left is left by a
//! thread of its own (`nbd-leave`).
//!
//! Of what is about to be closed nobody else knows any more: first [`Upkeep`] forgets it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::upstream::{Pause, Server};
use crate::client::desk::{DefaultExport, Desks, Hand};
use crate::client::error::Error;
use crate::client::lot::{Kept, Key, Lot};
use crate::client::negotiation::{AtHand, Negotiation};
use crate::client::upkeep::{Chore, Closing, Upkeep};
use crate::client::{self, Entered, Start};
use crate::host::params;
use crate::proto::handshake::Listed;
use crate::proto::name::ExportName;
use crate::transport::Deadline;

/// A server that has not greeted for so long may have no room for another connection.
const NO_ROOM: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub struct Reception {
    server: Arc<Server>,
    upkeep: Arc<Upkeep>,
    desks: Desks,
    lot: Option<Lot>,
}

impl Reception {
    /// Nobody is there.
    pub fn new(server: Arc<Server>, upkeep: Arc<Upkeep>, lot: Option<Lot>) -> Arc<Self> {
        let this = Arc::new(Self {
            desks: Desks::new(upkeep.bell()),
            lot,
            server,
            upkeep,
        });
        let chore: Arc<dyn Chore> = this.clone();
        this.upkeep.take_on(Arc::downgrade(&chore));
        this
    }

    /// The exports that the server lists.
    pub fn list(&self, tls: bool) -> Result<Vec<Listed>, Error> {
        let mut hand = self.take(tls);
        if hand.negotiation.is_none() {
            self.make_room(&mut hand);
        }
        let instead = |waited| self.insist_on_room(waited);
        let mut at_hand = self.at_hand(&mut hand, &instead);
        let listing = client::list(&self.server.options, &mut at_hand);
        hand.negotiation = at_hand.negotiation;
        self.put(tls, hand);
        listing
    }

    /// The server's name for its default export; empty if there is none. Not knowing is no failure: the
    /// server may still open it.
    pub fn default_export(&self, readonly: bool, tls: bool) -> ExportName {
        if let Some(lot) = &self.lot {
            if let Some(name) = lot.default_name(tls, self.peer().as_deref()) {
                return name;
            }
        }
        let mut hand = self.take(tls);
        let after_list = hand.negotiation.is_some();
        if !after_list {
            self.make_room(&mut hand);
        }
        let instead = |waited| self.insist_on_room(waited);
        let mut at_hand = self.at_hand(&mut hand, &instead);
        let options = &self.server.options;
        let name = if after_list {
            client::default_export(options, &mut at_hand)
        } else {
            let entered = client::enter_default(options, readonly, &mut at_hand);
            let name = match &entered {
                Ok(entered) => Ok(entered.canonical_name().cloned()),
                Err(error) => Err(error.clone()),
            };
            hand.default = Some(DefaultExport {
                name: name.clone().ok().flatten().unwrap_or_default(),
                readonly,
                entered,
            });
            name
        };
        if let Err(error) = &name {
            log::debug!("{error}; the default export keeps the empty name");
        }
        hand.negotiation = at_hand.negotiation;
        let name = name.ok().flatten().unwrap_or_default();
        if after_list {
            hand.default_name = Some(name.clone());
        }
        self.put(tls, hand);
        name
    }

    /// A way for a client: its own from before, one that another has left, or a new one.
    pub fn open(&self, export: ExportName, readonly: bool, pause: Pause) -> Result<Kept, Error> {
        let key = Key {
            export,
            readonly,
            tls: params::is_tls(),
            peer: self.peer(),
        };
        let mut hand = self.take(key.tls);
        let parked = self.lot.as_ref().and_then(|lot| {
            let (found, gone) = lot.enter(&key);
            gone.into_iter().for_each(|kept| self.close(kept));
            found
        });
        let found = match self.mine(&key, &mut hand).or(parked) {
            Some(kept) => Ok(kept),
            None => self.connect(&key, &mut hand, pause),
        };
        if found.is_err() {
            self.lot.iter().for_each(Lot::leave);
        }
        self.put(key.tls, hand);
        found
    }

    /// The way that lies on the client's desk, if it is what the client wants, and the server is there.
    fn mine(&self, key: &Key, hand: &mut Hand) -> Option<Kept> {
        let kept = hand.way.take_if(|kept| kept.key == *key)?;
        if kept.links.is_alive() {
            return Some(kept);
        }
        self.close(kept);
        None
    }

    fn connect(&self, key: &Key, hand: &mut Hand, pause: Pause) -> Result<Kept, Error> {
        let fits = |default: &mut DefaultExport| {
            default.name == key.export && default.readonly == key.readonly
        };
        let default = hand.default.take_if(fits);
        // The server may have closed it meanwhile.
        let of_use = |entered: &Result<Entered, Error>| match entered {
            Ok(entered) => entered.is_alive(),
            Err(_) => true,
        };
        let entered = default.map(|default| default.entered).filter(of_use);
        let was_named = hand.default_name.as_ref() == Some(&key.export);
        let is_default = was_named || matches!(entered, Some(Ok(_)));
        self.clear(hand);
        let instead = |waited| self.is_left_for(key) || self.insist_on_room(waited);
        let mut start = Start {
            entered,
            at_hand: self.at_hand(hand, &instead),
        };
        let helpers = self.upkeep.helpers();
        loop {
            let (server, readonly) = (&self.server, key.readonly);
            match server.connect(&key.export, pause, helpers, false, readonly, &mut start) {
                Ok(links) => {
                    hand.negotiation = start.at_hand.negotiation;
                    self.upkeep.register(links.clone());
                    return Ok(Kept {
                        key: key.clone(),
                        is_default,
                        links,
                    });
                }
                Err(error) if error.is_superseded() => {
                    let (found, gone) = self
                        .lot
                        .as_ref()
                        .map(|lot| lot.take(key))
                        .unwrap_or_default();
                    gone.into_iter().for_each(|kept| self.close(kept));
                    if let Some(kept) = found {
                        return Ok(kept);
                    }
                }
                Err(error) => {
                    hand.negotiation = start.at_hand.negotiation;
                    return Err(error);
                }
            }
        }
    }

    /// What is at hand for a question. With `linger=`, somebody else may be leaving just now, and who
    /// waits for a server that has room for few is then to have what they leave.
    fn at_hand<'a>(&self, hand: &mut Hand, instead: &'a dyn Fn(Duration) -> bool) -> AtHand<'a> {
        AtHand {
            negotiation: hand.negotiation.take(),
            instead: self.lot.as_ref().map(|_| instead),
        }
    }

    /// Whether somebody has left a way for such a client.
    fn is_left_for(&self, key: &Key) -> bool {
        self.lot.as_ref().is_some_and(|lot| lot.has(key))
    }

    /// Leaves all that is parked, once a server has not greeted for long: it may have no room. There is
    /// nothing better than to wait for it.
    fn insist_on_room(&self, waited: Duration) -> bool {
        if waited >= NO_ROOM {
            let parked = self.lot.as_ref().map(Lot::clear).unwrap_or_default();
            parked.into_iter().for_each(|kept| self.close(kept));
        }
        false
    }

    /// A client gives its way back; `failed` if a request has failed on it.
    pub fn give_back(&self, kept: Kept, failed: bool) {
        self.lot.iter().for_each(Lot::leave);
        if failed || self.lot.is_some() || !kept.links.is_unused() {
            self.leave_or_park(kept, failed);
        } else {
            let tls = kept.key.tls;
            let mut hand = self.take(tls);
            let before = hand.way.replace(kept);
            before.into_iter().for_each(|kept| self.close(kept));
            self.put(tls, hand);
        }
    }

    fn leave_or_park(&self, kept: Kept, failed: bool) {
        let Some(lot) = self.lot.as_ref().filter(|_| !failed) else {
            return self.close(kept);
        };
        // Nobody closes it while it comes to rest.
        let leaving = self.upkeep.forget(&kept.links);
        let rested = kept.links.rest(self.deadline());
        if !rested || !self.upkeep.register(kept.links.clone()) {
            return self.close(kept);
        }
        drop(leaving);
        lot.park(kept).into_iter().for_each(|kept| self.close(kept));
        self.upkeep.bell().ring();
    }

    fn close(&self, kept: Kept) {
        self.upkeep.close(&kept.links);
    }

    /// What lies on the desk, but for what is none of this client's matter.
    fn take(&self, tls: bool) -> Hand {
        let (hand, stale) = self.desks.take(tls);
        stale.into_iter().for_each(|hand| self.leave(hand));
        hand
    }

    fn put(&self, tls: bool, hand: Hand) {
        let refused = self.desks.put(tls, hand);
        refused.into_iter().for_each(|hand| self.leave(hand));
    }

    /// Leaves what keeps a place at the server and is of no use, but for a negotiation.
    fn clear(&self, hand: &mut Hand) {
        if let Some(kept) = hand.way.take() {
            self.close(kept);
        }
        if let Some(Ok(entered)) = hand.default.take().map(|default| default.entered) {
            entered.leave(self.deadline());
        }
    }

    /// The same, and what is parked, where a connection for a question would be one too many.
    fn make_room(&self, hand: &mut Hand) {
        self.clear(hand);
        let surplus = self.lot.as_ref().map(Lot::make_room).unwrap_or_default();
        surplus.into_iter().for_each(|kept| self.close(kept));
    }

    /// Leaves what lay on a desk.
    fn leave(&self, mut hand: Hand) {
        self.clear(&mut hand);
        hand.negotiation.into_iter().for_each(Negotiation::leave);
    }

    /// Does that on a thread of its own, or at once if there can be none.
    fn leave_aside(self: &Arc<Self>, leave: impl FnOnce(&Self) + Send + 'static) {
        let duty = Arc::new(Mutex::new(Some(leave)));
        let this = self.clone();
        let take =
            |duty: &Mutex<Option<_>>| duty.lock().unwrap_or_else(PoisonError::into_inner).take();
        let theirs = duty.clone();
        let task = move || take(&theirs).into_iter().for_each(|leave| leave(&this));
        if !self.upkeep.helpers().run("nbd-leave", Box::new(task)) {
            take(&duty).into_iter().for_each(|leave| leave(self));
        }
    }

    fn peer(&self) -> Option<Box<[u8]>> {
        self.lot.as_ref().and_then(|_| params::peer_host())
    }

    fn deadline(&self) -> Deadline {
        Deadline::after_maybe(self.server.options.times.close.get())
    }

    /// What is to be closed at nbdkit's end, and is not registered.
    pub fn clear_for_good(&self) -> Vec<Closing> {
        let mut closings: Vec<Closing> = Vec::new();
        for hand in self.desks.close() {
            // Its way is registered.
            if let Some(Ok(entered)) = hand.default.map(|default| default.entered) {
                closings.push(Box::new(|until| entered.leave(until)));
            }
            if let Some(negotiation) = hand.negotiation {
                closings.push(Box::new(|_| negotiation.leave()));
            }
        }
        closings
    }
}

impl Chore for Reception {
    fn look(self: Arc<Self>) -> Option<Duration> {
        for hand in self.desks.due() {
            self.leave_aside(move |this| this.leave(hand));
        }
        if let Some(lot) = &self.lot {
            for kept in lot.due() {
                self.leave_aside(move |this| this.close(kept));
            }
        }
        let lot = self.lot.as_ref().and_then(Lot::next);
        self.desks.next().into_iter().chain(lot).min()
    }
}
