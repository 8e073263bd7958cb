// SPDX-License-Identifier: BSD-3-Clause
//! Callers' buffers, lent to whichever thread receives or sends.
//!
//! This is the only file of the client with `unsafe` in it. A nbdkit worker sleeps inside its
//! callback while another worker fills its buffer or sends from it. The borrow checker cannot see
//! that, so a [`Loan`] forgets the lifetime and this rule takes its place:
//!
//! **A loan lives in a slot of the in-flight table and nowhere else, its bytes are touched only
//! under that slot's lock, and the ticket takes it out of the slot, under the same lock, before
//! the buffer's borrow ends.** `inflight.rs` keeps the rule (a `Ticket` does so in its `Drop`, so
//! also when its thread panics) and the loom models there test it.

/// What a caller lends for one request.
#[derive(Debug)]
pub enum Buffer<'a> {
    /// Nothing.
    None,
    /// The payload of a write.
    Source(&'a [u8]),
    /// Room for the data of a read.
    Target(&'a mut [u8]),
}

impl Buffer<'_> {
    /// A part of it.
    pub fn part(&mut self, range: std::ops::Range<usize>) -> Buffer<'_> {
        match self {
            Self::None => Buffer::None,
            Self::Source(bytes) => Buffer::Source(&bytes[range]),
            Self::Target(bytes) => Buffer::Target(&mut bytes[range]),
        }
    }
}

/// A [`Buffer`] without its lifetime.
#[derive(Debug)]
pub struct Loan {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    None,
    Source(*const [u8]),
    Target(*mut [u8]),
}

// SAFETY: a loan stands for a `&[u8]` or `&mut [u8]`, both of which may be sent to other threads;
// the rule above keeps two threads from using it at once.
unsafe impl Send for Loan {}

impl Loan {
    /// Forgets the lifetime. Private to the client, whose tickets restore it (see the rule).
    pub(super) fn new(buffer: &mut Buffer<'_>) -> Self {
        let kind = match buffer {
            Buffer::None => Kind::None,
            Buffer::Source(bytes) => Kind::Source(*bytes),
            Buffer::Target(bytes) => Kind::Target(*bytes),
        };
        Self { kind }
    }

    /// The payload to send; empty if there is none.
    pub(super) fn source(&self) -> &[u8] {
        match self.kind {
            // SAFETY: by the rule the borrow is alive as long as this loan can be reached, and it
            // was a shared borrow of initialised bytes.
            Kind::Source(bytes) => unsafe { &*bytes },
            Kind::None | Kind::Target(_) => &[],
        }
    }

    /// The room to receive into; empty if there is none.
    pub(super) fn target(&mut self) -> &mut [u8] {
        match self.kind {
            // SAFETY: by the rule the borrow is alive as long as this loan can be reached, it was
            // exclusive, and `&mut self` makes this its only use at the moment.
            Kind::Target(bytes) => unsafe { &mut *bytes },
            Kind::None | Kind::Source(_) => &mut [],
        }
    }
}
