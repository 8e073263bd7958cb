// SPDX-License-Identifier: BSD-3-Clause
//! What can be seen of the ways to the server from outside, as plain data.

use std::sync::Arc;
use std::time::Duration;

use super::error::Server;
use crate::proto::name::ExportName;

/// A way: one client's, or that of all of them, or one that is kept for the next client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WayReport {
    /// Where it leads to, all servers together.
    pub server: Server,
    /// What was asked for there.
    pub export: ExportName,
    /// How it is.
    pub state: WayState,
    /// The connections that it has.
    pub connections: Vec<ConnectionReport>,
    /// Something was answered that no flush has made permanent.
    pub unflushed: bool,
}

/// How a way is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WayState {
    /// Requests go over it.
    Up,
    /// The server was lost, and is come back to.
    Away {
        /// For how long.
        lasts: Duration,
        /// How many tries have failed.
        tries: u32,
        /// Why the last one did, or how it was lost.
        why: String,
    },
    /// It will not be used any more; why, if that is known.
    Over(Option<Arc<str>>),
}

/// A connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionReport {
    /// To which server.
    pub server: Server,
    /// For how long it has been there.
    pub age: Duration,
    /// Whether it has TLS.
    pub tls: bool,
    /// Requests on their way.
    pub in_flight: u32,
}

/// What is kept to be sent again, for all ways to an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalReport {
    /// The number of its export, which no other one has.
    pub number: u64,
    /// How many ranges.
    pub entries: usize,
    /// How many bytes of the export they are.
    pub bytes: u64,
    /// How much memory they take, bytes.
    pub memory: u64,
}
