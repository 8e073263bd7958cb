// SPDX-License-Identifier: BSD-3-Clause
//! One request in flight: what it looks like on the wire, what was answered, and whose buffer it
//! is about.

use std::cell::Cell;

use super::loan::{Buffer, Loan};
use crate::proto::chunks::Reply;
use crate::proto::context::Context;
use crate::proto::framing::Framing;
use crate::proto::request::{Cookie, Request, RequestHeader};
use crate::stats;

/// A request in flight.
#[derive(Debug)]
pub struct Flight {
    /// The header to send.
    pub header: RequestHeader,
    /// What the server has answered so far.
    pub reply: Reply,
    /// The caller's buffer.
    pub loan: Loan,
    /// The connection ended before the reply was complete.
    pub lost: bool,
    /// How long it is at the server: see [`Flight::note_sent`].
    time: Cell<u64>,
}

/// A time that is over, and not when it began.
const OVER: u64 = 1 << 63;

impl Flight {
    /// A request that is about to be sent. `context` is the one that was agreed.
    pub(super) fn new(
        request: Request,
        cookie: Cookie,
        framing: Framing,
        context: Option<Context>,
        buffer: &mut Buffer<'_>,
    ) -> Self {
        Self {
            header: request.encode(cookie, framing),
            reply: Reply::new(request, context),
            loan: Loan::new(buffer),
            lost: false,
            time: Cell::new(0),
        }
    }

    /// The last of it goes to the system now, or else this will be said again. Only where somebody wants
    /// to know: then the time begins, unless the reply is here already.
    #[cold]
    #[inline(never)]
    pub fn note_sent(&self) {
        if self.time.get() & OVER == 0 {
            self.time.set(stats::now());
        }
    }

    /// Whether its time is of interest.
    #[inline(always)]
    pub fn is_timed(&self) -> bool {
        self.time.get() != 0
    }

    /// The last of the reply has come: if its time is of interest, it is over.
    #[cold]
    #[inline(never)]
    pub fn note_answered(&self) {
        self.time.set(OVER | self.time_at_server());
    }

    /// For how long it was at the server, or is without an answer, nanoseconds.
    #[cold]
    #[inline(never)]
    pub fn time_at_server(&self) -> u64 {
        match self.time.get() {
            over if over & OVER != 0 => over & !OVER,
            begun => stats::now().saturating_sub(begun),
        }
    }
}
