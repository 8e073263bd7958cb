// SPDX-License-Identifier: BSD-3-Clause
//! One request in flight: what it looks like on the wire, what was answered, and whose buffer it
//! is about.

use super::loan::{Buffer, Loan};
use crate::proto::chunks::Reply;
use crate::proto::context::Context;
use crate::proto::request::{Cookie, REQUEST_LENGTH, Request};

/// A request in flight.
#[derive(Debug)]
pub struct Flight {
    /// The header to send.
    pub header: [u8; REQUEST_LENGTH],
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
        context: Option<Context>,
        buffer: &mut Buffer<'_>,
    ) -> Self {
        Self {
            header: request.encode(cookie),
            reply: Reply::new(request, context),
            loan: Loan::new(buffer),
            lost: false,
        }
    }
}
