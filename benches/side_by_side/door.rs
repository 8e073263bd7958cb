// SPDX-License-Identifier: BSD-3-Clause
//! Where one connects to a server or to a contender.

use std::path::PathBuf;

use crate::common::nbdkit::uri;

/// Where clients connect.
pub enum Door {
    /// A Unix socket.
    Unix(PathBuf),
    /// A port on 127.0.0.1.
    Tcp(String),
}

impl Door {
    /// As clients are told it.
    pub fn uri(&self) -> String {
        match self {
            Self::Unix(socket) => uri(socket, ""),
            Self::Tcp(port) => format!("nbd://127.0.0.1:{port}"),
        }
    }
}
