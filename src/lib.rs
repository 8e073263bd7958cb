// SPDX-License-Identifier: BSD-3-Clause
//! nbdkit's `nbd` plugin: forwards everything to another NBD server, with a client of its own.
//!
//! ```text
//!        control, where somebody else gives commands
//!            ^  \
//!            |   v
//! nbdkit --> plugin --> client --> transport --> the other NBD server
//!   ^          |          |  ^
//!   |          v          v  |
//!  host     config   session, proto  (pure: events and bytes in, decisions out), stats
//! ```
//!
//! Data flows one way and no arrow points up. [`proto`] and [`session`] are the ground: they know no
//! socket, thread or clock. `proto` is the wire; `session` is what outlives a connection: the journal of
//! what is acknowledged and not permanent, the order of changes, what an answer is worth, and the gate
//! through which another connection takes the place of a lost one. [`stats`] is numbers: those above tell
//! it what they did, and it knows nobody. [`client`] moves bytes and wakes waiters, and comes back to a
//! lost server; it knows no nbdkit. [`plugin`] knows nbdkit's callbacks and nothing of the wire. [`host`]
//! is the only place that names nbdkit's functions. [`config`] is what the user asked for, checked once.
//! [`control`] takes commands while nbdkit serves, and acts on the client by a handle that the plugin gives
//! it. [`transport`] is one way to connect each, and TLS over any of them. [`json`] writes what programs
//! read of `control` and of a probe.
//!
//! `unsafe` lives in `host`, in `plugin/{mod,callbacks}.rs`, in `transport/{fd,resolve}.rs`,
//! `transport/tls/rekey.rs` and `transport/command/{descriptors,impatience,keeper,kept,launch,signals}.rs`,
//! and in `client/loan.rs` (and, for loom alone, in `client/inflight/tests.rs`); everywhere else it is
//! forbidden.

#[deny(unsafe_code)]
pub mod client;
#[forbid(unsafe_code)]
pub mod config;
#[forbid(unsafe_code)]
pub mod control;
pub mod host;
#[forbid(unsafe_code)]
pub mod json;
pub mod plugin;
#[forbid(unsafe_code)]
pub mod proto;
#[forbid(unsafe_code)]
pub mod session;
#[forbid(unsafe_code)]
pub mod stats;
#[deny(unsafe_code)]
pub mod transport;
