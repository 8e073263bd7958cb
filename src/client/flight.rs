// SPDX-License-Identifier: BSD-3-Clause
//! One request in flight: what it looks like on the wire, what was answered, and whose buffer it
//! is about.

use super::loan::{Buffer, Loan};
use crate::proto::chunks::Reply;
use crate::proto::context::Context;
use crate::proto::framing::Framing;
use crate::proto::request::{Cookie, Request, RequestHeader};

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
}

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
        }
    }
}
