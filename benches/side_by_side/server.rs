// SPDX-License-Identifier: BSD-3-Clause
//! The server behind all contenders of a group. There is one, and they take turns.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::common::nbdkit::Nbdkit;
use crate::common::pki::{Authority, LOCALHOST, keys};
use crate::common::tcp::{TcpServer, V4};
use crate::common::tls;
use crate::common::upstream::{self, qemu_nbd};
use crate::door::Door;
use crate::pieces::Pieces;
use crate::workload::Group;

/// Who has the pre-shared key.
pub const USER: &str = "bench";

/// A running server; it ends when this is dropped.
pub struct Server {
    _process: Process,
    /// How it is reached.
    pub reach: Reach,
}

/// Only kept, so that it runs.
enum Process {
    Nbdkit { _running: Nbdkit },
    Tcp { _running: TcpServer },
    Qemu { _running: upstream::Server },
    Pieces { _running: Pieces },
}

/// How to reach a server.
pub enum Reach {
    /// A Unix socket.
    Unix(PathBuf),
    /// A Unix socket; the export is the one that each client asks for.
    Dynamic(PathBuf),
    /// A port on 127.0.0.1.
    Tcp(String),
    /// A Unix socket and the directory of the authority's certificate.
    X509(PathBuf, PathBuf),
    /// A Unix socket and the file of keys.
    Psk(PathBuf, PathBuf),
}

impl Reach {
    /// Where one would connect without a forwarder.
    pub fn door(&self) -> Door {
        match self {
            Self::Unix(socket)
            | Self::Dynamic(socket)
            | Self::X509(socket, _)
            | Self::Psk(socket, _) => Door::Unix(socket.clone()),
            Self::Tcp(port) => Door::Tcp(port.clone()),
        }
    }
}

impl Server {
    /// Starts a server of this kind, with its files in `place`.
    pub fn start(group: Group, place: &Path) -> Result<Self, String> {
        let size = group.disk().to_string();
        let memory = ["memory", size.as_str()];
        Ok(match group {
            Group::Unix | Group::Holes | Group::Copy => {
                Self::nbdkit(Nbdkit::start(place, &memory), Reach::Unix)
            }
            Group::Dynamic => Self::nbdkit(Nbdkit::start(place, &memory), Reach::Dynamic),
            Group::Pieces => {
                let server = Pieces::start(place).map_err(|error| format!("pieces: {error}"))?;
                Self {
                    reach: Reach::Unix(server.socket().to_owned()),
                    _process: Process::Pieces { _running: server },
                }
            }
            Group::X509 => {
                let authority = Authority::new(place, "authority");
                let certificates = authority.server("server", LOCALHOST);
                let trust = authority.trusting("client");
                let server = tls::nbdkit(place, &certificates, &memory);
                Self::nbdkit(server, |socket| Reach::X509(socket, trust))
            }
            Group::Psk => {
                // qemu-nbd insists on this name.
                let keys = keys(place, "keys.psk", &[USER]);
                let server = tls::nbdkit_psk(place, &keys, &memory);
                Self::nbdkit(server, |socket| Reach::Psk(socket, keys))
            }
            Group::Tcp => {
                let server = TcpServer::start(V4, &memory);
                Self {
                    reach: Reach::Tcp(server.port()),
                    _process: Process::Tcp { _running: server },
                }
            }
            Group::Qemu => {
                let image = place.join("disk.raw");
                File::create(&image)
                    .and_then(|file| file.set_len(group.disk()))
                    .map_err(|error| format!("{}: {error}", image.display()))?;
                let server = qemu_nbd(place, &image, "raw", "", &[]);
                Self {
                    reach: Reach::Unix(server.socket().to_owned()),
                    _process: Process::Qemu { _running: server },
                }
            }
        })
    }

    fn nbdkit(nbdkit: Nbdkit, reach: impl FnOnce(PathBuf) -> Reach) -> Self {
        Self {
            reach: reach(nbdkit.socket().to_owned()),
            _process: Process::Nbdkit { _running: nbdkit },
        }
    }
}
