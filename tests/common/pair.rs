// SPDX-License-Identifier: BSD-3-Clause
//! A server and nbdkit with the plugin before it, in a directory of their own.

use std::path::Path;

use tempfile::TempDir;

use super::nbdkit::{Nbdkit, forward};
use super::upstream::Server;

/// Anything that can be forwarded.
pub trait Upstream {
    fn socket(&self) -> &Path;
}

impl Upstream for Nbdkit {
    fn socket(&self) -> &Path {
        self.socket()
    }
}

impl Upstream for Server {
    fn socket(&self) -> &Path {
        self.socket()
    }
}

/// The two, of which the one before the other ends first.
pub struct Pair<S = Nbdkit> {
    pub front: Nbdkit,
    pub server: S,
    directory: TempDir,
}

impl Pair {
    /// The server is nbdkit with these arguments; `extra` as for [`forward`].
    pub fn new(args: &[&str], extra: &[&str]) -> Self {
        Self::with(|directory| Nbdkit::start(directory, args), extra)
    }
}

impl<S: Upstream> Pair<S> {
    /// The server is what `make` starts in the directory; `extra` as for [`forward`].
    pub fn with(make: impl FnOnce(&Path) -> S, extra: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let server = make(directory.path());
        let front = forward(directory.path(), server.socket(), extra);
        Self {
            front,
            server,
            directory,
        }
    }

    /// Where both are, and what the server needs.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}
