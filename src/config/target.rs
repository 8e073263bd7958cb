// SPDX-License-Identifier: BSD-3-Clause
//! Where to connect to: exactly one of six ways.

use std::ffi::OsString;
use std::path::PathBuf;

use super::{Error, params};
use crate::transport::ssh::Route;
use crate::transport::unix;

/// Port and service of NBD.
const DEFAULT_PORT: &str = "10809";

/// Where a server is, or how to start it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A Unix domain socket, by absolute path.
    Unix(PathBuf),
    /// A TCP host and service, by name or number.
    Tcp {
        /// Name or address.
        host: String,
        /// Number or name.
        port: String,
    },
    /// A virtio socket.
    Vsock {
        /// Context id.
        cid: u32,
        /// Port number.
        port: u32,
    },
    /// Through ssh; only a URI can say so.
    Ssh(Route),
    /// A descriptor that is a connected socket.
    SocketFd(i32),
    /// A program to start, and its arguments; it gets a listening socket.
    Command(Vec<OsString>),
}

/// The parameters that say where, as they come.
#[derive(Clone, Debug, Default)]
pub struct TargetParams {
    /// `socket=`.
    pub socket: Option<PathBuf>,
    /// `hostname=`.
    pub hostname: Option<String>,
    /// `port=`.
    pub port: Option<String>,
    /// `vsock=` or `cid=`, not yet a number, behind its spelling.
    pub vsock: Option<(&'static str, Vec<u8>)>,
    /// `socket-fd=`.
    pub socket_fd: Option<i32>,
    /// `command=` and `arg=`: the first `command=`, then all others in order.
    pub command: Vec<OsString>,
    /// Whether there was a `command=`.
    pub has_command: bool,
    /// `uri=`.
    pub uri: Option<String>,
    /// `socket=`, `hostname=` and `uri=`, each as often as it was given, in order.
    pub listed: Vec<Listed>,
}

/// One of several servers, as it was typed.
#[derive(Clone, Debug)]
pub enum Listed {
    /// `socket=`.
    Socket(PathBuf),
    /// `hostname=`.
    Host(String),
    /// `uri=`.
    Uri(String),
}

impl TargetParams {
    /// Takes a `command=`. The first one is the program, wherever it stands.
    pub fn add_command(&mut self, word: OsString) {
        let place = if self.has_command {
            self.command.len()
        } else {
            0
        };
        self.command.insert(place, word);
        self.has_command = true;
    }

    /// Takes a `socket=`.
    pub fn add_socket(&mut self, path: PathBuf) {
        self.listed.push(Listed::Socket(path.clone()));
        self.socket = Some(path);
    }

    /// Takes a `hostname=`.
    pub fn add_host(&mut self, host: String) {
        self.listed.push(Listed::Host(host.clone()));
        self.hostname = Some(host);
    }

    /// Takes a `uri=`.
    pub fn add_uri(&mut self, uri: String) {
        self.listed.push(Listed::Uri(uri.clone()));
        self.uri = Some(uri);
    }

    /// All servers that were named, where there may be several. The port is that of every host.
    pub fn complete_all(self) -> Result<Vec<Listed>, Error> {
        if self.vsock.is_some() || self.socket_fd.is_some() || !self.command.is_empty() {
            return Err(Error::ServersElsewhere);
        }
        if self.listed.is_empty() {
            return Err(Error::NoTarget);
        }
        if self.port.is_some() && self.hostname.is_none() {
            return Err(Error::StrayPort);
        }
        Ok(self.listed)
    }

    /// The one place that was named, unless it was named by a URI.
    pub fn complete(self) -> Result<Option<Place>, Error> {
        let named = [
            self.socket.is_some(),
            self.hostname.is_some(),
            self.vsock.is_some(),
            self.socket_fd.is_some(),
            !self.command.is_empty(),
            self.uri.is_some(),
        ];
        match named.iter().filter(|is| **is).count() {
            0 => return Err(Error::NoTarget),
            1 => (),
            _ => return Err(Error::SeveralTargets),
        }
        if self.port.is_some() && self.hostname.is_none() && self.vsock.is_none() {
            return Err(Error::StrayPort);
        }
        let port = self.port.as_deref().unwrap_or(DEFAULT_PORT);
        if let Some(path) = self.socket {
            return unix_socket(path).map(Some);
        }
        if let Some(host) = self.hostname {
            return host_at(host, Some(port)).map(Some);
        }
        if let Some((key, cid)) = self.vsock {
            return Ok(Some(Place::Vsock {
                // The name before the colon is the one in the plugin in C.
                cid: params::number("vsock_cid", &cid).map_err(|error| Error::Parameter {
                    key,
                    error: Box::new(error),
                })?,
                port: params::number("port", port.as_bytes())?,
            }));
        }
        if let Some(fd) = self.socket_fd {
            return Ok(Some(Place::SocketFd(fd)));
        }
        if !self.command.is_empty() {
            return Ok(Some(Place::Command(self.command)));
        }
        Ok(None)
    }
}

/// A TCP host, and its port or the one of NBD.
pub fn host_at(host: String, port: Option<&str>) -> Result<Place, Error> {
    let port = params::tcp_port(port.unwrap_or(DEFAULT_PORT))?;
    Ok(Place::Tcp { host, port })
}

/// A path that fits a socket address. It is made absolute while the directory is still the user's:
/// nbdkit goes to `/` in the background.
pub fn unix_socket(path: PathBuf) -> Result<Place, Error> {
    let path = std::path::absolute(&path).unwrap_or(path);
    if !unix::fits(&path) {
        return Err(Error::SocketTooLong);
    }
    Ok(Place::Unix(path))
}

impl Place {
    /// Whether only one connection can be counted on, so that all clients have to share it.
    pub fn is_single(&self) -> bool {
        matches!(self, Self::SocketFd(_) | Self::Command(_))
    }
}
