//! The server behind this plugin: how its connections are made, retried and shared.

use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::guard::Failure;
use crate::client::error::Error;
use crate::client::manners::Manners;
use crate::client::{self, Client, Options};
use crate::config::target::Place;
use crate::config::{Config, ExportName};
use crate::host::lists::Exports;
use crate::host::params;
use crate::proto::handshake::TlsPolicy;
use crate::proto::name;
use crate::transport::Target;
use crate::transport::command::Child;
use crate::transport::fd::Inherited;

/// A server that is ready to be connected to.
#[derive(Debug)]
pub struct Upstream {
    options: Options,
    export: ExportName,
    retry: u32,
    /// The one connection, in shared mode.
    shared: Option<Mutex<Option<Arc<Client>>>>,
}

/// A client's hold on a connection.
#[derive(Debug)]
pub struct Session {
    client: Arc<Client>,
    /// Others hold it too, and it is closed at the end.
    shared: bool,
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// How to pass the time until the next try. False ends the tries.
type Pause = fn() -> bool;

impl Upstream {
    /// Prepares for connections. A shared connection is made at once: this runs before nbdkit
    /// goes into the background or starts its captive command, so failure still reaches the user.
    pub fn new(config: &Config) -> Result<Self, Failure> {
        let target = match &config.place {
            Place::Unix(path) => Target::Unix(path.clone()),
            Place::Tcp { host, port } => Target::Tcp {
                host: host.clone(),
                port: port.clone(),
            },
            Place::Vsock { cid, port } => Target::Vsock {
                cid: *cid,
                port: *port,
            },
            Place::SocketFd(number) => {
                let socket = Inherited::new(*number)
                    .map_err(|error| Failure::misuse(&format!("socket-fd={number}: {error}")))?;
                Target::Inherited(socket)
            }
            Place::Command(argv) => {
                let child = Child::start(argv)
                    .map_err(|error| Failure::misuse(&format!("command: {error}")))?;
                Target::Child(child)
            }
        };
        if config.tls_policy != TlsPolicy::Off {
            // Files are read again for each connection; this is for the user who is still there.
            config
                .tls
                .check()
                .map_err(|error| Failure::misuse(&error.to_string()))?;
        }
        let upstream = Self {
            options: Options {
                target,
                tls_policy: config.tls_policy,
                tls: config.tls.clone(),
                connect_timeout: config.timeouts.connect,
                handshake_timeout: config.timeouts.handshake,
                request_timeout: config.timeouts.request,
                manners: Manners::default(),
            },
            export: config.export.clone(),
            retry: config.retry,
            shared: config.shared.then(Mutex::default),
        };
        if let Some(shared) = &upstream.shared {
            // nbdkit's own sleep cannot be used yet, and signals still end the process.
            let pause = || {
                std::thread::sleep(Duration::from_secs(1));
                true
            };
            *lock(shared) = Some(Arc::new(
                upstream.connect(&name::ExportName::default(), pause)?,
            ));
        }
        Ok(upstream)
    }

    /// nbdkit has forked for the last time: threads may run.
    pub fn after_fork(&self) -> Result<(), Failure> {
        match &self.options.target {
            Target::Child(child) => child
                .after_fork()
                .map_err(|error| Failure::misuse(&format!("command: {error}"))),
            _ => Ok(()),
        }
    }

    /// What a failed request has to say, with the end of a server that we started, if that is why.
    pub fn explain(&self, error: Error) -> Failure {
        match &error {
            Error::Lost(_) => Failure::with_postscript(error, || self.options.target.obituary()),
            _ => error.into(),
        }
    }

    /// A connection for a client that asks for the export `wanted`.
    pub fn open(
        &self,
        wanted: impl FnOnce() -> Result<name::ExportName, Failure>,
    ) -> Result<Session, Failure> {
        let pause = params::sleep_a_second;
        let Some(shared) = &self.shared else {
            let wanted = match self.export {
                ExportName::Fixed(_) => name::ExportName::default(),
                ExportName::Dynamic => wanted()?,
            };
            return Ok(Session {
                client: Arc::new(self.connect(&wanted, pause)?),
                shared: false,
            });
        };
        let mut shared = lock(shared);
        let client = match shared.take().filter(|client| !client.is_over()) {
            Some(client) => client,
            // The server went away. Those who use the old connection see their requests fail;
            // whoever comes now gets a new one.
            None => Arc::new(self.connect(&name::ExportName::default(), pause)?),
        };
        *shared = Some(client.clone());
        Ok(Session {
            client,
            shared: true,
        })
    }

    /// Fills the list of exports for a client.
    pub fn list(&self, exports: &mut Exports) -> Result<(), Failure> {
        if matches!(self.export, ExportName::Fixed(_)) {
            return exports
                .add_default()
                .then_some(())
                .ok_or_else(Failure::by_host);
        }
        for export in client::list(&self.options)? {
            if !exports.add(export.name.as_bytes(), &export.description) {
                log::debug!("nbdkit does not list export \"{}\"", export.name);
            }
        }
        Ok(())
    }

    /// The name behind the empty name. Not knowing is no failure: the server may still open it.
    pub fn default_export(&self) -> name::ExportName {
        match &self.export {
            ExportName::Fixed(name) => name.clone(),
            ExportName::Dynamic => client::default_export(&self.options)
                .unwrap_or_else(|error| {
                    log::debug!("{error}; the default export keeps the empty name");
                    None
                })
                .unwrap_or_default(),
        }
    }

    /// Disconnects what is shared.
    pub fn end(&self) {
        let shared = self.shared.as_ref().and_then(|shared| lock(shared).take());
        // nbdkit does not close the handles of clients that it leaves at its end, so that others may
        // still seem to hold the connection.
        if let Some(client) = shared {
            client.close();
        }
    }

    /// Connects, and tries again as often as the user said, if time can help.
    fn connect(&self, wanted: &name::ExportName, pause: Pause) -> Result<Client, Failure> {
        let export = match &self.export {
            ExportName::Fixed(name) => name,
            ExportName::Dynamic => wanted,
        };
        let mut tries_left = self.retry;
        loop {
            match Client::open(&self.options, export) {
                Ok(client) => return Ok(client),
                Err(error) if tries_left > 0 && error.is_transient() => {
                    log::debug!("connect failed; will try again: {error}");
                    tries_left -= 1;
                    if !pause() {
                        return Err(Failure::by_host());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Session {
    /// Disconnects, unless others use the connection too.
    pub fn close(self) {
        if !self.shared {
            self.client.close();
        }
    }
}

fn lock(shared: &Mutex<Option<Arc<Client>>>) -> MutexGuard<'_, Option<Arc<Client>>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
