// SPDX-License-Identifier: BSD-3-Clause
//! The moment in which a connection is lost.

use std::sync::Arc;
use std::time::Instant;

use super::Lasting;
use crate::client::connection::Connection;
use crate::client::error::{Cause, Lost, Outage};
use crate::client::resume::{Away, Phase, Up};
use crate::transport::{Deadline, seconds};

impl Lasting {
    /// A request has found out that a connection is gone. The first one that does begins the outage.
    pub(in crate::client) fn lost(
        self: &Arc<Self>,
        connection: &Arc<Connection>,
        lost: &Arc<Lost>,
    ) {
        let resume = self.resume();
        let Some(mut inner) = self.drop_one(resume.lock(), connection, lost) else {
            return;
        };
        let inner_ref = &mut *inner;
        let Some(way) = inner_ref.ways.get_mut(&self.way) else {
            return;
        };
        let Phase::Up(up) = &way.phase else {
            return;
        };
        if !Arc::ptr_eq(&up.connection, connection) {
            return;
        }
        let up = up.clone();
        inner_ref.core.lost(up.member);
        if let Cause::GivenUp(_) = lost.cause() {
            // Whoever would wait for it has left.
            way.phase = Phase::Over;
            resume.tell(inner);
            self.bury_aside(up);
            return;
        }
        if let Cause::Violation(_) = lost.cause() {
            way.violations += 1;
        }
        // The outage is the one loss of all.
        way.dropped.clear();
        let outage = Arc::new(Outage::new(lost.clone(), self.terms.limit.get()));
        way.phase = Phase::Away(Away {
            since: Instant::now(),
            outage: outage.clone(),
            grave: Some(up),
            thread: false,
            reminded: false,
        });
        resume.tell(inner);
        self.tell_of_loss(&outage);
        self.begin_to_come_back();
    }

    /// Sees to the end of a connection that nobody comes back from: until then what was sent over it
    /// may still be carried out, and another client's change must not be overtaken by it.
    pub(super) fn bury_aside(self: &Arc<Self>, up: Up) {
        let (this, last) = (self.clone(), up.clone());
        let bury = move || {
            let deadline = Deadline::after_maybe(this.opener.options.times.close.get());
            up.connection.bury(deadline, || !this.helpers.is_closed());
            let mut inner = this.resume().lock();
            inner.core.buried(up.member);
            this.resume().tell(inner);
        };
        if !self.helpers.run("nbd-bury", Box::new(bury)) {
            // nbdkit ends, and nobody waits for last words.
            last.connection.give_up();
            let mut inner = self.resume().lock();
            inner.core.buried(last.member);
            self.resume().tell(inner);
        }
    }

    fn tell_of_loss(&self, outage: &Outage) {
        let lost = outage.lost();
        lost.tell_once();
        let obituary = self.opener.options.target.obituary();
        let obituary = obituary.map(|text| format!(": {text}")).unwrap_or_default();
        let limit = match self.terms.limit.get() {
            Some(limit) => format!("for up to {}", seconds(limit)),
            None => "for as long as it takes".to_owned(),
        };
        log::error!("{lost}{obituary}; trying again {limit}");
    }
}
