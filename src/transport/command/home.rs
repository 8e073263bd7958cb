// SPDX-License-Identifier: BSD-3-Clause
//! Where the socket of a server lies that we started, and the way to it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::fs::{Mode, OFlags, chmod, open};
use rustix::io::Errno;

use super::{NAME, launch, lock};
use crate::proto::codec::printable;
use crate::transport::{Deadline, Error, Stream, unix};

/// A directory with a socket in it.
#[derive(Debug)]
pub struct Home {
    /// Only this user can enter it.
    pub directory: PathBuf,
    /// The socket itself, by which it can be connected to without entering the directory.
    door: Mutex<Arc<OwnedFd>>,
}

impl Home {
    /// Makes both.
    pub fn new() -> Result<(Self, UnixListener), Error> {
        let wanted = std::path::absolute(std::env::temp_dir()).unwrap_or_default();
        // A name of the length that the real one will have.
        let parent = if unix::fits(&wanted.join("nbdkit-nbd-XXXXXX").join("sock")) {
            &wanted
        } else {
            Path::new("/tmp")
        };
        let directory = launch::private_directory(parent).map_err(|errno| Error::Make {
            what: "make a directory",
            path: printable(parent.as_os_str().as_bytes(), NAME),
            errno,
        })?;
        match Self::listen(&directory) {
            Ok((door, listener)) => {
                let door = Mutex::new(Arc::new(door));
                Ok((Self { directory, door }, listener))
            }
            Err(errno) => {
                remove(&directory);
                Err(Error::Make {
                    what: "make a socket",
                    path: printable(directory.as_os_str().as_bytes(), NAME),
                    errno,
                })
            }
        }
    }

    fn listen(directory: &Path) -> Result<(OwnedFd, UnixListener), Errno> {
        let socket = directory.join("sock");
        let listener = UnixListener::bind(&socket)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        // Who may use it is for the directory to say, which nobody else can enter.
        chmod(&socket, Mode::from_raw_mode(0o666))?;
        let door = open(&socket, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        Ok((door, listener))
    }

    /// The socket's path.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("sock")
    }

    /// The server has got a new socket. Its path is the old one.
    pub fn rebuilt(&self, door: OwnedFd) {
        *lock(&self.door) = Arc::new(door);
    }

    /// The inode that the door leads to.
    #[cfg(test)]
    pub fn door_number(&self) -> u64 {
        rustix::fs::fstat(&*lock(&self.door)).expect("open").st_ino
    }

    /// A connection to who listens there.
    pub fn connect(&self, deadline: Deadline) -> Result<Stream, Error> {
        match unix::open(&self.socket(), deadline) {
            // nbdkit has become another user (its option -u), who cannot enter the directory. What
            // it had opened before, nobody else can get at.
            Err(Error::Connect(Errno::ACCESS)) => {
                let door = lock(&self.door).clone();
                let door = format!("/proc/self/fd/{}", door.as_raw_fd());
                match unix::open(Path::new(&door), deadline) {
                    // There is no /proc here.
                    Err(Error::Connect(Errno::NOENT)) => Err(Error::Connect(Errno::ACCESS)),
                    result => result,
                }
            }
            result => result,
        }
    }
}

/// Removes a home for which there is no keeper to do so.
pub fn remove(directory: &Path) {
    let _ = std::fs::remove_file(directory.join("sock"));
    let _ = std::fs::remove_dir(directory);
}
